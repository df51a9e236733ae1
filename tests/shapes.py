"""Holds calls to the shapes that functions declare: a type checker for jaxtyping's import hook, used in tests alone.

    pytest -p tests.shapes --jaxtyping-packages=safe,madiff.data,madiff.diffusion,tests.shapes.checked tests/safe

Hints that speak of no shape are left to pyright. Names of axes hold for one call: its arguments, its result, and the
fields of the tuples and dataclasses among them.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from jaxtyping import AbstractArray
from torch import Tensor

PLAIN = {NoneType: NoneType, Tensor: Tensor, bool: bool, int: int, float: (int, float)}
NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with a TypeError where an argument or the result does not fit a hint that speaks of shapes."""
    signature = inspect.signature(function)
    hints = {n: h for n, h in get_type_hints(function, include_extras=True).items() if speaks_of_shapes(h)}
    result = hints.pop("return", None)
    named = [name for name in hints if signature.parameters[name].kind in NAMED]
    if not named and result is None:
        return function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for name in named:
            if name in given and not fits(given[name], hints[name]):
                raise TypeError(f"{name} is not {hints[name]}")
        found = function(*args, **kwargs)
        if result is not None and not fits(found, result):
            raise TypeError(f"the result is not {result}")
        return found

    return call


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the shape its hint asks for, given those that fitted before it in the same call."""
    if is_shape(hint):
        return isinstance(value, hint)
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return all(fits_entries(value, note) for note in inner[1:] if is_typeddict(note))
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is tuple and Ellipsis not in inner:
        return len(value) == len(inner) and all(map(fits, value, inner))
    if isinstance(hint, type) and (fields := shaped_fields(hint)):
        return isinstance(value, hint) and all(fits(getattr(value, name), one) for name, one in fields.items())
    return isinstance(value, PLAIN[hint]) if isinstance(hint, type) and hint in PLAIN else True


def fits_entries(value: Mapping[str, Any], entries: type) -> bool:
    """Whether a mapping holds only entries that are declared, each of its shape."""
    declared = get_type_hints(entries, include_extras=True)
    return set(value) <= set(declared) and all(fits(value[name], declared[name]) for name in declared if name in value)


def speaks_of_shapes(hint: Any) -> bool:
    if isinstance(hint, type):
        return is_shape(hint) or bool(shaped_fields(hint))
    return any(is_typeddict(one) or speaks_of_shapes(one) for one in get_args(hint))


def is_shape(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


@functools.cache
def shaped_fields(hint: type) -> dict[str, Any]:
    """The fields of a named tuple or a dataclass that have shapes."""
    if not (dataclasses.is_dataclass(hint) or hasattr(hint, "_fields")):
        return {}
    try:
        fields = get_type_hints(hint, include_extras=True)
    except NameError:  # of names that are imported for the type checker alone
        return {}
    return {name: one for name, one in fields.items() if name != "return" and is_one_shape(one)}


def is_one_shape(hint: Any) -> bool:
    """A shape, or one of several."""
    return is_shape(hint) or any(map(is_shape, get_args(hint)))
