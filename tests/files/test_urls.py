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


def test_reason() -> None:
    assert urls.reason(OSError("no such host\nTraceback")) == "no such host"
    assert urls.reason(RuntimeError()) == "RuntimeError"


@pytest.mark.parametrize("password", ["a?b", "a#b", "a/b", "a/b@c"])
def test_a_password_that_ends_the_host_is_refused(password: str) -> None:
    with pytest.raises(InputError, match=r"^https://host/x: its user or password .* write %2F"):
        urls.locate(f"https://me:{password}@host/x")
    assert urls.locate("https://me:p%2Fw@host:8000/a@2x.png").folder is None
    assert urls.locate("https://host:8000/a@2x.png").folder is None


def test_an_s3_url_takes_no_keys() -> None:
    for url in ("s3://AKIA:se/cr+et@bucket/*", "s3://AKIA:secret@bucket"):
        with pytest.raises(InputError, match=r"^s3://bucket.*: set AWS_ACCESS_KEY_ID and") as error:
            urls.locate(url)
        assert "se" not in str(error.value).replace("set", "")


def test_a_folder_of_this_machine_is_no_url() -> None:
    with pytest.raises(InputError, match=r"^s3://b/x: is a URL: give a folder on this machine"):
        urls.home_expanded("s3://b/x")


@pytest.mark.parametrize("text", ["http://a]b/x", "file://[/x", "https://\u2100.org/x"])
def test_what_python_takes_for_no_url_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a URL: "):
        urls.locate(text)


def test_a_name_that_no_file_system_has_is_refused() -> None:
    with pytest.raises(InputError, match="x URLs are not read"):
        urls.locate("x:" + "a" * 5000)
