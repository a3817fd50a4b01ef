"""Finds sentences that are too long, and pages that are hard to read: a part of ``make lint``.

Only prose is measured: paragraphs and points of lists, without tables and blocks of code. Code in
a sentence is one word, and of a link its text counts.

The measure of a page is LIX (Björnsson 1968): the words in a sentence, plus the percentage of words
with more than six letters. It needs no dictionary of syllables, which textstat would download.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import textstat
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "launch/*.md", "shards/*.md", "slurm/*.md")
MOST_WORDS = 30
"""In a sentence; one that a list or a block of code continues ends before it."""
HIGHEST_LIX = 40
"""Of a page. Below 40 is easy, above 50 is what official documents have."""

_BEGIN = r"\s+(?=[\"(]*(?:[A-Z0-9`]|autotimm\b))"
_END = re.compile(rf"(?<=[.!?]){_BEGIN}|(?<=[.!?][\")]){_BEGIN}")


def main() -> None:
    """Print what is too long or too hard, and exit with 1 if anything is."""
    paths = [Path(name) for name in sys.argv[1:]]
    paths = paths or [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    complaints = [line for path in paths for line in complaints_of(path)]
    print("\n".join(complaints) or f"{len(paths)} pages: no sentence too long, none hard to read")
    raise SystemExit(bool(complaints))


def complaints_of(path: Path) -> Iterator[str]:
    """A line for each sentence that is too long, and one if the page is too hard."""
    sentences = list(sentences_of(path.read_text()))
    for line, sentence in sentences:
        if (count := len(sentence.split())) > MOST_WORDS:
            yield f"{path}:{line}: {count} words, at most {MOST_WORDS}: {sentence}"
    text = " ".join(sentence for _, sentence in sentences)
    if text and (lix := textstat.lix(text)) > HIGHEST_LIX:
        yield f"{path}: LIX {lix:.0f}, at most {HIGHEST_LIX}: shorter sentences and words help"


def sentences_of(text: str) -> Iterator[tuple[int, str]]:
    """The sentences of a Markdown text, with the line in which their paragraph begins."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inside = 0  # tables
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        inside += (token.type == "table_open") - (token.type == "table_close")
        if token.type == "paragraph_open" and not inside and following and following.map:
            prose = " ".join(plain(following.children or ()).split())
            if not prose or prose.startswith(":::"):  # a picture; mkdocstrings
                continue
            for sentence in _END.split(prose):
                yield following.map[0] + 1, sentence


def plain(tokens: Iterable[Token]) -> str:
    """The words of a line of Markdown: of code its place alone, of a link or emphasis the text."""
    parts = []
    for token in tokens:
        if token.type == "text":
            parts.append(token.content)
        elif token.type == "code_inline":
            parts.append("`code`")
        elif token.type in ("softbreak", "hardbreak"):
            parts.append(" ")
    return "".join(parts)


if __name__ == "__main__":
    main()
