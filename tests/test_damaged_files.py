"""Everything that is read, damaged in every way of one table: sound data or one line that names the file, no more."""

import io
import os
import pickle
import re
import shutil
import signal
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from envs.particle import prey
from madiff.benchmarking import suite
from madiff.data import EpisodeStore, writers
from madiff.experiment import checkpoint, run_directory
from madiff.experiment.run_directory import RunDirectory
from madiff.interfaces import UserError
from safe import constraints
from tests.data import test_d4rl, test_dsrl, test_minari, test_native, test_omar, test_vault
from tests.envs.prey_files import saved as write_prey
from tests.experiment.test_checkpoint import FILES, rewritten
from tests.experiment.training_job import Regression

REPEATS = 6  # of each random damage
CONFIG, IDENTITY = {"algo": "bc", "train": {"steps": 3, "betas": [0.9, 0.999]}}, {"algo": "bc", "env": "toy"}
SETS = {"sets": [
    {"type": "ellipse", "outside": True, "dimensions": ["x", "y"], "center": [0, 0.5], "radii": [1, 2]},
    {"type": "box", "dimensions": ["x"], "low": [-1], "high": [None]},
]}  # fmt: skip


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@dataclass(frozen=True)
class Subject:
    """make: writes something sound into a folder and returns what is opened; load: opens it and checks what came.

    seal: makes the digests of something damaged right again, as a stranger would have them. named: whether complaints
    name the file, rather than the key within it.
    """

    make: Callable[[Path], Path]
    load: Callable[[Path], Any]
    seal: Callable[[Path], None] = lambda path: None
    named: bool = True


def data(format: str, make: Callable[[Path], Any]) -> Subject:
    """A data set in `format`, opened by name and by sight."""

    def load(path: Path) -> None:
        for asked in ("auto", format):
            try:
                store = EpisodeStore.open(path, asked)
            except UserError:
                if asked == format:
                    raise
            else:
                check_store(store)

    return Subject(make, load)


def check_store(store: EpisodeStore) -> None:
    """Shapes that agree and numbers that are numbers, said again in other words than the store's own checks."""
    steps, episodes = int(store.lengths.sum()), len(store.lengths)
    assert episodes >= 1 and bool((store.lengths >= 1).all()) and type(store.action_size) is int
    for name, values in store.tensors.items():
        rows = {"lengths": episodes, "terminated": episodes, "truncated": episodes}.get(name, steps)
        assert len(values) == rows + episodes * (name in ("observations", "available_actions", "state")), name
        assert bool(torch.isfinite(values.double()).all()), name
    assert bool((store.actions.double().abs() <= max(store.action_size, 1.001)).all())


def team(folder: Path) -> Path:
    test_native.make().save(folder / "team.h5")
    return folder / "team.h5"


def single(folder: Path) -> Path:
    writers.write(test_minari.make(discrete=True), folder / "walk", "minari")
    return folder / "walk"


def hopper(folder: Path) -> Path:
    test_d4rl.write(folder / test_d4rl.NAME, [6, 4], terminated=[1])
    return folder / test_d4rl.NAME


def circle(folder: Path) -> Path:
    test_dsrl.write(folder / test_dsrl.FIXTURE.name, [6, 4], terminated=[1])
    return folder / test_dsrl.FIXTURE.name


def write_checkpoint(folder: Path) -> Path:
    sums = {"sums": {"loss": torch.ones((), dtype=torch.float64)}, "counts": {"loss": 2}}
    return checkpoint.save(folder, 3, Regression(width=2), {"config": CONFIG, "spec": {"agents": 3}}, sums)


def load_checkpoint(path: Path) -> None:
    learner = Regression(width=2)
    assert isinstance(checkpoint.load(path, learner), dict) and type(checkpoint.read(path).step) is int
    assert not any(bool(value.isnan().any()) for value in learner.weights().values())


def seal_checkpoint(path: Path) -> None:
    if all((path / name).is_file() for name in FILES):
        with suppress(ValueError, LookupError, TypeError, RecursionError):  # where meta.json cannot hold digests
            rewritten(path)


def write_run(folder: Path) -> Path:
    with RunDirectory.open(folder / "run", CONFIG, IDENTITY) as run:
        for step in (1, 2, 3):
            run.metrics.append(step, {"loss": 1 / step})
        run.write_json("summary.json", {"steps": 3, "return_mean": 1.5})
    return folder / "run"


def load_run(path: Path) -> None:
    config, identity = run_directory.read(path)
    assert isinstance(config, dict) and isinstance(identity, dict)
    repr(config)  # as messages and tables have it
    with RunDirectory.open(path, CONFIG, identity) as run:
        summary = run.summary()
        assert summary is None or isinstance(summary["steps"], int)
        assert run.metrics.rewind(2) <= 2
        run.metrics.append(4, {"loss": 0.0})
    assert all(isinstance(record["step"], int) for record in run_directory.read_records(path / "metrics.jsonl"))


