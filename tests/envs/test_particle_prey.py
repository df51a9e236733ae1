"""The trained prey's file: what is read, what is refused, and that nothing in it is ever run."""

import pickle

import prey_files
import pytest
import torch
from torch import nn

from envs.particle import Particle
from envs.particle.prey import load
from madiff.interfaces import UserError

CPU = torch.device("cpu")


def test_the_prey_is_the_last_agent_with_its_normalisation_frozen(tmp_path):
    path = prey_files.saved(tmp_path / "prey.pt", 14, seed=4)
    weights = prey_files.policy(14, seed=4)
    layers = [nn.BatchNorm1d(14), nn.Linear(14, 64), nn.Linear(64, 64), nn.Linear(64, 2)]
    network = nn.Sequential(layers[0], layers[1], nn.ReLU(), layers[2], nn.ReLU(), layers[3], nn.Tanh()).eval()
    for name, layer in zip(("in_fn", "fc1", "fc2", "fc3"), layers, strict=True):
        layer.load_state_dict({k.split(".")[1]: v for k, v in weights.items() if k.startswith(name)})
    seen = torch.randn(50, 1, 14, generator=torch.Generator().manual_seed(0))
    prey = load(path, 14, CPU, torch.float32)
    with torch.no_grad():
        assert torch.allclose(prey(seen)[:, 0], network(seen[:, 0]), atol=1e-5)
    assert prey(seen).std() > 0.1


def test_the_older_file_format_is_read_too(tmp_path):
    content = {"agent_params": [{"policy": prey_files.policy(14)}]}
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert load(tmp_path / "old.pt", 14, CPU, torch.float32).weights["fc1.weight"].shape == (64, 14)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (self.mark, "w")


def test_code_in_a_file_is_not_run(tmp_path):
    mark = tmp_path / "was-run"
    torch.save({"agent_params": [Trap(str(mark))]}, tmp_path / "new.pt")
    with open(tmp_path / "bare.pt", "wb") as file:
        pickle.dump(Trap(str(mark)), file, protocol=2)
    for name in ("new.pt", "bare.pt"):
        with pytest.raises(UserError, match="no file of tensors alone"):
            Particle(1, scenario="tag", prey=str(tmp_path / name))
    assert not mark.exists()


def spoilt(change):
    weights = prey_files.policy(14)
    change(weights)
    return {"agent_params": [{"policy": weights}]}


def poison(name, value):
    def change(weights):
        weights[name] = weights[name].clone()
        weights[name].view(-1)[0] = value

    return change


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ([1, 2], "holds no agent_params"),
        ({"agent_params": []}, "holds no agent_params"),
        ({"agent_params": [{"critic": {}}]}, "holds no agent_params"),
        ({"agent_params": [{"policy": [1]}]}, "holds no agent_params"),
        (spoilt(lambda w: w.pop("fc2.bias")), "fc2.bias is missing"),
        (spoilt(lambda w: w.update({"fc1.bias": 3})), "fc1.bias is missing"),
        (spoilt(lambda w: w.update({"fc3.weight": torch.zeros(3, 64)})), r"fc3.weight is shape \(3, 64\)"),
        ({"agent_params": [{"policy": prey_files.policy(22)}]}, r"shape \(22,\); allowed: shape \(14,\)"),
        (spoilt(poison("fc1.weight", float("nan"))), "fc1.weight holds impossible numbers"),
        (spoilt(poison("in_fn.running_var", -1.0)), "in_fn.running_var holds impossible numbers"),
    ],
)
def test_files_that_hold_no_such_prey_are_refused(content, line, tmp_path):
    path = tmp_path / "prey.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=line) as caught:
        Particle(1, scenario="tag", prey=str(path))
    assert caught.value.where == "prey" and "\n" not in str(caught.value)


def test_what_is_no_readable_file_is_refused(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    cut = tmp_path / "cut.pt"
    whole = prey_files.saved(tmp_path / "whole.pt", 14)
    cut.write_bytes(open(whole, "rb").read()[:2000])
    for name, line in (
        ("missing.pt", "cannot be read"),
        ("", "cannot be read"),
        ("text.pt", "no file of tensors"),
        ("empty.pt", "no file of tensors"),
        ("cut.pt", "no file of tensors"),
    ):
        with pytest.raises(UserError, match=line):
            load(tmp_path / name, 14, CPU, torch.float32)
