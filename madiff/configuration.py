"""From the command line to plain mappings: the only file that knows Hydra.

Hydra composes the groups of `configs/` and parses `key=value`; the values are then set here, so that every mistake is
one line in our own words. Values that are paths never meet Hydra's grammar: any character may stand in them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from madiff.interfaces import UserError
from madiff.schema import meanings, shown, structure

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
INDENT = {"initial_indent": "  ", "subsequent_indent": "  "}
PATHS = ("data.path", "data.cache", "run_dir", "out", "run", "suite", "safe.constraints")


@dataclass(frozen=True)
class Verb:
    """One command of the suite, run as `python -m madiff.<name>`; the first line of its help is `does`.

    schema: the dataclass of what it may be told; `configs/<name>.yaml` has the values. run: does the job.
    bare: the option that takes the arguments given without a key, all of them paths. turns: words that turn those
    behind them over to another option.
    """

    name: str
    does: str
    schema: type
    run: Callable[[Any], None]
    examples: Sequence[str]
    bare: str | None = None
    turns: Mapping[str, str] = field(default_factory=dict)


def main(verb: Verb, methods: Callable[[], Mapping[str, Mapping[str, Any]]], arguments: Sequence[str]) -> int:
    """Run a verb; returns the exit code.

    0: done. 2: the user or the system must mend something, said in one line on stderr. 130: interrupted.
    methods: gives for every algorithm the default values of its options.
    """
    flags = [a for a in arguments if a in ("-h", "--help")]
    try:
        bare, rest = _sort(verb, [a for a in arguments if a not in flags])
        tree = compose(verb.name, methods(), rest) | bare
        if flags:
            print(_help(verb, tree))
        else:
            verb.run(structure(verb.schema, tree))
    except UserError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{error.filename or 'system'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return _refuse("not enough memory for sizes as large as these; allowed: smaller networks, batches or episodes")
    except SystemExit:  # from rich, whose reader has gone
        return _refuse("the output was closed before the job was done")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _sort(verb: Verb, arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The paths given without a key, by the option that takes them, and the other arguments."""
    bare: dict[str, list[str]] = {}
    rest, target = [], verb.bare
    for argument in arguments:
        if argument in verb.turns:
            target = verb.turns[argument]
            bare.setdefault(target, [])
        elif target and _is_bare(argument):
            bare.setdefault(target, []).append(argument)
        else:
            rest.append(argument)
    return bare, rest


def _is_bare(argument: str) -> bool:
    """Whether an argument is a path and no option; a folder's name may hold an equals sign."""
    return not argument.startswith("-") and ("=" not in argument or Path(argument).exists())


def _out_of_memory(error: Exception) -> bool:
    """On a CPU torch says so in words only."""
    words = ("can't allocate memory", "not enough memory", "out of memory", "overflow")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def _refuse(reason: str) -> int:
    print("error: " + " ".join(reason.split()), file=sys.stderr)
    return 2


def compose(verb: str, methods: Mapping[str, Mapping[str, Any]], arguments: Sequence[str]) -> dict[str, Any]:
    """The verb's configuration as nested dicts: its YAML, the chosen groups, then the values given by the user."""
    return compose_given(verb, methods, _parse(arguments))


def compose_given(
    verb: str, methods: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any], where: str = "command line"
) -> dict[str, Any]:
    """The same of values by dotted key, as Python has them; where: they came from, which errors name."""
    given = dict(given)
    store = ConfigStore.instance()
    for name, defaults in methods.items():
        if f"{name}.yaml" not in store.repo.get("algo", {}):
            store.store(group="algo", name=name, node={"name": name, **defaults})
    choices = {group: shown(given.pop(group)) for group in _groups(verb) if group in given}
    tree = deepcopy(_composed(verb, tuple(methods), tuple(choices.items())))
    if "model" in choices:
        _check_model(choices["model"], tree["algo"], methods)
    known = options(tree, _groups(verb))
    open_sections = [key for key, value in known.items() if value == {}]
    for key, value in given.items():
        if key not in known and key.rpartition(".")[0] not in open_sections:
            raise _unknown_option(key, [*_groups(verb), *known], where)
        _set(tree, key, value)
    return tree


