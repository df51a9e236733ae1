"""The command lines of benchmark and report: help, and one list of options in YAML and schema."""

import pytest

from madiff import benchmark, build, report
from madiff.configuration import compose, flatten
from madiff.schema import BenchmarkConfig, ReportConfig, meanings

VERBS = {"benchmark": (benchmark, BenchmarkConfig), "report": (report, ReportConfig)}


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_one_screen_with_examples_defaults_and_meanings(verb, capsys):
    assert VERBS[verb][0].main(["--help"]) == 0
    told = capsys.readouterr().out
    assert len(told.splitlines()) < 40 and max(map(len, told.splitlines())) <= 120
    assert told.count(f"python -m madiff.{verb} ") == {"benchmark": 2, "report": 3}[verb]
    parts = {"benchmark": ["suite=coordination", "minutes=null", "train.*", "local | submitit"],
             "report": ["out=null", "compare=null", "--compare A B"]}[verb]  # fmt: skip
    assert all(part in told for part in parts)


@pytest.mark.parametrize("verb", VERBS)
def test_yaml_and_schema_list_the_same_options(verb):
    told = {key for key, meaning in meanings(VERBS[verb][1]).items() if meaning}
    assert told == set(flatten(compose(verb, build.defaults(), [])))
