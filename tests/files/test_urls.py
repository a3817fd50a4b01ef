"""URLs: schemes, local paths, and hidden secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotimm.files import urls
from autotimm.structures import InputError


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("s3://bucket/x", "s3"),
        ("HTTPS://host/x", "https"),
        ("file:///a", "file"),
        ("FILE:/a", "file"),
        ("simplecache::https://host/x", "chained"),
        ("zip://*.tar::s3://bucket/x", "chained"),
        ("a folder", ""),
        ("/a/b", ""),
        ("run:1", ""),
        ("./s3://x", ""),
        ("", ""),
    ],
)
def test_kind(text: str, kind: str) -> None:
    assert urls.kind(text) == kind


def test_file_path() -> None:
    for url in ("file:///a%20b/c", "file:/a%20b/c", "file://localhost/a b/c"):
        assert urls.file_path(url) == Path("/a b/c")
    with pytest.raises(InputError, match=r"^file://host/c: a file URL has three slashes"):
        urls.file_path("file://me:SECRET@host/c?SECRET")


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("az://user:SECRET@host/a?sas=SECRET#SECRET", "az://host/a"),
        ("https://me:SECRET@h/a b/?k=SECRET&l=a/SECRET", "https://h/a b/"),
        ("https://SECRET@h", "https://h"),
        ("https://h/a@b/c#SECRET", "https://h/a@b/c"),
        ("simplecache::https://u:SECRET@h/x?sig=SECRET", "simplecache::https://h/x"),
        ("https://h/x?sig=SECRET::SECRET", "https://h/x"),
        ("zip://a::s3://SECRET@b/c", "zip://a::s3://b/c"),
        ("/a folder/what?", "/a folder/what?"),
        ("run:1#2", "run:1#2"),
    ],
)
def test_shown(location: str, shown: str) -> None:
    assert urls.shown(location) == shown


def test_all_shown() -> None:
    value = {"a": ["s3://u:SECRET@b/c", 1], "b": {"c": ("x?y", None)}, "d": 0.5}
    shown = {"a": ["s3://b/c", 1], "b": {"c": ("x?y", None)}, "d": 0.5}
    assert urls.all_shown(value) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at 's3://b/x?k=SECRET': s://SECRET@h/y", "at 's3://b/x': s://h/y"),
        ("proxy https://key:SECRET@p/x?X-Amz-Signature=SECRET no", "proxy https://p/x no"),
        ('"https://h/x#SECRET"', '"https://h/x"'),
        ("pool(host='h'): url: /x?sig=SECRET (why)", "pool(host='h'): url: /x (why)"),
        ("503 slow down", "503 slow down"),
    ],
)
def test_without_secrets(text: str, shown: str) -> None:
    assert urls.without_secrets(text) == shown


def test_reason() -> None:
    url = "https://u:SECRET@h/a b?SECRET more=SECRET"
    assert urls.reason(OSError(f"no {url} there\nTraceback"), url) == "no https://h/a b there"
    assert urls.reason(RuntimeError(), url) == "RuntimeError"
