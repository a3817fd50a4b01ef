"""The readability check of the docs finds what is too long, and measures prose alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("textstat")
SCRIPT = Path(__file__).parents[1] / "docs/tools/readability.py"


@pytest.fixture(scope="module")
def readability() -> Any:
    spec = importlib.util.spec_from_file_location("readability", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sentences_are_those_of_the_prose(readability) -> None:
    text = (
        "# A heading is none\n\nOne `a.b(c)` and\n[two words](https://a.b/c_d). autotimm is next!"
        " (In brackets.) Last\n\n    code that is long. Very\n\n```sh\nmore. Code\n```\n\n"
        "| a table. | is |\n|---|---|\n| none. | At all |\n\n- a point\n- *another*, `x`.\n\n"
        "::: autotimm.load\n"
    )
    found = list(readability.sentences_of(text))
    assert [sentence for _, sentence in found] == [
        *("One `code` and two words.", "autotimm is next!", "(In brackets.)", "Last", "a point"),
        "another, `code`.",
    ]
    assert [line for line, _ in found] == [3, 3, 3, 3, 16, 17]


def test_a_long_sentence_and_a_hard_page_are_found(readability, tmp_path, monkeypatch, capsys):
    fine, long, hard = (tmp_path / f"{name}.md" for name in ("fine", "long", "hard"))
    fine.write_text("The cat sat on the mat. " * 40)
    long.write_text(f"A cat.\n\n{'so ' * readability.MOST_WORDS}it ends.\n")
    hard.write_text("Notwithstanding interminable deliberations organisations procrastinate. " * 5)
    for path, code in ((fine, False), (long, True), (hard, True)):
        monkeypatch.setattr(sys, "argv", ["readability.py", str(path)])
        with pytest.raises(SystemExit) as ended:
            readability.main()
        assert bool(ended.value.code) == code
        told = capsys.readouterr().out
        assert (f"{long}:3: {readability.MOST_WORDS + 2} words" in told) == (path == long)
        assert (f"{hard}: LIX" in told) == (path == hard)
