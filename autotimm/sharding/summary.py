"""The output of ``autotimm-shard``: progress on stderr if it is a terminal, a summary on stdout.

rich is imported only where it is used, because it takes a while to load.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import orjson

from autotimm.coco.remarks import ignored_remark, untrained_remark
from autotimm.files.units import counted
from autotimm.format.manifest import MANIFEST
from autotimm.sharding.outcome import Outcome, Part, Written

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from autotimm.sharding.verify import Report


def waiting(text: str) -> contextlib.AbstractContextManager[Any]:
    """Shows on stderr, if it is a terminal, what the program is busy with.

    The context manager yields rich's status, or None.
    """
    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    from rich.console import Console
    from rich.markup import escape

    return Console(stderr=True).status(escape(text))


@contextlib.contextmanager
def bar(total: int) -> Iterator[Callable[[int], object]]:
    """Shows a progress bar on stderr, if it is a terminal; yields the function to advance it."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("sharding"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda images: progress.advance(task, images)


def print_line(text: str, stream: TextIO | None) -> None:
    """Prints lines on stdout or stderr, with escapes for characters that its encoding lacks.

    A closed pipe (``| head``) is not an error.

    Raises:
        OSError: the text cannot be written, for example because the disk is full.
    """
    if stream is None:  # closed (``>&-``)
        return
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except OSError as error:
        # Python flushes what is left in the buffer at exit, which would fail once more.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):
            error.filename = stream.name
            raise


def print_outcome(outcome: Outcome, dst: str, part: Part | None = None) -> None:
    """Prints the summary of a run: a table, problems in the source, and the result."""
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as captured:  # rich would exit the program on a closed pipe
        _draw(console, outcome, dst, part)
    print_line(captured.get().removesuffix("\n"), sys.stdout)


def _draw(console: Console, outcome: Outcome, dst: str, part: Part | None) -> None:
    console.print(_table(outcome))
    for line in (*_found(outcome), *_result(outcome, dst, part)):
        console.print(line, markup=False, soft_wrap=True)


def _table(outcome: Outcome) -> Table:
    """What each split has; without the shards in a dry run, which writes none."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    dry = outcome.state == "dry run"
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("split")
    for column in ("images", "instances", "crowd", *(() if dry else ("shards", "MB"))):
        table.add_column(column, justify="right", no_wrap=True)
    for name, w in outcome.splits.items():
        row = [escape(name), *(f"{n:,}" for n in (w.images, w.instances, w.crowd))]
        row += [] if dry else [f"{len(w.shards):,}", f"{w.bytes / 1e6:,.1f}"]
        table.add_row(*row)
    return table


def _found(outcome: Outcome) -> Iterator[str]:
    """What is odd about the source, a line for each kind and split."""
    for name, w in outcome.splits.items():
        depths = w.depths.lines(outcome.pixel_range)
        for remark in [*w.problems.lines(), *_remarks(w), *depths]:
            yield f"{name}: {remark}"


def _result(outcome: Outcome, dst: str, part: Part | None) -> Iterator[str]:
    """What the run did, and what remains to do."""
    if outcome.state == "complete":
        # The run has not read the images, so it cannot notice an edit that keeps a file's size.
        yield (
            f"{dst}: already complete, with the same options, annotations and sizes of images; "
            "--overwrite writes anew"
        )
        return
    rate = outcome.images / outcome.seconds if outcome.seconds else 0
    many = f", {outcome.workers} workers" if outcome.workers > 1 else ""
    took = f"in {outcome.seconds:,.1f} s ({rate:,.0f} images/s{many})"
    if outcome.state == "dry run":
        yield f"dry run: read {took}; {outcome.new:,} shards would be written"
        return
    kept = f", kept {outcome.kept:,} of an earlier run" if outcome.kept else ""
    yield f"wrote {counted(outcome.new, 'shard')}{kept} {took}"
    if part is not None:
        yield (
            f"part {part.which} of {part.of} is done; once all are, the same command without "
            "--part joins them"
        )
    else:
        yield f"wrote {dst.rstrip('/')}/{MANIFEST}"


def as_json(outcome: Outcome) -> str:
    """The summary of a run as a JSON object."""
    dry = outcome.state == "dry run"
    content = {
        "state": outcome.state,
        "splits": {name: _split(written, dry) for name, written in outcome.splits.items()},
        "planned_shards" if dry else "written_shards": outcome.new,
        "kept_shards": outcome.kept,
        "read_images" if dry else "written_images": outcome.images,
        "pixel_range": outcome.pixel_range,
        "workers": outcome.workers,
        "seconds": round(outcome.seconds, 3),
    }
    return orjson.dumps(content, option=orjson.OPT_INDENT_2).decode()


def print_report(report: Report, folder: Path, json: bool) -> None:
    """Prints the result of --verify."""
    counts = {
        name: getattr(report, name) for name in ("shards", "images", "instances", "crowd", "bytes")
    }
    if json:
        content = {"state": "damaged" if report.faults else "sound", **counts}
        content["faults"] = report.faults
        print_line(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode(), sys.stdout)
        return
    what = f"{report.shards:,} shards, {report.images:,} images, {report.instances:,} instances"
    found = f"{len(report.faults):,} faults in" if report.faults else "sound:"
    last = f"{folder}: {found} {what}, {report.bytes / 1e6:,.1f} MB"
    print_line("\n".join([*report.faults, last]), sys.stdout)


def _remarks(written: Written) -> list[str]:
    """What will not be learnt of a split, beside what cannot be used."""
    remarks = [ignored_remark(written.ignored)] if written.ignored else []
    if written.images and written.instances == written.crowd + written.ignored:
        which = "but crowds" if written.instances else "at all"
        remarks.append(f"there are no instances {which}, so this split trains nothing")
    if written.untrained:
        remarks.append(untrained_remark(written.untrained))
    return remarks


def _split(written: Written, dry: bool) -> dict[str, Any]:
    problems = written.problems
    made = {} if dry else {"shards": len(written.shards), "bytes": written.bytes}
    return {
        "images": written.images,
        "instances": written.instances,
        "crowd": written.crowd,
        "ignored": written.ignored,
        "untrained": written.untrained,
        **made,
        "deep_images": written.depths.declared + written.depths.others,
        "problems": {
            kind: {"count": count, "examples": problems.examples[kind]}
            for kind, count in problems.counts.items()
        },
    }
