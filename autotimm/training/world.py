"""What torchrun or srun has started: the one place that reads their environment variables.

A launcher's word on the number of processes goes before Lightning's guess, and a flag that
contradicts it is refused: fewer processes than planned would train on without a word.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from lightning.pytorch.plugins.environments import SLURMEnvironment

from autotimm.structures import InputError


class Launcher(NamedTuple):
    """Who started this process, and how many with it.

    Attributes:
        name: ``torchrun`` or ``srun``.
        flag: its flag for the number of processes on a node.
        local: processes on this node.
        nodes: nodes.
    """

    name: str
    flag: str
    local: int
    nodes: int


def find_launcher() -> Launcher | None:
    """The launcher of this process; None where it was started by hand."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return Launcher("torchrun", "--nproc-per-node", local, world // local)
    if SLURMEnvironment.detect():
        tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NNODES"])
        if tasks % nodes:
            raise InputError(
                f"srun has started {tasks} tasks on {nodes} nodes, which does not divide: give "
                f"--ntasks-per-node"
            )
        return Launcher("srun", "--ntasks-per-node", tasks // nodes, nodes)
    return None


def launcher_world(
    devices: list[int] | str | int, num_nodes: int
) -> tuple[list[int] | str | int, int]:
    """``devices`` and ``num_nodes`` of the trainer, as the launcher has it where there is one.

    Lightning alone takes one CPU process for granted, and each process would train on its own.

    Raises:
        InputError: they contradict the launcher.
    """
    launcher = find_launcher()
    if launcher is None:
        return devices, num_nodes
    name, flag, local, nodes = launcher
    if devices in ("auto", -1, "-1"):
        devices = local
    count = len(devices) if isinstance(devices, list) else devices
    if str(count) != str(local):
        raise InputError(
            f"devices={devices}, but {name} has started {local} processes on this node: leave "
            f"devices out, or give {flag}={count}"
        )
    if num_nodes not in (1, nodes):
        raise InputError(
            f"num_nodes={num_nodes}, but {name} has started {nodes}: leave num_nodes out"
        )
    return devices, nodes
