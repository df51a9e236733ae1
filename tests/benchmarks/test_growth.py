"""How cost grows: every point is a measurement, alone in its process, and constraints have something to do."""

import json
import math

import pytest
import torch

from benchmarks import growth, planning


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(planning, "ROUNDS", 1)


def grown(mebibytes):
    before = growth.memory("cpu", "VmRSS")
    block = torch.ones(mebibytes * growth.MEBI // 4)
    del block
    return growth.memory("cpu", "VmHWM") - before


def test_the_peak_memory_of_a_point_is_its_own():
    assert 390 < growth.alone(grown, 400) < 550
    assert growth.alone(grown, 20) < 150


def test_points_are_written_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "alone", lambda work, *given: work(*given))
    few = {name: growth.Growth(one.values[:1], one.unit, one.options) for name, one in growth.GROWTHS.items()}
    monkeypatch.setattr(growth, "GROWTHS", few)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert growth.main([f"out={tmp_path}/made/growth.json"]) == 0
    rows = json.loads((tmp_path / "made" / "growth.json").read_text())
    assert [(r["name"], r["value"]) for r in rows] == [(name, one.values[0]) for name, one in few.items()]
    assert all(r["ours"] > 0 and r["peak_mib"] >= 0 for r in rows)
    assert (tmp_path / "made" / "growth.png").read_bytes()[:4] == b"\x89PNG"
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 1


def test_what_grows_is_what_the_learner_is_told():
    asked = {name: planning.learner("algo=madiff-c", *one.options(16)) for name, one in growth.GROWTHS.items()}
    found = {name: method.config for name, method in asked.items()}
    assert found["horizon"].horizon == found["candidates"].candidates == 16
    assert found["batch"].batch_size == found["width"].width == 16


@pytest.mark.parametrize("count", [1, 64])
def test_obstacles_cover_the_same_share_and_move_plans(count):
    sets = growth.obstacles(count)
    assert sum(math.pi * s.radius**2 for s in sets) == pytest.approx(growth.COVERED)
    method = planning.learner("algo=madiff-c", "algo.horizon=8", "algo.width=16")
    method.batches(planning.team_episodes())
    planning.stir(method)
    policy = method.policy([growth.safediffuser.make_hook("exact", sets, method.layout())])
    policy.reset(seed=0, n=1)
    policy.act(torch.rand(1, 3, 30), torch.ones(1, 3, 9, dtype=torch.bool))
    moved = torch.stack(policy.info["moved"])
    assert len(moved) == method.config.sampler_steps and (moved > 0).float().mean() >= 0.5


def test_every_kind_of_measurement_has_its_panel(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(growth.picture, "growth", lambda panels, out: drawn.update(panels))
    points = [("agents", 1, growth.PLAN, 5.0), ("agents", 2, growth.PLAN, None), ("batch", 16, growth.TRAIN, 7.0)]
    rows = [{"name": n, "value": v, "ours": 2.0, "unit": u, "peak_mib": m} for n, v, u, m in points]
    growth.draw(rows, tmp_path)
    assert list(drawn) == [
        growth.PLAN, "peak memory of planning in MiB", growth.TRAIN, "peak memory of training in MiB"
    ]  # fmt: skip
    assert drawn[growth.PLAN]["agents"].x == [1, 2] and drawn["peak memory of planning in MiB"]["agents"].x == [1]


@pytest.mark.parametrize(
    ("told", "line"), [(["on=x"], "unknown argument 'on'"), (["of=agent"], "'agent'"), (["out=x.txt"], "x.txt")]
)
def test_what_makes_no_sense_is_one_line_and_exit_2(told, line, capsys):
    assert growth.main(told) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and line in error
