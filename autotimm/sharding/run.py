"""A run of ``autotimm-shard``: what is missing is written by some processes, then put in place.

Invariants: the unit of work is a shard, whose bytes follow from the job alone; what is finished is
in the destination's journal, and stays there when the run is stopped in any way, so that the same
run goes on where it was. No image data is held here, only what is known of each shard.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from autotimm.coco.layouts import Split
from autotimm.coco.remarks import lost_instances
from autotimm.format.manifest import Manifest, SplitInfo, lacking
from autotimm.images.depths import Depths
from autotimm.sharding import earlier_run
from autotimm.sharding.destinations.choice import Destination
from autotimm.sharding.destinations.journal import entry_bytes, read_job_entry
from autotimm.sharding.destinations.locks import Claim
from autotimm.sharding.job import Job, Options, read_job, refuse_problems, stamp
from autotimm.sharding.outcome import Display, Outcome, Part, Terminated, Written
from autotimm.sharding.processes import Progress, RunTasks, worker_pool
from autotimm.sharding.shared import shared_images
from autotimm.sharding.writer import write_shard
from autotimm.structures import InputError

_MOST_WORKERS = 8  # by default: beyond, disks are what limits


def shard(
    splits: Sequence[Split],
    dst: Destination | None,
    options: Options,
    *,
    workers: int | None = 1,
    overwrite: bool = False,
    strict: bool = False,
    part: Part | None = None,
    display: Display | None = None,
) -> Outcome:
    """Writes the shards of some splits, or goes on with it.

    Args:
        splits: what to write.
        dst: where the shards go; None for a dry run, in which everything is read and checked.
        options: how to cut the splits into shards.
        workers: how many processes write; None for as many as there are usable CPUs, at most 8.
        overwrite: replace the shards that ``dst`` holds, once the new ones are whole; discard an
            unfinished run of another source or with other options.
        strict: anything odd in the source is an error.
        part: write this share only, without a manifest.
        display: how to tell what is done.

    Raises:
        InputError: the input cannot be used, and ``dst`` holds what it held.
        OSError: it cannot be written, or a worker died. What is finished is kept.
    """
    begun = time.perf_counter()
    display = display or Display()
    if dst is not None:
        dst.check([split.name for split in splits], overwrite)
    job = read_job(splits, options, strict, display.waiting)
    mine = [k for k in range(len(job.plans)) if part is None or k % part.of == part.which - 1]
    if dst is None:
        outcome = Outcome("dry run", {}, workers=_pool_size(workers, mine, dst))
        with worker_pool(_Work(job, None, False), outcome.workers) as run_tasks:
            done = _write(job, mine, {}, run_tasks, strict, display, outcome)
        outcome.splits = _merged(job, done)
        _refuse_empty(job, outcome.splits)
        _add_shared(job, done, outcome.splits, strict)
        outcome.pixel_range = _pixel_range(job, outcome.splits)
    else:
        with dst.claim((part.which, part.of) if part else None) as claim:
            outcome = _run(job, dst, claim, mine, workers, overwrite, strict, part, display)
    outcome.seconds = time.perf_counter() - begun
    return outcome


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run(
    job: Job,
    dst: Destination,
    claim: Claim,
    mine: list[int],
    workers: int | None,
    overwrite: bool,
    strict: bool,
    part: Part | None,
    display: Display,
) -> Outcome:
    names = [job.plans[k][1].name for k in mine]
    outcome = Outcome("part" if part else "written", {}, workers=_pool_size(workers, mine, dst))
    done: dict[int, Written] = {}
    begun = False
    try:
        # Workers are forked before a store is asked for anything: fsspec then starts a thread.
        # They have the lock too, so that it is held until the last of a killed run is gone.
        spare = 2 * outcome.workers <= usable_cpus()
        with worker_pool(_Work(job, dst, spare), outcome.workers) as run_tasks:
            manifest = dst.manifest()
            if manifest and manifest.source == job.source and not overwrite:
                for name in manifest.splits:
                    if lost := lacking(manifest, name):
                        display.say(f"{dst}: split '{name}': {lost} (--overwrite)")
                return earlier_run.complete(dst, claim, manifest, strict)
            earlier_run.begin(job, dst, claim, overwrite, display)
            if part:
                claim.share()
                if read_job_entry(dst.job()) != job.identity():
                    raise InputError(f"{dst}: another autotimm-shard began to write there")
            begun = True
            dst.sweep(names)
            done.update(earlier_run.kept(job, dst, mine, display))
            outcome.kept = sum(len(written.shards) for written in done.values())
            _write(job, mine, done, run_tasks, strict, display, outcome)
        outcome.splits = _merged(job, done)
        outcome.pixel_range = _pixel_range(job, outcome.splits)
        if part is None:
            _refuse_empty(job, outcome.splits)
            _add_shared(job, done, outcome.splits, strict)
            outcome.manifest = _manifest(job, outcome.splits)
            dst.install(outcome.manifest)
    except InputError:
        if begun and part is None:  # the source has to change: there is nothing to go on with
            dst.discard()
        raise
    except (KeyboardInterrupt, Terminated, OSError) as error:
        if begun:
            with contextlib.suppress(OSError):
                dst.sweep(names)
            error.add_note(
                f"{len(done):,} of {len(mine):,} shards are finished and kept: run the same "
                "command again to go on"
            )
        raise
    return outcome


def _pool_size(workers: int | None, mine: list[int], dst: Destination | None) -> int:
    """How many processes write."""
    most = min(usable_cpus(), _MOST_WORKERS) if workers is None else workers
    if dst is not None and dst.one_process:
        if workers is not None and workers > 1:
            raise InputError(f"--workers: {dst} is seen by one process only")
        most = 1
    return max(1, min(most, len(mine)))


def _write(
    job: Job,
    mine: list[int],
    done: dict[int, Written],
    run_tasks: RunTasks[Written],
    strict: bool,
    display: Display,
    outcome: Outcome,
) -> dict[int, Written]:
    """Writes the shards that are not done; ``done`` gets what was written, by number."""
    if strict:
        for k, written in done.items():
            refuse_problems(job.plans[k][0], written.problems)
    todo = [k for k in mine if k not in done]
    with display.bar(sum(len(job.plans[k][1].samples) for k in todo)) as progress:
        for k, written in run_tasks(todo, progress):
            done[k] = written
            outcome.new += bool(written.images)  # else none can be used, and it is no shard
            outcome.images += written.images
            if strict:
                refuse_problems(job.plans[k][0], written.problems)
    return done


@dataclass(frozen=True, slots=True)
class _Work:
    """Writes the shard of a number; goes to the workers."""

    job: Job
    dst: Destination | None
    thread: bool  # whether CPUs are left for one more thread of each worker

    def __call__(self, k: int, progress: Progress) -> Written:
        split, plan = self.job.plans[k]
        index = self.job.indices[split]
        if self.dst is None:
            return write_shard(None, plan, index, progress)
        sources = stamp(index, plan)  # before they are read: what changes meanwhile is noticed
        with self.dst.room() as folder:
            written = write_shard(folder, plan, index, progress, self.thread)
            self.dst.keep(folder, written, plan.name, entry_bytes(written, sources))
        return written


def _merged(job: Job, done: dict[int, Written]) -> dict[str, Written]:
    """What was written of each split, in the plan's order, whatever the order of writing."""
    splits = {name: Written() for name in job.splits}
    for name, written in splits.items():
        written.problems.update(job.indices[name].problems)
        written.untrained = job.indices[name].untrained()
    for k in sorted(done):
        splits[job.plans[k][0]].add(done[k])
    return splits


