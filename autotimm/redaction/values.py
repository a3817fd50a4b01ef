"""Texts, and values that hold texts, without secrets."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, TypeVar

from autotimm.redaction.secrets import patterns
from autotimm.redaction.urls import with_bare_urls

_T = TypeVar("_T")

MASK = "***"


def redacted(value: _T) -> _T:
    """A copy of a value in which no string holds a secret.

    Args:
        value: a string, a path, or a mapping, namespace, list or tuple of values; others stay as
            they are.
    """
    return _redacted(value)


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        content = {_redacted(key): _redacted(one) for key, one in value.items()}
        return content if type(value) is dict else _like(value, content)
    if isinstance(value, argparse.Namespace):
        return type(value)(**{key: _redacted(one) for key, one in vars(value).items()})
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(map(_redacted, value))
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(_redacted, value))
    if isinstance(value, PurePath) and (text := _text(str(value))) != str(value):
        return type(value)(text)
    return value


def _like(value: Mapping[Any, Any], content: dict[Any, Any]) -> Any:
    try:
        return type(value)(content)  # type: ignore[call-arg]
    except TypeError:
        return content


def _text(text: str) -> str:
    for pattern, mark in zip(patterns(), ("", MASK), strict=True):
        if pattern is not None:
            text = pattern.sub(mark, text)
    return with_bare_urls(text) if "://" in text else text