def write_constraints(folder: Path) -> Path:
    (folder / "walls.yaml").write_text(yaml.safe_dump(SETS))
    return folder / "walls.yaml"


def load_constraints(path: Path) -> None:
    for found in constraints.load(path, ["x", "y"]):
        assert not bool(found.b(torch.zeros(1, 2)).isnan().any())


def write_suite(folder: Path) -> Path:
    return Path(shutil.copy(suite.SUITES / "smoke.yaml", folder / "mine.yaml"))


def write_chased(folder: Path) -> Path:
    return Path(write_prey(folder / "prey.pt", 14))


def load_chased(path: Path) -> None:
    prey.load(path, 14, torch.device("cpu"), torch.float32)


SUBJECTS = {
    "native": data("native", team),
    "minari": data("minari", single),
    "d4rl": data("d4rl", hopper),
    "dsrl": data("dsrl", circle),
    "omar": data("omar", lambda folder: test_omar.write(folder / "seed_0_data", 2, [25, 5])),
    "vault": data("vault", lambda folder: Path(shutil.copytree(test_vault.FIXTURE, folder / "3m.vlt"))),
    "checkpoint": Subject(write_checkpoint, load_checkpoint),
    "sealed checkpoint": Subject(write_checkpoint, load_checkpoint, seal_checkpoint),
    "run directory": Subject(write_run, load_run),
    "constraints": Subject(write_constraints, load_constraints),
    "suite": Subject(write_suite, lambda path: suite.load(str(path)), named=False),
    "prey": Subject(write_chased, load_chased),
}


def piece(content: bytes, rng: np.random.Generator) -> slice:
    """Up to a quarter of a file, anywhere in it."""
    start, length = rng.integers(len(content) + 1), rng.integers(1, len(content) // 4 + 2)
    return slice(int(start), int(start + length))


def flipped(content: bytes, rng: np.random.Generator, count: int) -> bytes:
    changed = bytearray(content)
    for place in rng.integers(len(content), size=count) if content else ():
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def overwritten(content: bytes, where: slice, value: bytes) -> bytes:
    """The piece filled with copies of `value`."""
    length = len(content[where])
    return content[: where.start] + (value * length)[:length] + content[where.start + length :]


def claimed(content: bytes, rng: np.random.Generator) -> bytes:
    """A number of eight bytes made huge, wherever one may stand."""
    value = int(rng.choice([2**31 - 1, 2**40, 2**62, 2**63 - 1])).to_bytes(8, "little")
    start = int(rng.integers(max(len(content) // 4, 1))) * 4
    return content[:start] + value + content[start + 8 :]


def told(content: bytes, rng: np.random.Generator) -> bytes:
    """A number in words made another: huge, negative, broken, infinite, or no number."""
    found = list(re.finditer(rb"\d+", content))
    if not found:
        return b"1"
    one = found[rng.integers(len(found))]
    other = rng.choice([b"1" + b"0" * 18, b"9" * 400, b"-1", b"0.5", b"1e999", b"[]", b"true", b"NaN", b"null"])
    return content[: one.start()] + bytes(other) + content[one.end() :]


def exchanged(content: bytes, rng: np.random.Generator) -> bytes:
    cuts = sorted(int(place) for place in rng.integers(len(content) + 1, size=3))
    return content[: cuts[0]] + content[cuts[1] : cuts[2]] + content[cuts[0] : cuts[1]] + content[cuts[2] :]


DAMAGES: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "cut short": lambda content, rng: content[: rng.integers(max(len(content), 1))],
    "a bit flipped": lambda content, rng: flipped(content, rng, 1),
    "bits flipped": lambda content, rng: flipped(content, rng, 16),
    "a piece of zeros": lambda content, rng: overwritten(content, piece(content, rng), b"\0"),
    "a piece of ones": lambda content, rng: overwritten(content, piece(content, rng), b"\xff"),
    "a piece of noise": lambda content, rng: overwritten(content, piece(content, rng), rng.bytes(1 + len(content))),
    "a huge length": claimed,
    "a number told otherwise": told,
    "a piece left out": lambda content, rng: content[: (cut := piece(content, rng)).start] + content[cut.stop :],
    "a piece twice": lambda content, rng: content[: (cut := piece(content, rng)).stop] + content[cut.start :],
    "pieces exchanged": exchanged,
    "noise after the end": lambda content, rng: content + rng.bytes(100),
}
"""Each at random places."""


def archive(trap: Path) -> bytes:
    """A zip whose members would lie elsewhere if somebody unpacked it, one of them a pickle."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as opened:
        for name in ("../../sprung", str(trap), "archive/data.pkl", "data/0"):
            opened.writestr(name, pickle.dumps(Trap(trap)))
    return made.getvalue()


def written(write: Callable[[Any, Any], None], value: Any) -> bytes:
    target = io.BytesIO()
    write(value, target)
    return target.getvalue()


def replacements(trap: Path) -> dict[str, bytes]:
    """What may lie in a file's place."""
    laughs = b"a0: &a0 [x]\n" + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9))
                                         for i in range(1, 12))  # fmt: skip
    return {
        "nothing": b"",
        "zeros": b"\0" * 4096,
        "a pickle": pickle.dumps(Trap(trap)),
        "an old pickle": pickle.dumps(Trap(trap), protocol=0),
        "objects of torch": written(torch.save, {"learner": Trap(trap), "loop": {}, "agent_params": [Trap(trap)]}),
        "objects of numpy": written(lambda value, file: np.save(file, value), np.array([Trap(trap)], dtype=object)),
        "an npz of objects": written(lambda value, file: np.savez(file, a=value), np.array([Trap(trap)], dtype=object)),
        "an archive of traps": archive(trap),
        "YAML that makes objects": b"!!python/object/apply:os.mkdir ['%s']" % str(trap).encode(),
        "aliases of aliases": laughs,
        "a value within itself": b"a: &a [*a]\nsets: *a\n",
        "odd values of YAML": b"a: !!int ''\nb: !!timestamp x\n",
        "no end of brackets": b"[" * 5000,
        "no end of mappings": b'{"step":' * 5000,
        "a list": b"[]",
        "a mapping": b"{}",
        "words": '{"schema": Infinity, "step": 1e999, "sha256": [["meta.json", "é"]]}'.encode("utf-16"),
        "infinite": b'{"schema": Infinity, "step": 1e999, "sha256": []}',
    }


