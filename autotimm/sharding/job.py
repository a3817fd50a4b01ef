"""The job: the plan of the shards to write, a pure function of source and options.

Invariants: the plan depends on the annotation files, the images' names and sizes, and the options,
but not on the number of workers, on parts, or on what an earlier run has left; so any number of
processes and machines, interrupted however often, write the same shards. A job's ``source``
contains neither times nor paths: the same data in another place is the same job.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autotimm import __version__
from autotimm.coco.checks import Problems, Rules
from autotimm.coco.index import Category
from autotimm.coco.join import Index, load_split
from autotimm.coco.layouts import Split
from autotimm.coco.remarks import untrained_remark
from autotimm.format.manifest import FORMAT, VERSION
from autotimm.sharding.plan import ShardPlan, make_keys, plan_shards, sample_sizes
from autotimm.structures import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The options that, together with the source, determine the bytes of the shards.

    Attributes:
        samples_per_shard: the largest number of samples in a shard.
        max_shard_size: the largest number of bytes in a shard, unless a single image has more.
        limit: write only this many images of each split, the first ones after shuffling.
        shuffle: seed of the order of the images; None for the source's order.
        rules: how boxes and crowds are taken.
        pixel_range: values that become black and white in images of more than 8 bits a channel
            that do not declare their bits; None for the range that these images have. It goes into
            the manifest alone.
    """

    samples_per_shard: int = 1000
    max_shard_size: int = 512 * 2**20
    limit: int | None = None
    shuffle: int | None = None
    rules: Rules = field(default_factory=Rules)
    pixel_range: tuple[float, float] | None = None

    def content(self) -> dict[str, Any]:
        """What a manifest and a journal say of them; of the rules and the pixel range what is not
        as by default, so that shards and runs of versions without them stay what they are."""
        content = asdict(self)
        rules, usual = content.pop("rules"), asdict(Rules())
        pixel_range = content.pop("pixel_range")
        if pixel_range is not None:
            content["pixel_range"] = list(pixel_range)
        return content | {name: rules[name] for name in rules if rules[name] != usual[name]}


@dataclass(frozen=True, slots=True)
class Job:
    """The shards to write.

    Attributes:
        splits: by name, in order.
        indices: of the splits, by name.
        categories: of all splits, sorted by id.
        plans: (split, plan) of every shard, in order.
        source: the options, and checksums of annotations and images.
        pixel_range: of ``Options``.
    """

    splits: dict[str, Split]
    indices: dict[str, Index]
    categories: list[Category]
    plans: list[tuple[str, ShardPlan]]
    source: dict[str, Any]
    pixel_range: tuple[float, float] | None = None

    def identity(self) -> dict[str, Any]:
        """The source and the program's version; an unfinished run resumes only if they agree."""
        return {"format": FORMAT, "version": VERSION, "autotimm": __version__, **self.source}


