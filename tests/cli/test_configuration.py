"""From arguments to checked dataclasses."""

import dataclasses
from pathlib import Path

import pytest

from madiff import build
from madiff.configuration import compose, flatten
from madiff.interfaces import UserError
from madiff.schema import CollectConfig, EvaluateConfig, TrainConfig, meanings, plain, structure


def trained(*arguments: str) -> TrainConfig:
    return structure(TrainConfig, compose("train", build.defaults(), arguments))


def test_values_reach_the_dataclass_with_their_types():
    config = trained("agents=3", "algo=bc", "train.steps=1e3", "algo.learning_rate=1", "data.quality=medium+poor")
    assert (config.agents, config.train.steps, config.data.quality) == (3, 1000, "medium+poor")
    assert config.algo["name"] == "bc" and isinstance(config.train.steps, int)
    _, options = build.method_config(config.algo)
    assert options.learning_rate == 1.0 and isinstance(options.learning_rate, float)


def test_a_single_baseline_a_list_and_none():
    assert trained("train.baselines=bc").train.baselines == ("bc",)
    assert trained("train.baselines=[bc,madiff-c]").train.baselines == ("bc", "madiff-c")
    assert trained("train.baselines=[]").train.baselines == ()


def test_the_last_of_two_values_counts():
    assert trained("seed=1", "seed=2").seed == 2


ODD = ["a=b", "a b", "x,y", "(z", "#hash", "it's", 'say "so"', "[1]", "{a}", "${seed}", "a\\b", "ü", "!%&~*?:;|<^`$"]


@pytest.mark.parametrize("text", ODD)
def test_paths_are_taken_as_they_are(text):
    config = trained(f"run_dir=/tmp/{text}/run", f"data.path=/tmp/{text}.h5", f"data.cache=/tmp/{text}")
    assert config.run_dir == Path(f"/tmp/{text}/run")
    assert (config.data.path, config.data.cache) == (Path(f"/tmp/{text}.h5"), Path(f"/tmp/{text}"))
    told = compose("evaluate", {}, [f"run={text}x", f"out=/{text}"])
    assert structure(EvaluateConfig, told).out == Path(f"/{text}")
    assert structure(CollectConfig, compose("collect", {}, [f"out=./{text}"])).out == Path(f"./{text}")


def test_quotes_that_hydra_would_need_are_taken_off_and_home_is_found():
    assert trained("run_dir='a,b=c'").run_dir == Path("a,b=c")
    assert trained("run_dir=~/runs/x").run_dir == Path.home() / "runs" / "x"
    assert trained("run_dir=~no-such-user/x").run_dir == Path("~no-such-user/x")
    assert trained("run_dir=null").run_dir is None