def outside(path: Path) -> Path:
    """Where nothing is, and nothing may come to be."""
    return next(parent for parent in path.parents if parent.name == "case").parent / "outside"


PLACES: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: None,
    "a directory": lambda path: path.mkdir(),
    "a link to nowhere": lambda path: path.symlink_to(outside(path)),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a pipe": os.mkfifo,
    "a link to what never ends": lambda path: path.symlink_to("/dev/zero"),
}
"""What may stand where a file was."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Whoever waits for a pipe is woken, and nobody waits for the disk."""

    def woken(*_):
        raise AssertionError("waited for ever")

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    before = signal.signal(signal.SIGALRM, woken)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Arena:
    """A sound subject that is put back after every case, beside a trap that must not spring."""

    def __init__(self, subject: Subject, root: Path) -> None:
        self.subject, self.trap = subject, root / "sprung"
        (root / "sound").mkdir()
        (root / "deep" / "case").mkdir(parents=True)
        self.root, self.sound = root, subject.make(root / "sound")
        whole = self.sound.is_dir()
        self.files = sorted(p.relative_to(self.sound) for p in self.sound.rglob("*") if p.is_file()) if whole else [""]
        self.refused = 0
        subject.load(self.fresh())

    def fresh(self) -> Path:
        """A copy to be spoilt."""
        place = self.root / "deep" / "case"
        shutil.rmtree(place)
        place.mkdir()
        shutil.copytree(self.sound.parent, place, dirs_exist_ok=True)
        return place / self.sound.name

    def content(self, file: Any) -> bytes:
        return (self.sound / file if file else self.sound).read_bytes()

    def case(self, label: str, file: Any, spoil: Callable[[Path], None]) -> None:
        """Spoil one file of a copy and load that."""
        path = self.fresh()
        spoil(path / file if file else path)
        self.subject.seal(path)
        try:
            self.subject.load(path)
        except UserError as error:
            self.refused += 1
            assert "\n" not in str(error), label
            assert not self.subject.named or str(path) in str(error), (label, str(error))
        except Exception as error:
            raise AssertionError(f"{label} of {file or path.name}") from error
        assert sorted(os.listdir(self.root)) == ["deep", "sound"], label
        assert os.listdir(self.root / "deep") == ["case"], label


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SUBJECTS)
def test_random_damage_is_harmless_or_refused_in_one_line(name, tmp_path):
    arena, rng = Arena(SUBJECTS[name], tmp_path), np.random.default_rng(0)
    for label, damage in DAMAGES.items():
        for _ in range(REPEATS):
            file = arena.files[rng.integers(len(arena.files))]
            spoilt = damage(arena.content(file), rng)
            arena.case(label, file, lambda path, spoilt=spoilt: path.write_bytes(spoilt))
    assert arena.refused > len(DAMAGES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SUBJECTS)
def test_something_else_in_a_files_place_is_refused_in_one_line_and_never_executed(name, tmp_path):
    arena = Arena(SUBJECTS[name], tmp_path)
    files = arena.files if len(arena.files) <= 6 else arena.files[1::8]
    for file in files:
        for label, content in replacements(arena.trap).items():
            arena.case(label, file, lambda path, content=content: path.write_bytes(content))
        for label, put in PLACES.items():
            arena.case(label, file, lambda path, put=put: (path.unlink(), put(path)))
    assert arena.refused > len(PLACES) * len(files) / 2