@cache
def _composed(verb: str, methods: tuple[str, ...], choices: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The verb's YAML with the groups chosen; Hydra takes a tenth of a second, and a benchmark asks for every cell."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3", job_name=verb):
        for group, name in choices:
            _check(name, _choices(group), group)
        composed = hydra_compose(verb, overrides=[f"{group}={name}" for group, name in choices])
    return OmegaConf.to_container(composed, resolve=True)


def options(tree: Mapping[str, Any], groups: Iterable[str]) -> dict[str, Any]:
    """What may be set: dotted keys with their values; the name of an environment or method is chosen by its group."""
    names = [f"{group}.name" for group in groups]
    return {key: value for key, value in flatten(tree).items() if key not in names}


def _groups(verb: str) -> dict[str, str]:
    """The groups a verb chooses from, with its default choices: the defaults list of its YAML."""
    entries = yaml.safe_load((CONFIGS / f"{verb}.yaml").read_text())["defaults"]
    return {group: name for entry in entries if isinstance(entry, dict) for group, name in entry.items()}


def _choices(group: str) -> list[str]:
    return sorted(GlobalHydra.instance().config_loader().get_group_options(group))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys; an empty section stays, as the place of keys that are not fixed."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    """`key=value` arguments as a dict of Python values; the last of several for one key counts."""
    given: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not (key and equals) or argument.startswith("-"):
            raise UserError(f"'{argument}' is not an option", "command line", "key=value, --help")
        given[key] = _path(key, text) if key in PATHS else _value(key, text)
    return given


def _path(key: str, text: str) -> str | None:
    """A path as typed; quotes around the whole of it, which Hydra would need, are taken off."""
    if not text:  # an unset shell variable must not quietly become another job
        raise UserError("is empty", key, "a path, or null for none")
    if text == "null":
        return None
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text


def _value(key: str, text: str) -> Any:
    """`text` as Hydra reads a value; the key is ours to judge, prefixes and packages are unknown options."""
    try:
        override: Override = OverridesParser.create().parse_override(f"key={text}")
        sweep = override.is_sweep_override()
        value = None if sweep else override.value()
    except (HydraException, ValueError, RecursionError) as error:
        raise UserError(
            f"'{_short(text)}' cannot be read", key, "a number, a word, true, false, null or [a, b]"
        ) from error
    if sweep:
        raise UserError(f"'{_short(text)}' stands for several runs", key, f"one value, or a list as [{_short(text)}]")
    return value


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check(name: Any, allowed: Sequence[str], where: str) -> None:
    if name not in allowed:
        raise UserError(f"unknown {where} '{shown(name)}'{_did_you_mean(str(name), allowed)}", where, list(allowed))


def _check_model(model: str, algo: Mapping[str, Any], methods: Mapping[str, Mapping[str, Any]]) -> None:
    """A model group may only set options that the chosen method has."""
    if unknown := sorted(set(algo) - set(methods[algo["name"]]) - {"name"}):
        some = ", ".join(unknown[:3]) + (" and more" if len(unknown) > 3 else "")
        raise UserError(f"'{model}' sets {some}, which {algo['name']} does not have", "model", ["default"])


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        tree = tree[section]
    if isinstance(tree.get(name), bool) and not isinstance(value, bool):
        raise UserError(f"'{shown(value)}' is not true or false", key)
    tree[name] = value


def _unknown_option(key: str, known: Sequence[str], where: str) -> UserError:
    section, _, name = key.rpartition(".")
    inside = [k for k in known if k.startswith(f"{key}.")]
    beside = [k for k in known if section and k.startswith(f"{section}.")]
    same_name = [k for k in known if k.rpartition(".")[2] == name]
    guess = f"; did you mean {' or '.join(same_name)}?" if same_name else _did_you_mean(key, known)
    return UserError(
        f"unknown option '{key}'{guess}", where, inside or beside or [k for k in known if "." not in k]
    )


def _did_you_mean(name: str, allowed: Sequence[str]) -> str:
    close = get_close_matches(name, allowed, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _help(verb: Verb, tree: Mapping[str, Any]) -> str:
    """One screen: every option with its default and meaning; those of the environment and the method by name only."""
    groups, told = _groups(verb.name), meanings(verb.schema)
    with initialize_config_dir(str(CONFIGS), version_base="1.3", job_name=verb.name):
        choices = {group: _choices(group) for group in groups}
    lines = [(f"{g}={groups[g]}", f"one of: {', '.join(c)}") for g, c in choices.items() if c != ["default"]]
    flat = options(tree, groups)
    lines += [(f"{key}.*" if value == {} else f"{key}={shown(value)}", told[key])
              for key, value in flat.items() if told.get(key)]  # fmt: skip
    others = " ".join(f"{key}={shown(value)}" for key, value in flat.items() if key not in told and value != {})
    return "\n".join([
        f"python -m madiff.{verb.name}: {verb.does}", "", "Examples:", *(f"  {line}" for line in verb.examples),
        "", "Options, with their defaults:",
        *(fill(f"  {option:<34}{meaning}", 118, subsequent_indent=36 * " ") for option, meaning in lines),
        *(["", "Options of this environment and method:", fill(others, 118, **INDENT)] if others else []),
    ])  # fmt: skip
