"""The arguments of ``autotimm-shard``: its flags, its help, what makes no sense together."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from typing import Literal, NoReturn

from autotimm import __version__
from autotimm.files.units import byte_count
from autotimm.images.depth import checked_range
from autotimm.near_names import unknown_flag
from autotimm.sharding.outcome import Part
from autotimm.sharding.summary import print_line
from autotimm.structures import InputError

_EPILOG = """\
SRC holds annotations/instances_<split>.json and the images in <split>/ or images/<split>/, <split>
being train2017, val2017, train, ...; or what Roboflow, CVAT, Label Studio, FiftyOne and others
export, as it is. DST gets <split>-000000.tar, ..., an index beside each, and manifest.json.

What is odd in SRC is counted in the closing summary: an image or instance that cannot be used is
left out, the rest goes on. An instance needs a mask: boxes alone train none.

A run that was stopped in any way goes on when the same command is run again. The same source and
options give the same bytes, whatever --workers and --part say and however often it was stopped.

Many machines: each runs the command with its own --part, 1/8 to 8/8; the same command without
--part then writes what is missing and the manifest.

Exit codes: 0 done, 1 --verify found damage, 2 the input cannot be used or DST not be written (one
line on stderr), 130 interrupted (Ctrl-C), 143 terminated (SIGTERM); the same where nobody reads
stdout to its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """What the command line asks for: the flags by their names, without dashes.

    Attributes:
        folders: what stands without a flag: SRC and DST, or DST alone (``annotations`` is not
            None), or SHARDS (``verify``); DST may be missing with ``dry_run``.
        max_shard_size: in bytes.

    Raises:
        InputError: flags that make no sense together, by name.
    """

    folders: list[str]
    splits: list[str] | None
    annotations: list[str] | None
    images: list[str] | None
    samples_per_shard: int | None
    max_shard_size: int | None
    shuffle: int | None
    pixel_range: tuple[float, float] | None
    limit: int | None
    boxes: Literal["given", "mask"] | None
    crowd: Literal["keep", "instance"] | None
    workers: int | None
    part: Part | None
    overwrite: bool
    strict: bool
    dry_run: bool
    verify: bool
    json: bool

    def __post_init__(self) -> None:
        chosen = {one.name: getattr(self, one.name) for one in fields(self)}
        given = {name for name, value in chosen.items() if value not in (None, False, [])}
        given -= {"folders", "json", "workers", "strict"}
        if self.verify:
            self._check_verify(given - {"verify"})
            return
        for name in ("overwrite", "part"):
            if self.dry_run and name in given:
                raise InputError(f"--{name}: not with --dry-run, which writes nothing")
        if (self.annotations is None) != (self.images is None):
            name, other = ("images", "annotations") if self.images else ("annotations", "images")
            raise InputError(f"--{name}: needs --{other}, whose files and folders belong to them")
        self._check_folders()

    def _check_verify(self, others: set[str]) -> None:
        for name in sorted(others):
            raise InputError(f"{_flag(name)}: not with --verify, which only looks at what is there")
        if self.strict:
            raise InputError("--strict: not with --verify, to which any damage is an error")
        if len(self.folders) != 1:
            raise InputError("--verify: takes one folder: autotimm shard --verify SHARDS")

    def _check_folders(self) -> None:
        count, wanted = len(self.folders), ["DST"] if self.annotations else ["SRC", "DST"]
        if count < len(wanted) - self.dry_run:
            raise InputError(f"{wanted[count]}: is missing: autotimm shard {' '.join(wanted)}")
        if count > len(wanted):
            hint = "; with --annotations, DST is the only folder" if self.annotations else ""
            raise InputError(f"{self.folders[len(wanted)]}: one argument too many{hint}")