def test_the_official_model_sets_the_papers_sizes_of_madiff():
    _, options = build.method_config(trained("model=official").algo)
    assert (options.network, options.width, tuple(options.multipliers)) == ("unet", 128, (1, 4, 8))
    assert (options.diffusion_steps, options.parametrization, options.sampler_steps) == (200, "epsilon", 15)
    assert trained("model=official", "algo.width=16").algo["width"] == 16


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["algo.hrizon=8"], ["algo.hrizon", "did you mean algo.horizon?"]),
        (["agent=3"], ["'agent'", "did you mean agents?", "scenario"]),
        (["steps=5"], ["did you mean train.steps or algo.steps?"]),
        (["train=5"], ["unknown option 'train'", "train.steps"]),
        (["train.foo.bar=5"], ["train.foo.bar"]),
        (["env=smac-lik"], ["smac-lik", "did you mean smac-like?"]),
        (["algo=bd"], ["unknown algo 'bd'", "bc, madiff-c, madiff-d"]),
        (["model=offical"], ["did you mean official?"]),
        (["algo=bc", "model=official"], ["model", "'official' sets", "bc does not have", "default"]),
        (["algo.name=bc"], ["algo.name"]),
        (["env.foo=1"], ["env.foo", "env.strict"]),
        (["env.strict=5"], ["env.strict", "true or false"]),
        (["+seed=3"], ["+seed"]),
        (["~seed"], ["~seed", "key=value"]),
        (["seed@x=3"], ["seed@x"]),
        (["hydra.run.dir=x"], ["hydra.run.dir"]),
        (["seed=1,2"], ["seed", "several runs", "[1,2]"]),
        (["seed=[1"], ["seed", "cannot be read"]),
        (["seed=1\n2"], ["seed"]),
        (["--seed", "3"], ["--seed", "key=value"]),
        (["-m", "seed=3"], ["-m"]),
        (["smac-like"], ["smac-like", "key=value"]),
        (["=3"], ["key=value"]),
        (["agents=0"], ["agents", "0", "from 1"]),
        (["agents=-3"], ["agents", "-3", "from 1"]),
        (["agents=2.5"], ["agents", "2.5", "whole number"]),
        (["agents=three"], ["agents", "three", "whole number"]),
        (["agents=true"], ["agents", "true", "whole number"]),
        (["agents="], ["agents", "whole number"]),
        (["seed=-1"], ["seed", "from 0"]),
        (["seed=nan"], ["seed", "nan"]),
        (["seed=null"], ["seed", "null"]),
        (["seed=inf"], ["seed", "inf"]),
        (["seed=1e300"], ["seed", "too large", "9.22337e+18"]),
        (["seed=" + "9" * 5000], ["seed", "cannot be read"]),
        (["seed=" + "[" * 3000], ["seed", "cannot be read"]),
        (["ü=3"], ["unknown option 'ü'"]),
        (["algo=[bc]"], ["unknown algo '[bc]'", "bc, madiff-c, madiff-d"]),
        (["train.steps=0"], ["train.steps", "from 1"]),
        (["train.evaluate_episodes=0"], ["train.evaluate_episodes", "from 1"]),
        (["evaluation.episodes=-1"], ["evaluation.episodes", "from 1"]),
        (["data.episodes=0"], ["data.episodes", "from 1"]),
        (["hardware.threads=0"], ["hardware.threads", "from 1"]),
        (["hardware.device=tpu"], ["hardware.device", "tpu", "auto, cpu, cuda"]),
        (["tracking=wandbb"], ["tracking", "none, wandb-offline, wandb"]),
        (["resume=yes"], ["resume", "no, auto"]),
        (["data.quality=[good]"], ["data.quality"]),
    ],
)
def test_bad_arguments_are_named_with_what_is_allowed(arguments, parts):
    with pytest.raises(UserError) as caught:
        trained(*arguments)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["algo.learning_rate=nan"], ["algo.learning_rate", "nan", "finite"]),
        (["algo.learning_rate=inf"], ["algo.learning_rate", "inf"]),
        (["algo.learning_rate=fast"], ["algo.learning_rate", "fast"]),
        (["algo.batch_size=0"], ["algo.batch_size", "from 1"]),
        (["algo.width=-4"], ["algo.width", "from 1"]),
        (["algo.horizon=2.5"], ["algo.horizon", "whole number"]),
        (["algo.common_noise=1"], ["algo.common_noise", "true or false"]),
        (["algo.multipliers=[1,0]"], ["algo.multipliers", "from 1"]),
        (["algo.multipliers=[1,a]"], ["algo.multipliers", "'a'"]),
    ],
)
def test_bad_options_of_a_method_are_named_with_what_is_allowed(arguments, parts):
    with pytest.raises(UserError) as caught:
        build.method_config(trained(*arguments).algo)
    for part in parts:
        assert part in str(caught.value)


def test_a_configuration_survives_being_written_and_read():
    config = trained("agents=3", "run_dir=/tmp/a=b", "train.baselines=[]")
    assert structure(TrainConfig, plain(config)) == config


@pytest.mark.parametrize(("verb", "schema"), [("train", TrainConfig), ("collect", CollectConfig),
                                             ("evaluate", EvaluateConfig)])  # fmt: skip
def test_yaml_and_schema_list_the_same_options(verb, schema):
    told = {key for key, meaning in meanings(schema).items() if meaning}
    written = set(flatten(compose(verb, build.defaults(), [])))
    written = {key for key in written if not key.startswith(("algo", "env", "safe"))}
    assert told == written


def test_a_range_has_two_ends():
    @dataclasses.dataclass
    class Share:
        value: float = dataclasses.field(metadata={"minimum": 0, "maximum": 1})

    assert [structure(Share, {"value": end}).value for end in (0, 1)] == [0.0, 1.0]
    for value, part in ((1.5, "too large"), (-0.5, "too small")):
        with pytest.raises(UserError, match=f"value: {value} is {part}"):
            structure(Share, {"value": value})


def test_structure_says_which_option_is_missing():
    @dataclasses.dataclass
    class Small:
        size: int

    with pytest.raises(UserError, match="size: not given"):
        structure(Small, {})
