"""The folder of a run: its name, and how a restarted launch finds it again.

A launch is a step of a SLURM job, or a call of torchrun. If it restarts after a preemption or a
crash, it continues the same run. Invariants: two launches never share a folder; a restarted launch
finds the folder whose ``run.json`` names it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from autotimm.distributed.launcher import Launch, find_launch
from autotimm.training.newest_link import is_link_to_newest
from autotimm.training.run_name import check_free, check_name
from autotimm.training.run_record import RECORD, order_of, read_record


def folder_name(root: str | Path, given: str | None = None) -> str | None:
    """The name below ``root`` of the folder for this process's run.

    Args:
        root: the folder that contains the runs.
        given: the name that the user gives a new run.

    Returns:
        The folder of an earlier start of the launch, the name that the user or the launch gives to
        a new one, or None for the next free ``version_<n>``.

    Raises:
        InputError: a new run cannot have the given name.
    """
    launch = find_launch()
    own = None if launch is None else find_run(root, launch, [launch.agent])
    if own is not None:
        return own.relative_to(root).as_posix()
    if given is not None:
        check_name(root, given)
        # A new node of a torchrun that starts again does not know the run; begin() asks all nodes.
        if launch is None or not launch.agent:
            check_free(root, given)
        return given
    if launch is None or launch.name is None:
        return None
    # Another step of the job may have taken the name.
    names = [launch.name, *(f"{launch.name}-{n}" for n in range(2, 1000))]
    return next(name for name in names if not (Path(root) / name / RECORD).exists())


def find_run(root: str | Path, launch: Launch, agents: Collection[str]) -> Path | None:
    """The folder of the run that an earlier start of this launch began; None if there was none.

    Args:
        root: the folder that contains the runs.
        launch: of this process.
        agents: the known torchrun processes that have started the ranks.
    """
    if not (launch.again or launch.agent):
        return None
    patterns = (RECORD, f"*/{RECORD}", f"*/*/{RECORD}")
    found = [path for pattern in patterns for path in Path(root).glob(pattern)]
    records = [path for path in found if not is_link_to_newest(root, path)]
    own = []
    for path in records:
        known = read_record(path.parent)
        if launch.agent:
            # Some nodes may be new, but not all. The same worker means an earlier run of this
            # start, which does not count.
            met = not set(agents).isdisjoint(known.get("agents", []))
            earlier = met and known.get("worker") != launch.worker
        else:
            earlier = known.get("launch_id") == launch.id
        if earlier:
            own.append(path)
    # Take the newest: a cluster that is set up again numbers its jobs from one.
    return max((path.parent for path in own), key=order_of, default=None)
