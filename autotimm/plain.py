"""Arguments as plain Python values, so that a checkpoint that holds them can be read again.

Users compute settings: ``num_classes=labels.max() + 1`` is a NumPy integer, which no safe reader of
checkpoints accepts. Constructors therefore take their arguments through :func:`plain_arguments` and
those of settings' dataclasses through :func:`plain_settings`: both turn NumPy scalars, tensors,
paths and members of enumerations into plain values, and refuse by name what has another type than
the annotation says.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from autotimm.structures import InputError

_Init = TypeVar("_Init", bound=Callable[..., None])
_Class = TypeVar("_Class")

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    dict: "a dict",
    NoneType: "none",
}


class WrongTypeError(InputError):
    """An argument has another type than its annotation says."""


def plain(value: Any) -> Any:
    """A value with everything in it that stands for a plain value replaced by that.

    NumPy scalars and arrays and tensors become numbers and lists, paths text, members of an
    enumeration their values, and subclasses of Python's types the types themselves. Other objects
    stay as they are.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):  # also np.float64
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return list(map(plain, value)) if isinstance(value, list) else tuple(map(plain, value))
    if not isinstance(value, type) and callable(getattr(value, "tolist", None)):
        listed = value.tolist()
        # NumPy's long doubles have no Python type and return themselves.
        return plain(listed) if type(listed) is not kind else _as_float(value)
    return value


def plain_arguments(init: _Init) -> _Init:
    """Decorate a constructor so that it gets plain values, of the types of its annotations.

    Arguments that it passes on as ``**kwargs`` are checked with the annotations of the classes that
    it inherits from.

    Raises:
        WrongTypeError: from the constructor, if an argument has another type; the message names it.
    """
    names = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        hints = _hints_of(type(self), wrapped)  # type: ignore[arg-type]
        given, named = list(map(plain, args)), {name: plain(v) for name, v in kwargs.items()}
        wrong = _wrong_type({**dict(zip(names, given, strict=False)), **named}, hints)
        try:
            init(self, *given, **named)
        except Exception as error:
            own = isinstance(error, InputError) and not isinstance(error, WrongTypeError)
            if wrong is None or own:  # the constructor's own message says more
                raise
            raise wrong from error
        if wrong is not None:
            raise wrong

    return wrapped  # type: ignore[return-value]


def plain_settings(kind: type[_Class]) -> type[_Class]:
    """As :func:`plain_arguments`, for the constructor of a dataclass; the outermost decorator."""
    kind.__init__ = plain_arguments(kind.__init__)  # type: ignore[method-assign]
    return kind


def _wrong_type(given: Mapping[str, Any], hints: Mapping[str, Any]) -> WrongTypeError | None:
    """The error for the first argument that has another type than its annotation says, if any."""
    for name, value in given.items():
        if not _fits(value, hint := hints.get(name, Any)):
            must = _in_words(hint)
            return WrongTypeError(f"{name} is {_short(value)}, but must be {must}")
    return None


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of an annotated type.

    Choices of text are left to the constructor, which lists them. A dict may stand for a dataclass.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return any(type(value) is type(one) for one in arguments)
    if origin is dict or hint is dict:
        return isinstance(value, dict) and _is_plain(value)
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        sequence = isinstance(value, list | tuple)
        inner = [one for one in arguments if one is not Ellipsis]
        return sequence and all(any(_fits(v, one) for one in inner) for v in value)
    if hint is float:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return isinstance(value, float) or (whole and abs(value) <= sys.float_info.max)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is bool:
        return isinstance(value, bool) or value in (0, 1)
    if hint in (str, Path):
        return isinstance(value, str)
    if hint in (None, NoneType):
        return value is None
    if is_dataclass(hint) and isinstance(value, dict):
        return True
    kind = origin or hint
    if kind is Any:
        return True
    return not inspect.isclass(kind) or isinstance(value, kind)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _in_words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_in_words(one) for one in arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is dict or hint is dict:
        return "a dict of plain values"
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return f"a list, each {_in_words(arguments[0])}" if arguments else "a list"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _as_float(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


@functools.cache
def _hints_of(kind: type, init: Any) -> dict[str, Any]:
    """The annotations of the constructors of a class and of its bases; ``init``'s come first."""
    above = [
        vars(one)["__init__"] for one in reversed(kind.__mro__[:-1]) if "__init__" in vars(one)
    ]
    hints: dict[str, Any] = {}
    for one in above:
        hints |= _hints(one)
    return hints | _hints(init)


@functools.cache
def _hints(of: Any) -> dict[str, Any]:
    try:
        return get_type_hints(of)
    except NameError:  # a user's class with annotations for type checkers alone
        return {}