def parse(arguments: Sequence[str] | None) -> Arguments:
    """Parses the command line.

    Raises:
        InputError: a flag is unknown, has a value that it cannot have, or one that makes no sense
            with another, or is given twice.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    flags = parser()
    # argparse would first speak of what is missing, where a flag may be misspelt.
    unknown = unknown_flag(arguments, flags._option_string_actions)
    if unknown is not None:
        raise InputError(f"{unknown} ({flags.prog} --help lists the flags)")
    given = vars(flags.parse_args(arguments))
    _refuse_repeated(arguments)
    if (size := given["max_shard_size"]) is not None:
        given["max_shard_size"] = byte_count("--max-shard-size", size)
    if (values := given["pixel_range"]) is not None:
        given["pixel_range"] = checked_range("--pixel-range", values)
    return Arguments(**given)


def _refuse_repeated(arguments: Sequence[str]) -> None:
    """Refuses a flag that is there twice: the later one would win without a word."""
    seen = set()
    for word in takewhile(lambda word: word != "--", arguments):
        flag = re.match("--[a-z-]+(?==|$)", word)
        if flag and flag[0] in seen:
            raise InputError(f"{flag[0]}: is given more than once")
        if flag and flag[0] not in ("--annotations", "--images"):
            seen.add(flag[0])


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    made = _Parser(
        prog="autotimm-shard",
        usage="autotimm-shard [options] SRC DST\n"
        "       autotimm-shard [options] --annotations FILE --images FOLDER ... DST\n"
        "       autotimm-shard --verify SHARDS",
        description="Writes a COCO folder as WebDataset shards for training.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add(
        "folders",
        metavar="SRC DST",
        nargs="*",
        help="a folder in COCO's layout; a folder or URL "
        "(s3://..., what fsspec writes to) for the shards, made if it is missing",
    )
    add("--splits", type=_names, metavar="A,B", help="only these, e.g. train,val (default: all)")
    add(
        "--annotations",
        action="append",
        metavar="FILE",
        help="an annotation file, instead of SRC; may be repeated, and --splits then names them: "
        "files that get one name (train,train) are joined",
    )
    add(
        "--images",
        action="append",
        metavar="FOLDER",
        help="the images of the --annotations in the same place, or of all",
    )
    add("--samples-per-shard", type=_count, metavar="N", help="at most (1000)")
    add(
        "--max-shard-size",
        metavar="SIZE",
        help="at most, e.g. 1GB, or bytes (512MiB); whichever comes first",
    )
    add(
        "--shuffle",
        type=_seed,
        metavar="SEED",
        help="deal the images of a split in a random "
        "order that this number decides, so that neighbours are not from one video",
    )
    add(
        "--pixel-range",
        metavar="LOW,HIGH",
        help="values that become black and white in images of more than 8 bits a channel whose "
        "files do not declare their bits (default: what the images have)",
    )
    add(
        "--limit",
        type=_count,
        metavar="N",
        help="only the first N images of each split, of the shuffled ones with --shuffle",
    )
    add(
        "--boxes",
        choices=("given", "mask"),
        help="given (the default): as SRC has them, those far from their mask counted; mask: the "
        "masks' own",
    )
    add(
        "--crowd",
        choices=("keep", "instance"),
        help="what iscrowd: 1 is: keep (the default): a crowd, which is not trained on; instance: "
        "an ordinary instance, for masks whose exporter calls all of them crowds",
    )
    add(
        "--workers",
        type=_count,
        metavar="N",
        help="processes (default: as many as CPUs, at most 8; the shards do not depend on it)",
    )
    add("--part", type=_part, metavar="I/N", help="only the I-th of N shares, without a manifest")
    add(
        "--overwrite",
        action="store_true",
        help="replace the shards of DST once all is written, "
        "or an unfinished run of something else",
    )
    add("--strict", action="store_true", help="anything odd in SRC is an error")
    add(
        "--dry-run",
        action="store_true",
        help="read and check everything, write nothing; DST may be left out",
    )
    add(
        "--verify",
        action="store_true",
        help="check the shards in a folder: every checksum, count, record, mask and image",
    )
    add("--json", action="store_true", help="the summary as one JSON object, for programs")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    return made


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "))

    def _print_message(self, message: str, file: object = None) -> None:
        print_line(message.removesuffix("\n"), sys.stdout)  # help and version


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"names with commas between them (a,b), not {text!r}")
    return names


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,15}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number from 1, not {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not re.fullmatch("[0-9]{1,19}", text):
        raise argparse.ArgumentTypeError(f"a whole number from 0, not {text!r}")
    return int(text)


def _part(text: str) -> Part:
    match = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"1/8 to 8/8 for eight machines, not {text!r}")
    return Part(int(match[1]), int(match[2]))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
