"""The folder of a run: how it is named, and how a launch that starts once more finds its own.

A launch is what a user asked for once: a step of a SLURM job, or a call of torchrun. Who starts it
again, after a preemption or a crash, means the same run. Invariants: two launches never share a
folder; a launch that starts again finds the folder in which its ``run.json`` names it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from autotimm.distributed.launcher import Launch, find_launch
from autotimm.training.run_record import RECORD, read_record


def folder_name(root: str | Path) -> str | None:
    """Name below ``root`` of the folder for this process' run: its launch's own where that has one.

    None for the next free ``version_<n>``.
    """
    launch = find_launch()
    if launch is None:
        return None
    own = find_run(root, launch, [launch.agent])
    if own is not None:
        return own.relative_to(root).as_posix()
    if launch.name is None:
        return None
    # Another step of the job may have been here.
    names = [launch.name, *(f"{launch.name}-{n}" for n in range(2, 1000))]
    return next(name for name in names if not (Path(root) / name / RECORD).exists())


def find_run(root: str | Path, launch: Launch, agents: Collection[str]) -> Path | None:
    """The folder below ``root`` in which an earlier start of this launch began its run; None if
    there was none.

    Args:
        root: folder below which the runs lie.
        launch: of this process.
        agents: the torchruns that have started its ranks, as far as they are known.
    """
    if not (launch.again or launch.agent):
        return None
    patterns = (RECORD, f"*/{RECORD}", f"*/*/{RECORD}")
    records = [path for pattern in patterns for path in Path(root).glob(pattern)]
    own = []
    for path in records:
        known = read_record(path.parent)
        if launch.agent:
            # A node may be new, but not all; and this start may have had a run before this one.
            met = not set(agents).isdisjoint(known.get("agents", []))
            earlier = met and known.get("worker") != launch.worker
        else:
            earlier = known.get("launch_id") == launch.id
        if earlier:
            own.append(path)
    # A cluster that was set up anew counts its jobs from one again.
    return max(own, key=lambda path: path.stat().st_mtime).parent if own else None
