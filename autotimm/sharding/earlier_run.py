"""What an earlier run has left at the destination: all of it, a part to go on with, or an obstacle.

Invariants: shards that are in place are replaced on request alone; an unfinished run goes on if it
was of the same job; a finished shard counts if its images have not changed since.
"""

from __future__ import annotations

import orjson

from autotimm.format.manifest import MANIFEST, Manifest, untrained_names
from autotimm.sharding.destinations.choice import Destination
from autotimm.sharding.destinations.journal import read_entry, read_job_entry
from autotimm.sharding.destinations.locks import Claim
from autotimm.sharding.job import Job, differences, refuse_untrained, stamp
from autotimm.sharding.outcome import Display, Outcome, Written
from autotimm.structures import InputError


def complete(dst: Destination, claim: Claim, manifest: Manifest, strict: bool) -> Outcome:
    """What there is to say where an earlier run has done all of this."""
    splits = {}
    for name, split in manifest.splits.items():
        lost = dst.lacks(split.shards)
        if lost:
            raise InputError(
                f"{dst}: {lost} is missing or of another size; --overwrite writes all anew"
            )
        if strict and split.problems:
            what = "; ".join(f"{kind}: {count:,}" for kind, count in split.problems.items())
            raise InputError(f"--strict: split '{name}': {what}")
        untrained = untrained_names(split, manifest.categories)
        if strict:
            refuse_untrained(name, untrained)
        written = Written(
            split.shards,
            split.images,
            split.instances,
            split.crowd,
            split.ignored,
            sum(shard.bytes for shard in split.shards),
            untrained=untrained,
        )
        for kind, count in split.problems.items():
            written.problems.count(kind, count)
        splits[name] = written
    if claim.alone and dst.job() is not None:
        dst.discard()  # an overwriting run of the same that was stopped
    count = sum(len(w.shards) for w in splits.values())
    return Outcome("complete", splits, manifest, kept=count, pixel_range=manifest.pixel_range)


def begin(job: Job, dst: Destination, claim: Claim, overwrite: bool, display: Display) -> None:
    """Sees that ``dst`` has the journal of this job, be it a new one, or refuses."""
    earlier = read_job_entry(dst.job())
    if earlier is not None and earlier != job.identity():
        changes = "; ".join(differences(earlier, job))
        if not overwrite:
            raise InputError(
                f"{dst}: holds an unfinished run that cannot go on: {changes}; run it as it was, "
                "or discard it with --overwrite"
            )
        if not claim.alone:
            raise InputError(f"{dst}: other parts are being written there, but {changes}")
        display.say(f"{dst}: the unfinished run there is discarded: {changes}")
        earlier = None
    _refuse_held(job, dst, overwrite)
    if earlier is None:
        if not claim.alone:
            raise InputError(f"{dst}: another autotimm-shard is about to write there; try again")
        dst.begin(orjson.dumps(job.identity(), option=orjson.OPT_INDENT_2))


def kept(job: Job, dst: Destination, mine: list[int], display: Display) -> dict[int, Written]:
    """The shards that are written already, and whose images have not changed since."""
    entries = dst.entries([job.plans[k][1].name for k in mine])
    found = {}
    for k in mine:
        name = job.plans[k][1].name
        entry = read_entry(entries[name], name) if name in entries else None
        if entry:
            found[k] = entry
    whole = dst.stored([written for written, _ in found.values()])
    unchanged, changed = {}, []
    for (k, (written, sources)), stored in zip(found.items(), whole, strict=True):
        split, plan = job.plans[k]
        if sources != stamp(job.indices[split], plan):
            changed.append(plan.name)
        elif stored:
            unchanged[k] = written
    if changed:
        more = ", ..." if len(changed) > 3 else ""
        display.say(
            f"images have changed since; written again: {', '.join(changed[:3])}{more} "
            f"({len(changed):,} of {len(found):,} finished shards)"
        )
    return unchanged


def _refuse_held(job: Job, dst: Destination, overwrite: bool) -> None:
    """Refuses to replace shards that are in place, unless that is asked for and can be done."""
    held = dst.holds([*job.splits])
    manifest = dst.manifest()
    why = "; ".join(differences(manifest.source, job)) if manifest and manifest.source else ""
    what = f"{dst}: holds {held} already" + (f" ({why})" if why else "")
    if held == MANIFEST and not dst.replaceable:
        raise InputError(
            f"{what}; replacing it would break its readers: give another URL, or delete it with "
            "the store's own tool"
        )
    if held and not overwrite:
        raise InputError(f"{what}; --overwrite replaces the shards")
