"""``autotimm-shard SRC DST``: a COCO folder becomes WebDataset shards with a manifest.

Exit codes: see the end of the help. Nothing under a final name is ever half written; the manifest
comes last; a run that is stopped goes on when the same command is run again, and its result is that
of a run that never stopped.
"""

from __future__ import annotations

import re
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

from autotimm.coco.checks import Rules
from autotimm.coco.layouts import Split, find_splits
from autotimm.coco.named_files import paired
from autotimm.coco.split_names import same_split, split_names, stem_of
from autotimm.files import urls
from autotimm.files.shortage import shortage
from autotimm.format.fields import plain_name
from autotimm.format.manifest import MANIFEST, Manifest
from autotimm.images.depth import checked_range
from autotimm.redaction import guard_process
from autotimm.sharding.arguments import Arguments, parse
from autotimm.sharding.destinations.choice import destination
from autotimm.sharding.destinations.local_folder import LocalFolder
from autotimm.sharding.job import Options
from autotimm.sharding.outcome import Display, Terminated
from autotimm.sharding.run import shard as run
from autotimm.sharding.run import usable_cpus
from autotimm.sharding.summary import as_json, bar, print_line, print_outcome, print_report, waiting
from autotimm.structures import InputError


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits."""
    guard_process()
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _main(parse(arguments))
    except InputError as error:
        _fail(2, str(error))
    except (OSError, MemoryError, RuntimeError) as error:
        if (line := shortage(error, "shard")) is not None:
            _fail(2, line, error)
        if not isinstance(error, OSError):
            raise
        # a folder that may not be written, a worker that died
        reason = error.strerror or str(error)
        _fail(2, f"{error.filename}: {reason}" if error.filename else reason, error)
    except KeyboardInterrupt as error:
        _fail(130, "interrupted", error)
    except Terminated as error:
        _fail(143, "terminated", error)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code)


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
    shuffle: int | None = None,
    boxes: Literal["given", "mask"] = "given",
    crowd: Literal["keep", "instance"] = "keep",
    workers: int = 1,
    pixel_range: tuple[float, float] | None = None,
) -> Manifest:
    """Writes the shards of a COCO folder into another, or goes on with it, and prints a summary.

    Args:
        src: the COCO folder.
        dst: where the shards go; made if it is missing.
        splits: the names of those to write; all that ``src`` has by default.
        samples_per_shard: no shard gets more samples.
        max_shard_size: nor more bytes, unless one image alone has more.
        overwrite: replace the shards that ``dst`` holds, once the new ones are whole.
        strict: anything odd in ``src`` is an error.
        limit: only so many images of each split.
        shuffle: seed of the order of the images; by default it is that of ``src``.
        boxes: "mask" takes the boxes of the masks in place of those that ``src`` has.
        crowd: "instance" takes crowds for ordinary instances.
        workers: processes that write.
        pixel_range: values that become black and white in images of more than 8 bits a channel; by
            default those that the images have.

    Raises:
        InputError: the input cannot be used. ``dst`` holds what it held.
    """
    options = Options(
        samples_per_shard=samples_per_shard,
        max_shard_size=max_shard_size,
        limit=limit,
        shuffle=shuffle,
        rules=Rules(boxes=boxes, crowd=crowd),
        pixel_range=None if pixel_range is None else checked_range("pixel_range", pixel_range),
    )
    outcome = run(
        _of_folder(src, splits, dst),
        LocalFolder(dst),
        options,
        workers=workers,
        overwrite=overwrite,
        strict=strict,
        display=Display(waiting, bar, _say),
    )
    print_outcome(outcome, str(dst))
    assert outcome.manifest is not None  # neither a part nor a dry run
    return outcome.manifest


def _main(args: Arguments) -> int:
    if args.verify:
        return _verify(_folder("SHARDS", args.folders[0]), args.workers, args.json)
    src = _folder("SRC", args.folders[0]) if args.annotations is None else None
    where = None if args.dry_run else destination(args.folders[-1])
    if src is None:
        assert args.annotations is not None and args.images is not None  # they go together
        splits = _of_files(args.annotations, args.images, args.splits)
    else:
        splits = _of_folder(src, args.splits, where.dst if isinstance(where, LocalFolder) else None)
    given = {name: getattr(args, name) for name in ("samples_per_shard", "max_shard_size")}
    outcome = run(
        splits,
        where,
        Options(
            **{name: value for name, value in given.items() if value is not None},
            limit=args.limit,
            shuffle=args.shuffle,
            rules=Rules(boxes=args.boxes or "given", crowd=args.crowd or "keep"),
            pixel_range=args.pixel_range,
        ),
        workers=args.workers,
        overwrite=args.overwrite,
        strict=args.strict,
        part=args.part,
        display=Display(waiting, bar, _say),
    )
    if args.json:
        print_line(as_json(outcome), sys.stdout)
    else:
        print_outcome(outcome, str(where), args.part)
    return 0


def _verify(folder: Path, workers: int | None, json: bool) -> int:
    from autotimm.sharding.verify import verify

    with waiting("verifying") as status:
        report = verify(
            folder,
            workers or usable_cpus(),
            lambda done, total: status and status.update(f"verifying {done:,} of {total:,} images"),
        )
    print_report(report, folder, json)
    return 1 if report.faults else 0


def _of_folder(src: Path, names: Sequence[str] | None, dst: Path | None) -> list[Split]:
    """The splits of a COCO folder that are wanted, by their names or those of their files."""
    try:
        found = find_splits(src)
    except InputError as error:
        if not src.is_dir():
            raise
        if (src / MANIFEST).is_file():
            raise InputError(f"{src}: is a folder of shards already: fit --data {src}") from None
        if "--annotations" in str(error) or "; " in str(error).partition(": holds ")[2]:
            raise  # the message has the way out
        raise InputError(f"{error}; another layout takes --annotations and --images") from None
    # train2017 is train, and so is CVAT's default; valid is val where that is not there
    stems = {s.name: stem_of(s.annotation_file).removeprefix("instances_") for s in found.values()}
    of_file = {stem: name for name, stem in stems.items()}
    names = names and [same_split(name, found) or of_file.get(name, name) for name in names]
    missing = [name for name in names or () if name not in found]
    if missing:
        raise InputError(f"--splits: {src} has no '{missing[0]}', but {', '.join(found)}")
    splits = [found[name] for name in dict.fromkeys(names or found)]
    for split in splits:
        try:
            plain_name(split.name)
        except ValueError as error:
            raise InputError(
                f"{split.annotation_file}: names a split and its shards, but {error}; rename it, "
                "or choose others with --splits"
            ) from None
        if not split.image_folder.is_dir():
            raise InputError(
                f"{split.image_folder}: no such folder, and the images of split '{split.name}' "
                "are nowhere else; --splits chooses other splits"
            )
    if dst is not None and dst.is_dir() and dst.samefile(src):
        raise InputError(f"{dst}: is the COCO folder itself; give another folder for the shards")
    return splits


def _of_files(
    files: Sequence[str], folders: Sequence[str], names: Sequence[str] | None
) -> list[Split]:
    """The splits that --annotations and --images name one by one."""
    pairs = paired(files, folders)
    if names is None:
        names = split_names([stem_of(Path(file)) for file in files])
        name, times = Counter(names).most_common(1)[0]
        if times > 1:
            shared = ", ".join(f for f, own in zip(files, names, strict=True) if own == name)
            raise InputError(
                f"--annotations: {shared} would share the name '{name}'; --splits names all files, "
                "in the same order; files of one name are joined"
            )
    if len(names) != len(files):
        raise InputError(
            f"--splits: {len(names)} names for {len(files)} files of --annotations; give one for "
            "each, in the same order"
        )
    sources: dict[str, list[tuple[Path, Path]]] = {}
    for name, (file, folder) in zip(names, pairs, strict=True):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise InputError(
                f"--splits: '{name}' is no name for a split; give one for each of --annotations, "
                "of letters and digits"
            )
        source = _folder("--annotations", file), _folder("--images", folder)
        if source in sources.setdefault(name, []):
            raise InputError(f"--annotations: {file} is given twice for the split '{name}'")
        sources[name].append(source)
    return [Split(name, *first, tuple(more)) for name, (first, *more) in sources.items()]


def _folder(name: str, text: str) -> Path:
    if not text:
        raise InputError(f"{name}: empty; give a folder")
    if urls.kind(text):
        raise InputError(f"{name}: {urls.kind(text)} URLs are not read; give a folder")
    return Path(text)


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def _say(line: str, begin: str = "autotimm-shard") -> None:
    print_line(f"{begin}: {' '.join(line.split())}", sys.stderr)


def _fail(code: int, message: str, error: BaseException | None = None) -> NoReturn:
    """Prints one line on stderr and exits."""
    _say("; ".join([message, *getattr(error, "__notes__", [])]), "error")
    sys.exit(code)


if __name__ == "__main__":
    main()
