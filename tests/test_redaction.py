"""The filter of secrets: forms of URLs, values in every encoding, and what it must not garble."""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import os
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import pytest
import yarl

from autotimm import redaction
from autotimm.outputs.loggers import make_loggers
from autotimm.redaction import bare, learn, process, redacted, secrets
from autotimm.structures import InputError

PASSWORDS = [
    "hunter2x", "S3CRET?pw", "S3#CRET", "pa/ss/word", "p@ss:w@rd", "to:p/se?c#ret@x", "100%safe!",
    "s3cr%2Fet%3F", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "Zürich-1999", "it's \"quoted\"",
    "back\\slash1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, empty in (("_dropped", {}), ("_masked", {}), ("_compiled", None)):
        monkeypatch.setattr(secrets, name, empty)
    monkeypatch.setattr(process, "_guarding", False)
    yield


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a@b/*.jpg", "s3://bucket/a@b/*.jpg"),
        ("https://h:80/a@b/c", "https://h:80/a@b/c"),
        ("https://[::1]:80/a@b", "https://[::1]:80/a@b"),
        ("https://me:a/b@h/x", "https://h/x"),
        ("https://me:a?b@h/x?q=1", "https://h/x"),
        ("https://me:a@b/c#d@h:80/x", "https://h:80/x"),
        ("s3://KEY:se/cr@bucket/*", "s3://bucket/*"),
        ("zip://*::https://me:pw@h/x?a=b", "zip://*::https://h/x"),
        ("https://h/x,https://me:pw@k/y?z", "https://h/x,https://k/y"),
        ("https://h/x?next=https://me:pw@k/y", "https://h/x"),
    ],
)
def test_a_bare_url(url: str, shown: str) -> None:
    assert bare(url) == shown


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_known_secret_leaves_in_no_encoding(password: str) -> None:
    learn(f"https://me:{password}@host.org/x/y.tar")
    forms = [password, quote(password), quote(password, safe=""), quote_plus(password)]
    forms += [quote(password, safe="").lower(), json.dumps(password)[1:-1], repr(password)[1:-1]]
    forms += [quote(quote(password, safe=""), safe=""), html.escape(password)]
    forms.append(base64.b64encode(f"me:{password}".encode()).decode())
    if not any(letter in password for letter in "/?#\\"):
        url = str(yarl.URL(f"https://me:{password}@host.org/"))
        forms.append(url.removeprefix("https://me:").partition("@host")[0])
    for form in forms:
        if "%" not in password or form == password:  # escapes of escapes have other letters
            assert redacted(f"why: {form}; at https://me:{form}@host.org/x") == (
                "why: ***; at https://host.org/x"
            ), form
    assert redacted(f"host me:{password}") in ("host ***", "host me:***")


def test_libraries_cut_a_url_at_its_password() -> None:
    url = "https://me:hidden1#secret2/more3@host/x"
    learn(url)
    with pytest.raises(ValueError, match="cast") as error:
        _ = urlsplit(url).port
    assert "hidden1" in str(error.value)
    assert "hidden1" not in redacted(str(error.value))
    assert redacted("fragment=secret2/more3@host/x") == "fragment=***/***@host/x"


@pytest.mark.parametrize("password", ["a", "train", "1", "12345", "training", "x.y", "640"])
def test_a_short_or_common_secret_garbles_nothing(password: str) -> None:
    learn(f"https://me:{password}@host/x")
    text = f"train a model in training, 12345 images of 640 pixels, at x.y: {password}, time:a1"
    assert redacted(text) == text
    assert redacted(f"at https://me:{password}@host/x: me:{password}") == "at https://host/x: ***"


def test_a_short_secret_with_a_mark_is_taken_out_wherever_it_is() -> None:
    learn("https://me:p@s@host/x")
    assert redacted("no access for p@s") == "no access for ***"


def test_signatures() -> None:
    url = (
        "https://b.s3.amazonaws.com/k/a.tar?X-Amz-Credential=AKIAEXAMPLE%2F2026&X-Amz-Expires=900"
        "&X-Amz-Signature=0f1e2d3c4b5a&versionId=none"
    )
    learn(f"--data.data_dir={url}")
    assert redacted(f"403, url={url!r}") == "403, url='https://b.s3.amazonaws.com/k/a.tar'"
    path = url.partition("amazonaws.com")[2]
    assert redacted(f"GET {path} HTTP/1.1") == "GET /k/a.tar HTTP/1.1"
    assert redacted("AKIAEXAMPLE/2026 0f1e2d3c4b5a none 900") == "*** *** none 900"
    assert redacted("to https://else/y?sig=unknown: no.") == "to https://else/y: no."


def test_settings_that_are_secrets_by_their_name() -> None:
    learn("api_key: 'abc-def-123'\nwandb_token=TOKEN12345\nlr: 0.001\ntokens: 12")
    assert redacted("abc-def-123 TOKEN12345 0.001 12") == "*** *** 0.001 12"


def test_values_of_every_kind() -> None:
    learn("https://me:hunter2x@h/")
    url, shown = "https://me:hunter2x@h/x?s=1", "https://h/x"
    value = OrderedDict(a=[url, 1, None], b=(url, {"hunter2x": url}), c=Path("/a/hunter2x"))
    assert redacted(value) == OrderedDict(
        a=[shown, 1, None], b=(shown, {"***": shown}), c=Path("/a/***")
    )
    assert redacted(argparse.Namespace(a=url)) == argparse.Namespace(a=shown)
    whole = object()
    assert redacted(whole) is whole
    assert str(InputError(f"{url}: no")) == "https://h/x: no"


def test_a_guarded_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("data:\n  data_dir: 'https://me:from-config1@h/x'\n")
    words = ["autotimm", "fit", "--config", str(config), "--token", "from-flag22", "s3://b/x"]
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "from+environment/3")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/key.json")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    out, err = io.StringIO(), io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    redaction.guard_process()
    redaction.guard_process()
    print("from-config1", "/home/me/key.json", "false", end="")
    print("from-flag22, from+environment/3", file=sys.stderr)
    assert out.getvalue() == "*** /home/me/key.json false"
    assert err.buffer.getvalue() == b"***, ***\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("imported", [False, True])
def test_a_library_that_copies_all_output_gets_it_filtered(
    imported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As W&B does, which wandb 0.31 prepares when it is imported."""
    stream, copied, found = io.StringIO(), list[str](), list[str]()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    monkeypatch.setattr(sys, "stderr", stream)
    words = ["autotimm", "fit", "--data.data_dir", "https://me:hunter2x@host.org/x"]
    monkeypatch.setattr(sys, "argv", words)
    redaction.guard_process()

    def install() -> None:
        found.extend(sys.argv)
        before: Any = sys.stdout.write

        def write(text: str) -> int:
            copied.append(text)
            return before(text)

        sys.stdout.write = write  # type: ignore[method-assign]

    if imported:
        install()
        found.clear()
        make_loggers("csv", tmp_path)
    else:
        with redaction.shown_to_library():
            install()
        assert found == [*words[:3], "https://host.org/x"]
    print("reads hunter2x")
    assert "hunter2x" not in "".join([*copied, *found])
    assert "reads ***" in "".join(copied)
    assert sys.argv is words


def test_a_pipe_on_the_command_line_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is for the verb, and may never answer; this would not return."""
    os.mkfifo(tmp_path / "results.json")
    monkeypatch.setattr(sys, "argv", ["autotimm", "evaluate", str(tmp_path / "results.json")])
    redaction.guard_process()
