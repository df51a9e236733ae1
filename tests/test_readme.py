"""The README's commands are accepted and its Python runs, on a tiny run in place of the big one."""

import re
import shlex
from pathlib import Path

import pytest

from madiff import build, configuration, train

README = (Path(__file__).parent.parent / "README.md").read_text()
RUN = "runs/smac-like-3m-madiff-d-good-seed0"
SMALL = [
    "train.steps=2", "train.evaluate_episodes=2", "evaluation.episodes=2", "data.episodes=8", "train.baselines=[]",
    "algo.width=16", "algo.layers=1", "algo.batch_size=4", "hardware.threads=1",
]  # fmt: skip


def commands():
    """Every `python -m madiff.VERB ...` of the code blocks, options in brackets taken as given."""
    for verb, rest in re.findall(r"^python -m madiff\.(\w+) (.*)$", README, re.MULTILINE):
        if verb == "report":  # takes folders, not key=value
            continue
        plain = re.sub(r"[\[\]]|\|[^ \]]*", "", rest).replace("agents=N", "agents=3").replace("seed=N", "seed=1")
        yield verb, shlex.split(plain, comments=True)


@pytest.mark.parametrize(("verb", "arguments"), list(commands()))
def test_commands_compose(verb, arguments):
    tree = configuration.compose(verb, build.defaults(), arguments)
    for argument in arguments:
        key = argument.partition("=")[0]
        assert key in tree or key.partition(".")[0] in tree


def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MADIFF_CACHE", str(tmp_path / "cache"))
    assert train.main(["env=smac-like", "agents=3", f"run_dir={RUN}", *SMALL]) == 0
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert len(blocks) >= 2 and Path("mine.h5").exists() and namespace["picture"].ndim == 3
