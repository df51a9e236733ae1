"""What `make bench-gpu` measures, on a CPU with the smallest networks; its answer where there is no GPU."""

import json

import pytest
import torch

from benchmarks import environment, gpu, planning

TINY = ("algo=madiff-c", "algo.width=16", "algo.layers=1", "algo.heads=2", "algo.batch_size=4")


def test_without_a_gpu_it_is_one_line_and_exit_2(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([f"out={tmp_path}/gpu.json"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "GPU" in error and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_the_peak_is_told_by_the_name_of_the_device(name, found):
    assert gpu.peak(name) == found


def test_every_row_is_measured_and_the_share_is_of_the_peak(monkeypatch, tmp_path, capsys):
    small = {"ROUNDS": 1, "UPDATES": 1, "CALLS": 1, "BATCHES": (1, 2), "COPIES": 4, "STEPS": 2, "MODELS": ("default",)}
    for name, value in small.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(planning, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "made", lambda model, device: planning.learner(*TINY, device=device))
    stepper = environment.stepper
    monkeypatch.setattr(environment, "stepper", lambda *a, compile, **more: stepper(*a, compile=False, **more))
    gpu.run("cpu", "NVIDIA A100-SXM4-40GB", tmp_path / "made" / "gpu.json")
    written = json.loads((tmp_path / "made" / "gpu.json").read_text())
    assert written["bf16_peak_flops"] == 312e12
    rows = {row["name"]: row for row in written["rows"]}
    assert len(rows) == 2 + 2 * 2 + 1 + 2 and all(row["ours"] > 0 for row in rows.values())
    wide = rows["training, model=default, 4 windows, bf16"]
    assert wide["share_of_bf16_peak"] == pytest.approx(wide["ours"] * wide["gflop_per_window"] * 1e9 / 312e12)
    assert rows["training, model=default, 4 windows, float32"]["share_of_bf16_peak"] is None
    assert "of the bf16 peak" in capsys.readouterr().out


def test_chunks_count_what_they_did_in_the_precision_asked():
    method, seen = planning.learner(*TINY), []
    planning.stir(method)
    plan = gpu.planner(method, 2, "cpu")
    assert gpu.repeated(lambda: seen.append(plan()), 2, 5, "bf16")() == 10
    gpu.repeated(lambda: seen.append(plan()), 1, 5, "float32")()
    narrow, again, wide = seen
    assert torch.equal(narrow, again) and not torch.equal(narrow, wide) and (wide - narrow).abs().mean() < 0.1
