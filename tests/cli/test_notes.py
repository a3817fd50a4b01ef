"""Remarks on stderr are lines of the program, without places in its code."""

from __future__ import annotations

import sys
import warnings

import pytest

from autotimm.cli import main
from autotimm.cli.notes import shorten_warnings


def test_a_warning_for_users_is_one_line_without_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    shorten_warnings("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", _shown)
        warnings.warn("split 'val'\n  is called 'valid'", stacklevel=1)
        warnings.warn("old name", DeprecationWarning, stacklevel=1)
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "autotimm fit: split 'val' is called 'valid'"
    assert __file__ in rest[0] and "DeprecationWarning: old name" in rest[0]


def _shown(
    message: Warning, category: type[Warning], filename: str, lineno: int, *_: object
) -> None:
    """As Python shows a warning, which pytest would record instead."""
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


@pytest.mark.parametrize(("words", "verbs"), [([], ["completion"]), (["--debug"], [])])
def test_every_verb_has_them_short_unless_it_is_debugged(
    words: list[str], verbs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(main, "shorten_warnings", asked.append)
    monkeypatch.setattr(sys, "argv", ["autotimm", "completion", "--help", *words])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert not ended.value.code and asked == verbs
