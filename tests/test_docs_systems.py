"""The map of the survey's systems: every file and every method it names is there."""

import re
from pathlib import Path

from madiff import build, safeguard_options

ROOT = Path(__file__).resolve().parents[1]
ROWS = [line for line in (ROOT / "docs" / "systems.md").read_text().splitlines() if re.match(r"\| [A-Z]", line)]


def test_the_map_has_all_systems_and_names_only_what_is_there():
    assert len(ROWS) == 64
    for row in ROWS:
        here = row.strip("|").split("|")[-1].strip()
        files, names = re.findall(r"`([\w/]+\.py)`", here), re.findall(r"`([\w=-]+)`", here.partition("(")[2])
        assert bool(files) != here.startswith(("later", "needs")), row
        assert all((ROOT / file).exists() for file in files), row
        safe = [name.removeprefix("safe=") for name in names if files[0].startswith("safe/")]
        assert set(safe) <= set(safeguard_options.OPTIONS), row
        assert safe or set(names) <= set(build.registry()), row


def test_every_method_has_a_learning_test():
    """By its name, or by that of its module."""
    told = "\n".join(path.read_text() for path in (ROOT / "tests" / "learn").glob("test_*.py"))
    words = set(re.findall(r"[\w-]+", told))
    assert [name for name in build.registry() if not {name, name.replace("-", "_")} & words] == []
