"""Precision, compilation and graphs as options of the commands: what they change, what they leave, what is refused."""

import json
import os
import subprocess
import sys

import pytest
import torch

from madiff import hardware
from madiff.diffusion import computing
from madiff.experiment import checkpoint, runtime
from madiff.interfaces import UserError
from madiff.schema import Hardware
from tests.cli.command import complaint, run, tiny

SMALL = ["train.baselines=[]", "algo.width=16", "algo.layers=1", "algo.inverse_width=16", "algo.sampler_steps=2",
         "evaluation.episodes=2", "evaluation.film=false", "train.evaluate_episodes=1", "resume=auto",
         "train.evaluate_every=10", "train.checkpoint_every=5", "train.log_every=5"]  # fmt: skip


@pytest.fixture(autouse=True)
def plain_afterwards():
    yield
    computing.use(computing.PLAIN)


def weights(folder):
    return checkpoint.latest(folder / "checkpoints").weights()


def test_a_run_in_bf16_goes_on_as_it_began_and_is_evaluated_so(workplace, capsys):
    half = [*SMALL, "hardware.precision=bf16"]
    assert run("train", *tiny(workplace / "whole", *half, "train.steps=10")) == 0
    assert run("train", *tiny(workplace / "parts", *half, "train.steps=5")) == 0
    assert run("train", *tiny(workplace / "parts", *half, "train.steps=10")) == 0
    whole, parts = weights(workplace / "whole"), weights(workplace / "parts")
    assert whole and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not any(value.dtype == torch.bfloat16 for value in whole.values())
    assert run("evaluate", "run=parts", "episodes=2", "out=half", "hardware.device=cpu", "hardware.precision=bf16") == 0
    assert computing._used.precision == torch.bfloat16
    assert run("train", *tiny(workplace / "parts", *SMALL, "train.steps=11")) == 0  # goes on in float32
    assert computing._used is computing.PLAIN
    assert json.loads((workplace / "half" / "evaluation.json").read_text())["step"] == 10


@pytest.mark.learn
def test_a_compiled_run_keeps_its_names_and_goes_on_either_way(workplace):
    assert run("train", *tiny(workplace / "run", *SMALL, "train.steps=5", "hardware.compile=true")) == 0
    compiled = weights(workplace / "run")
    assert run("train", *tiny(workplace / "run", *SMALL, "train.steps=10")) == 0
    assert run("train", *tiny(workplace / "plain", *SMALL, "train.steps=5")) == 0
    plain = weights(workplace / "plain")
    assert compiled.keys() == plain.keys() == weights(workplace / "run").keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-2, atol=1e-4)
    assert run("train", *tiny(workplace / "plain", *SMALL, "train.steps=10", "hardware.compile=true")) == 0
    assert run("evaluate", "run=plain", "episodes=2", "hardware.device=cpu", "hardware.compile=true") == 0


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("hardware.precision=half", ["hardware.precision", "half", "float32, bf16"]),
        ("hardware.compile=yes", ["hardware.compile", "true or false"]),
        ("hardware.graphs=true", ["hardware.graphs", "only CUDA records graphs", "hardware.device=cuda"]),
    ],
)
def test_what_cannot_be_is_refused_before_the_run_directory_is_made(workplace, capsys, argument, parts):
    line = complaint(capsys, "train", *tiny(workplace / "run", argument))
    assert all(part in line for part in parts), line
    assert not (workplace / "run").exists()


def test_a_machine_that_cannot_compile_is_told_so_in_one_line(monkeypatch):
    from madiff.diffusion import compiling

    def trial(device):
        raise RuntimeError("no C++ compiler found\nand much else")

    monkeypatch.setattr(compiling, "trial", trial)
    monkeypatch.setattr(compiling, "Compiled", lambda threads: None)
    with pytest.raises(UserError, match=r"hardware.compile: .*\(no C\+\+ compiler found\); allowed: false") as error:
        hardware.setup(Hardware("cpu", 1, compile=True), None)
    assert "much else" not in str(error.value)


@pytest.mark.parametrize(("able", "lines"), [({}, 2), ({"avx512_bf16": True}, 1), ({"bf16": True}, 1)])
def test_a_cpu_without_instructions_says_that_it_will_be_slower(monkeypatch, able, lines):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    said = []
    hardware.setup(Hardware("cpu", 1, "bf16"), said.append)
    assert runtime.multiplies_bf16() == bool(able) and len(said) == lines
    assert lines == 1 or "slower than float32" in said[1]


def test_a_method_that_heeds_nothing_of_it_says_so():
    class Deaf:
        heeds_computing = False

    assert hardware.unheeded(Hardware("cpu", 1), Deaf(), "bc") is None
    assert "hardware.precision: bc has no denoiser" in hardware.unheeded(Hardware("cpu", 1, "bf16"), Deaf(), "bc")
    assert hardware.unheeded(Hardware("cpu", 1, "bf16"), object(), "mine") is None


def test_a_benchmark_hands_on_what_differs_from_the_defaults():
    from madiff import benchmark

    assert benchmark.computed_otherwise(Hardware("cpu", 1)) == []
    assert benchmark.computed_otherwise(Hardware("cpu", 1, "bf16", True)) == [("precision", "bf16"), ("compile", True)]


@pytest.mark.parametrize(("own", "expected"), [({}, "PASSIVE 1000"), ({"GOMP_SPINCOUNT": "0"}, "PASSIVE 0")])
def test_idle_threads_soon_sleep_unless_the_environment_says_otherwise(own, expected):
    told = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    program = "import os, madiff; print(os.environ['OMP_WAIT_POLICY'], os.environ['GOMP_SPINCOUNT'])"
    done = subprocess.run([sys.executable, "-c", program], env=told | own, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