def _add_shared(
    job: Job, done: dict[int, Written], splits: dict[str, Written], strict: bool
) -> None:
    """Counts the images that splits share, which only the whole of all shards shows."""
    for name, problems in shared_images(job, done).items():
        if strict:
            refuse_problems(name, problems)
        splits[name].problems.update(problems)


def _refuse_empty(job: Job, splits: dict[str, Written]) -> None:
    for name, written in splits.items():
        if not written.images:
            why = "; ".join(written.problems.lines())
            raise InputError(f"{job.splits[name].annotation_file}: no image can be used: {why}")
        lost = lost_instances(written.instances, written.problems)
        if lost:
            raise InputError(f"{job.splits[name].annotation_file}: {lost}")


def _pixel_range(job: Job, splits: dict[str, Written]) -> tuple[float, float] | None:
    """The range of the images of more than 8 bits: the one given, or that of all splits."""
    depths = Depths()
    for written in splits.values():
        depths.update(written.depths)
    return depths.pixel_range() if job.pixel_range is None else job.pixel_range


def _manifest(job: Job, splits: dict[str, Written]) -> Manifest:
    return Manifest(
        job.categories,
        {
            name: SplitInfo(
                w.images,
                w.instances,
                w.crowd,
                w.problems.counts,
                w.shards,
                w.ignored,
                job.indices[name].untrained_ids(),
            )
            for name, w in splits.items()
        },
        source=job.source,
        pixel_range=_pixel_range(job, splits),
    )
