"""``autotimm-shard SRC DST``: a COCO folder becomes WebDataset shards with a manifest.

Exit codes: 0 done, 2 the input cannot be used (one line on stderr), 130 interrupted. Nothing under
a final name is ever half written; the manifest comes last; a run that fails changes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from autotimm import __version__
from autotimm.coco import Category, Problems, find_splits, load
from autotimm.sharding.manifest import MANIFEST, Manifest, SplitInfo, write_manifest
from autotimm.sharding.staging import install, old_shards, staged
from autotimm.sharding.writer import Written, make_keys, plan_shards, sample_sizes, write_shard
from autotimm.structures import InputError
from autotimm.units import byte_count

_EPILOG = """\
SRC holds annotations/instances_<split>.json and the images in <split>/ or images/<split>/, <split>
being train2017, val2017, train, ... DST gets <split>-000000.tar, ..., an index beside each, and
manifest.json. What is odd in SRC is counted in the closing summary: an image or instance that
cannot be used is left out, the rest goes on. An instance needs a mask: boxes alone train none.
Exit codes: 0 done, 2 the input cannot be used, 130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits."""
    try:
        options = _parser().parse_args(arguments)
        shard(
            _folder("SRC", options.src),
            _folder("DST", options.dst),
            splits=_names(options.splits),
            samples_per_shard=options.samples_per_shard,
            max_shard_size=byte_count("--max-shard-size", options.max_shard_size),
            overwrite=options.overwrite,
            strict=options.strict,
            limit=options.limit,
        )
    except (InputError, argparse.ArgumentError) as error:
        _fail(2, re.sub(r'^\s*Parser key "(\w+)":\s*Not of type \w+', _flag, str(error)))
    except OSError as error:  # a full disk, a folder that may not be written
        _fail(2, f"{error.filename or 'writing'}: {error.strerror or error}")
    except KeyboardInterrupt:
        _fail(130, "interrupted: the shards of this run are removed again")
    sys.exit(0)


def shard(
    src: Path,
    dst: Path,
    *,
    splits: Sequence[str] | None = None,
    samples_per_shard: int = 1000,
    max_shard_size: int = 512 * 2**20,
    overwrite: bool = False,
    strict: bool = False,
    limit: int | None = None,
) -> Manifest:
    """Writes the shards of a COCO folder and prints a summary.

    Args:
        src: the COCO folder.
        dst: where the shards go; made if it is missing.
        splits: the names of those to write; all that ``src`` has by default.
        samples_per_shard: no shard gets more samples.
        max_shard_size: nor more bytes, unless one image alone has more.
        overwrite: replace the shards that ``dst`` holds, once the new ones are whole.
        strict: anything odd in ``src`` is an error.
        limit: only the first so many images of each split.

    Raises:
        InputError: the input cannot be used. What this run wrote is removed again, and what
            ``dst`` held is there as it was.
    """
    found = find_splits(src)
    missing = [name for name in splits or () if name not in found]
    if missing:
        raise InputError(f"--splits: {src} has no '{missing[0]}', but {', '.join(found)}")
    chosen = list(dict.fromkeys(splits or found))
    for name in chosen:
        if not found[name].image_folder.is_dir():
            raise InputError(
                f"{found[name].image_folder}: no such folder, and the images of split '{name}' "
                "are nowhere else; --splits chooses other splits"
            )
    if dst.is_dir() and dst.samefile(src):
        raise InputError(f"{dst}: is the COCO folder itself; give another folder for the shards")
    if dst.exists() and not dst.is_dir():
        raise InputError(f"{dst}: is a file; give a folder for the shards")
    old_shards(dst, chosen, overwrite)  # refuses before the reading, which may take long
    indices = {}
    for name in chosen:
        with _waiting(f"reading {found[name].annotation_file.name}"):
            indices[name] = load(found[name].annotation_file, found[name].image_folder)
        if strict:
            _refuse(name, indices[name].problems)
    categories: dict[int, Category] = {}
    for name, index in indices.items():
        for category in index.categories:
            known = categories.setdefault(category.id, category)
            if known.name != category.name:
                raise InputError(
                    f"{found[name].annotation_file}: category {category.id} is '{category.name}', "
                    f"but '{known.name}' in another split"
                )

    dst.mkdir(parents=True, exist_ok=True)
    written = {name: Written() for name in chosen}
    seconds = {}
    with staged(dst) as new:
        old = old_shards(dst, chosen, overwrite)  # another run may have come in between
        with _bar(sum(min(len(i), limit or len(i)) for i in indices.values())) as advance:
            for name, index in indices.items():
                start = time.perf_counter()
                count = min(len(index), limit or len(index))
                written[name].problems.update(index.problems)
                keys = make_keys((index.file_name(i), index.image_id(i)) for i in range(count))
                sizes = sample_sizes(index, range(count))
                for plan in plan_shards(name, keys, sizes, samples_per_shard, max_shard_size):
                    written[name].add(write_shard(new, plan, index, advance))
                    if strict:
                        _refuse(name, written[name].problems)
                if not written[name].images:
                    why = "; ".join(written[name].problems.lines())
                    raise InputError(f"{found[name].annotation_file}: no image can be used: {why}")
                seconds[name] = time.perf_counter() - start
        manifest = Manifest(
            [categories[id_] for id_ in sorted(categories)],
            {
                name: SplitInfo(w.images, w.instances, w.crowd, w.problems.counts, w.shards)
                for name, w in written.items()
            },
        )
        write_manifest(new / MANIFEST, manifest)
        names = [name for w in written.values() for s in w.shards for name in (s.name, s.index)]
        install(new, [*names, MANIFEST], dst, old)
    _summary(written, seconds, dst)
    return manifest


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="autotimm-shard",
        description="Writes a COCO folder as WebDataset shards for training.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        version=__version__,
    )
    add = parser.add_argument
    add("src", metavar="SRC", help="folder in COCO's layout")
    add("dst", metavar="DST", help="folder for the shards; made if it is missing")
    add("--splits", type=str, metavar="A,B", help="only these, e.g. train,val (default: all)")
    add("--samples-per-shard", type=PositiveInt, default=1000, metavar="N", help="at most (1000)")
    add(
        "--max-shard-size",
        type=str,
        default="512MiB",
        metavar="SIZE",
        help="at most, e.g. 1GB, or bytes (512MiB); whichever comes first",
    )
    add("--limit", type=PositiveInt, metavar="N", help="only the first N images of each split")
    add("--overwrite", action="store_true", help="replace the shards of DST once all is written")
    add("--strict", action="store_true", help="anything odd in SRC is an error")
    return parser


def _folder(name: str, text: str) -> Path:
    if not text:
        raise InputError(f"{name}: empty; give a folder")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise InputError(
            f"{name}: {text} is not a folder of this machine; shard a local folder into a local "
            "folder, and copy that to the store with the store's own tool"
        )
    return Path(text)


def _names(text: str | None) -> list[str] | None:
    names = text and [name.strip() for name in text.split(",")]
    if names is not None and not all(names or [""]):
        raise InputError(f"--splits: names with commas between them (train,val), not {text!r}")
    return names or None


def _refuse(split: str, problems: Problems) -> None:
    if problems.counts:
        raise InputError(f"--strict: split '{split}': {'; '.join(problems.lines())}")


def _waiting(text: str) -> contextlib.AbstractContextManager[object]:
    """Says on stderr, if that is a terminal, what takes a while."""
    console = Console(stderr=True)
    return console.status(escape(text)) if console.is_terminal else contextlib.nullcontext()


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on stderr, if that is a terminal; yields what advances it."""
    console = Console(stderr=True)
    columns = (
        TextColumn("sharding"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
    )
    if not console.is_terminal:
        yield lambda _: None
        return
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda images: bar.advance(task, images)


def _summary(written: dict[str, Written], seconds: dict[str, float], dst: Path) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("split")
    for column in ("images", "instances", "crowd", "shards", "MB", "seconds", "images/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, w in written.items():
        table.add_row(
            escape(name),
            f"{w.images:,}",
            f"{w.instances:,}",
            f"{w.crowd:,}",
            f"{len(w.shards):,}",
            f"{w.bytes / 1e6:,.1f}",
            f"{seconds[name]:,.1f}",
            f"{w.images / seconds[name]:,.0f}",
        )
    console = Console(highlight=False)
    console.print(table)
    for name, w in written.items():
        for line in w.problems.lines():
            console.print(f"{name}: {line}", markup=False, soft_wrap=True)
        if w.instances == w.crowd:
            which = "that is not a crowd " if w.crowd else ""
            console.print(
                f"{name}: no instance {which}has a mask, so this split cannot train masks; "
                "masks come from 'segmentation' (polygons or RLE), boxes alone do not give them",
                markup=False,
                soft_wrap=True,
            )
    console.print(f"wrote {dst / MANIFEST}", markup=False, soft_wrap=True)


def _flag(match: re.Match[str]) -> str:
    return "--" + match[1].replace("_", "-")


def _fail(code: int, message: str) -> NoReturn:
    """Prints one line on stderr and exits."""
    print("autotimm-shard:", " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
