import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from madiff.experiment import checkpoint
from madiff.interfaces import UserError
from tests.experiment.training_job import Regression, Source

FILES = ("meta.json", "model.safetensors", "train_state.pt")


def trained(updates=3, width=32):
    learner, source = Regression(width), Source()
    for k in range(updates):
        generator = torch.Generator().manual_seed(k)
        learner.update(source.sample(generator), generator)
    return learner


@pytest.fixture
def saved(tmp_path):
    return checkpoint.save(tmp_path, 3, trained(), {"config": {"lr": 0.1}, "spec": {"agents": 3}}, {"sums": {}})


def rewritten(path, **changes):
    """Make a stranger's checkpoint: `changes` to meta.json, with every digest correct."""
    meta = {**json.loads((path / "meta.json").read_text()), **changes}
    for name in ("model.safetensors", "train_state.pt"):
        meta["sha256"][name] = checkpoint._sha((path / name).read_bytes())
    meta["sha256"]["meta.json"] = checkpoint._meta_sha(meta)
    (path / "meta.json").write_text(json.dumps(meta))


def test_a_learner_comes_back_whole_and_goes_on_identically(saved):
    original, copy = trained(), Regression()
    assert checkpoint.load(saved, copy) == {"sums": {}}
    for learner in (original, copy):
        generator = torch.Generator().manual_seed(99)
        learner.update(Source().sample(generator), generator)
    assert copy.updates == original.updates == 4
    for name, value in original.weights().items():
        assert torch.equal(value, copy.weights()[name])


def test_the_folder_holds_what_it_says(saved):
    assert saved.name == "step-000000003" and {path.name for path in saved.iterdir()} == set(FILES)
    found = checkpoint.read(saved)
    assert found.step == 3 and found.meta["config"] == {"lr": 0.1} and found.meta["spec"] == {"agents": 3}
    weights = checkpoint.load_weights(saved)
    assert all(torch.equal(value, weights[name]) for name, value in trained().weights().items())


def test_tied_and_strided_weights_are_saved_by_value(tmp_path):
    class Tied(Regression):
        def weights(self):
            base = torch.arange(12.0).reshape(3, 4)
            return {"base": base, "same": base, "transposed": base.T}

    weights = checkpoint.load_weights(checkpoint.save(tmp_path, 1, Tied(), {}))
    assert torch.equal(weights["same"], weights["base"]) and torch.equal(weights["transposed"], weights["base"].T)


def test_the_last_two_are_kept(tmp_path):
    for step in (5, 10, 1_000_000, 15):
        checkpoint.save(tmp_path, step, trained(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000015", "step-001000000"]


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_and_bit_flip_is_noticed(saved, name):
    whole = (saved / name).read_bytes()
    generator = np.random.default_rng(0)
    damages = [whole[:n] for n in (0, 1, len(whole) // 2, len(whole) - 1)]
    for position in generator.choice(len(whole), size=30, replace=False):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(generator.integers(8))
        damages.append(bytes(flipped))
    for damage in damages:
        (saved / name).write_bytes(damage)
        # White space between JSON tokens carries nothing: such a flip may pass if all that is said stays the same.
        if name == "meta.json" and damage.split() == whole.split():
            continue
        with pytest.raises(UserError) as caught:
            checkpoint.read(saved)
        assert "\n" not in str(caught.value) and str(saved) in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(UserError, match=name):
        checkpoint.read(saved)


def test_latest_passes_over_damage_and_says_so(tmp_path):
    assert checkpoint.latest(tmp_path) is None and checkpoint.latest(tmp_path / "absent") is None
    for step in (1, 2):
        checkpoint.save(tmp_path, step, trained(), {})
    (tmp_path / "step-000000002" / "meta.json").write_text("[]")
    notices = []
    assert checkpoint.latest(tmp_path, notices.append).step == 1
    assert len(notices) == 1 and "step-000000002" in notices[0] and "\n" not in notices[0]
    shutil.rmtree(tmp_path / "step-000000001")
    with pytest.raises(UserError, match="no checkpoint in .* is intact"):
        checkpoint.latest(tmp_path, notices.append)


def test_what_a_killed_write_left_is_cleaned_up(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, trained(), {})
    (tmp_path / ".step-000000003.tmp").mkdir()
    (tmp_path / ".step-000000003.tmp" / "meta.json").write_text("{")
    checkpoint.clean(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


class Payload:
    """Creates a file when unpickled by an unsafe loader."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_a_strangers_pickle_is_refused_and_not_executed(saved, tmp_path, write):
    trap = tmp_path / "executed"
    with open(saved / "train_state.pt", "wb") as file:
        write({"learner": Payload(trap), "loop": {}}, file)
    rewritten(saved)
    with pytest.raises(UserError, match="train_state.pt is not plain"):
        checkpoint.load(saved, Regression())
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"\xff" * 64, pickle.dumps([1])])
@pytest.mark.parametrize("name", ["model.safetensors", "train_state.pt"])
def test_foreign_content_with_matching_digests_is_refused(saved, name, content):
    (saved / name).write_bytes(content)
    rewritten(saved)
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        checkpoint.load(saved, Regression())


def test_other_formats_and_renamed_folders_are_refused(saved):
    rewritten(saved, schema=99)
    with pytest.raises(UserError, match="has format 99"):
        checkpoint.read(saved)
    rewritten(saved, schema=1, step=4)
    with pytest.raises(UserError, match="says step 4"):
        checkpoint.read(saved)


def test_another_networks_weights_are_refused_in_one_line(saved):
    with pytest.raises(UserError, match="does not fit this learner") as caught:
        checkpoint.load(saved, Regression(width=8))
    assert "\n" not in str(caught.value)


def test_state_that_could_not_be_resumed_is_refused_while_saving(tmp_path):
    class Careless(Regression):
        def training_state(self):
            return {"scale": [np.float64(1.0)]}

    with pytest.raises(TypeError, match=r"\['scale'\]\[0\] is a float64"):
        checkpoint.save(tmp_path, 1, Careless(), {})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_whose_tensors_lay_on_another_device_loads_on_the_cpu(saved):
    state = {"learner": {"moment": torch.ones(3)}, "loop": {}}
    torch.save(state, saved / "train_state.pt")
    # The same archive as a CUDA machine writes it: the location tag is all that differs.
    data = (saved / "train_state.pt").read_bytes()
    source, target = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for item in source.infolist():
            content = source.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in content
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            archive.writestr(item, content)
    (saved / "train_state.pt").write_bytes(target.getvalue())
    rewritten(saved)
    moment = checkpoint.read(saved).training_state()["learner"]["moment"]
    assert moment.device.type == "cpu" and torch.equal(moment, torch.ones(3))


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from madiff.experiment import checkpoint
from madiff.interfaces import UserError
from tests.experiment.training_job import Regression
directory = Path(sys.argv[1])
checkpoint.save(directory, 1, Regression(), {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    checkpoint.save(directory, 2, Regression(), {})
except UserError as error:
    print(error)
"""


def test_a_disk_that_refuses_leaves_the_last_checkpoint(tmp_path):
    # The operating system's limit on a file's size refuses the write just as a full disk does.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert output.stdout.startswith("cannot write checkpoint ") and output.stdout.count("\n") == 1, output.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert checkpoint.latest(tmp_path).step == 1