def read_job(
    splits: Sequence[Split],
    options: Options,
    strict: bool = False,
    waiting: Callable[[str], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Job:
    """Reads the annotations and plans the shards.

    Args:
        splits: the splits to read.
        options: how to divide them into shards.
        strict: raise an error for any problem in the annotations.
        waiting: makes a context manager around a slow step, from a text that describes the step.

    Raises:
        InputError: the input cannot be used.
    """
    indices: dict[str, Index] = {}
    categories: list[Category] = []
    plans: list[tuple[str, ShardPlan]] = []
    sources: dict[str, Any] = {}
    for split in splits:
        with waiting(f"reading {split.annotation_file.name}"):
            index = load_split(split, options.rules, categories)
            categories = _joined(categories, index.categories)
            if strict:
                refuse_problems(split.name, index.problems)
                refuse_untrained(split.name, index.untrained())
            positions = choose(len(index), split.name, options.limit, options.shuffle)
            sizes = sample_sizes(index, positions)
            # Keys are assigned in the file's order, so that shuffling does not rename samples.
            order = sorted(positions)
            names = ((index.file_name(i), index.image_id(i)) for i in order)
            keys = dict(zip(order, make_keys(names), strict=True))
            limits = options.samples_per_shard, options.max_shard_size
            for plan in plan_shards(split.name, [keys[i] for i in positions], sizes, *limits):
                samples = tuple((positions[at], key) for at, key in plan.samples)
                plans.append((split.name, ShardPlan(plan.name, samples)))
            indices[split.name] = index
            sources[split.name] = {
                "annotations": _sha256([file for file, _ in split.sources]),
                "images": _digest(
                    f"{index.file_name(i)}\0{size}\0"
                    for i, size in zip(positions, sizes, strict=True)
                ),
            }
    return Job(
        splits={split.name: split for split in splits},
        indices=indices,
        categories=categories,
        plans=plans,
        source={"options": options.content(), "splits": sources},
        pixel_range=options.pixel_range,
    )


def choose(count: int, split: str, limit: int | None, shuffle: int | None) -> list[int]:
    """Chooses the images to write, and their order.

    The permutation is an argsort of Philox's raw stream, which NumPy guarantees not to change (NEP
    19), unlike ``Generator.permutation``; each split has another one.

    Args:
        count: the number of images in the split.
        split: the split's name.
        limit: the largest number of images to choose.
        shuffle: seed, not negative; None for the source's order.

    Returns:
        Positions in the split's index.
    """
    if shuffle is None:
        return list(range(count if limit is None else min(limit, count)))
    stream = np.random.Philox(np.random.SeedSequence((shuffle, *split.encode())))
    return np.argsort(stream.random_raw(count), kind="stable")[:limit].tolist()


def stamp(index: Index, plan: ShardPlan) -> str:
    """A hash of the sizes and modification times of a shard's image files."""

    def known(path: str) -> str:
        try:
            status = os.stat(path)  # noqa: PTH116 (a Path takes longer to make)
        except OSError:
            return "missing "
        return f"{status.st_size} {status.st_mtime_ns} "

    return _digest(known(index.image_file(position)) for position, _ in plan.samples)


def differences(old: dict[str, Any], job: Job) -> list[str]:
    """Lists the differences between an earlier run's identity and a job's, in a few words each."""
    new = job.identity()
    found = []
    names = {
        "format": "the format",
        "version": "the version of the format",
        "autotimm": "the version of autotimm",
    }
    for key, name in names.items():
        if key in old and old[key] != new[key]:
            found.append(f"{name} was {old[key]}, now {new[key]}")
    options, splits = old.get("options"), old.get("splits")
    if not isinstance(options, dict) or not isinstance(splits, dict):
        return [*found, "its source is not recorded"]
    for name in {**new["options"], **options}:
        then, now = options.get(name), new["options"].get(name)
        if then != now:
            flag = "--" + str(name).replace("_", "-")
            found.append(f"{flag} was {_given(then)}, now {_given(now)}")
    if list(splits) != list(job.splits):
        found.append(f"the splits were {', '.join(splits)}, now {', '.join(job.splits)}")
    for name in job.splits:
        before, after = splits.get(name), new["splits"][name]
        if not isinstance(before, dict):
            continue
        if before.get("annotations") != after["annotations"]:
            found.append(f"{job.splits[name].annotation_file} has changed since")
        elif before.get("images") != after["images"] and not found:
            found.append(f"images of split '{name}' were added, removed or changed in size since")
    return found


def refuse_problems(split: str, problems: Problems) -> None:
    """Raises an InputError if there are any problems, for --strict."""
    if problems.counts:
        raise InputError(f"--strict: split '{split}': {'; '.join(problems.lines())}")


def refuse_untrained(split: str, names: Sequence[str]) -> None:
    """Raises an InputError if there are categories of crowds only: --strict."""
    if names:
        raise InputError(f"--strict: split '{split}': {untrained_remark(names)}")


def _given(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in value)
    return "not given" if value is None else str(value)


def _joined(known: Sequence[Category], more: Sequence[Category]) -> list[Category]:
    """The classes of some splits and of one that was read with these known, sorted by id."""
    by_id = {category.id: category for category in (*more, *known)}
    return [by_id[id_] for id_ in sorted(by_id)]


def _sha256(paths: Sequence[Path]) -> str:
    """Returns the checksum of a file, or of the checksums of several."""
    sums = []
    for path in paths:
        with path.open("rb") as file:
            sums.append(hashlib.file_digest(file, "sha256").hexdigest())
    return sums[0] if len(sums) == 1 else _digest(sums)


def _digest(words: Any) -> str:
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
