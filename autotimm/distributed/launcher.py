"""What torchrun or srun has started: the one place that reads their environment variables.

A launcher's word on the number of processes goes before Lightning's guess, and a flag that
contradicts it is refused: fewer processes than planned would train on without a word.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment

from autotimm.structures import InputError

_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Set by hand or by schedulers for torch.distributed; by mpirun of OpenMPI, MPICH and MVAPICH."""


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
        local, world = _number("LOCAL_WORLD_SIZE"), _number("WORLD_SIZE")
        nodes = _number("GROUP_WORLD_SIZE")
        if world != local * nodes:
            raise InputError(
                f"torchrun has started {world} processes on {nodes} nodes, {local} of them on this "
                "one: give the same --nproc-per-node on every node"
            )
        return Launcher("torchrun", "--nproc-per-node", local, nodes)
    if SLURMEnvironment.detect():
        tasks, nodes = _number("SLURM_NTASKS"), _number("SLURM_NNODES")
        # Lightning asks for it, though srun given --ntasks tells the same in other words.
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(tasks // nodes))
        if tasks > 1 and not _by_srun():
            raise InputError(
                f"the job is one of {tasks} tasks, but this process was not started by srun, and "
                "would wait for the others: put srun before python"
            )
        # As in "2(x3),1": three nodes of 2, one of 1.
        each = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
        if tasks % nodes or "," in each:
            raise InputError(
                f"srun has started {tasks} tasks on {nodes} nodes, not as many on each"
                f"{f' ({each})' if each else ''}: give --ntasks-per-node"
            )
        return Launcher("srun", "--ntasks-per-node", tasks // nodes, nodes)
    return None


def rank_and_size() -> tuple[int, int]:
    """This process's rank among those that torchrun or srun has started with it, and how many these
    are, even or not; 0 and 1 by hand."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _number("RANK"), _number("WORLD_SIZE")
    if _by_srun() and SLURMEnvironment.detect():
        return _number("SLURM_PROCID"), _number("SLURM_NTASKS")
    return 0, 1


def _number(name: str) -> int:
    value = os.environ.get(name, "nothing")
    if not value.isdecimal():
        raise InputError(
            f"the environment variable {name} is {value}, where torchrun or srun leaves a number: "
            "unset what else is there of an earlier job's (TORCHELASTIC_RUN_ID, SLURM_*)"
        )
    return int(value)


def _by_srun() -> bool:
    """A batch script has the job's variables too, but not those of a step."""
    return "SLURM_STEP_ID" in os.environ


def launcher_world(
    devices: list[int] | str | int,
    num_nodes: int,
    accelerator: str = "auto",
    own_environment: bool = False,
) -> tuple[list[int] | str | int, int]:
    """``devices`` and ``num_nodes`` of the trainer, as the launcher has it where there is one.

    Lightning alone takes one CPU process for granted, and each process would train on its own.

    Args:
        devices: as the user gave them.
        num_nodes: likewise.
        accelerator: likewise.
        own_environment: whether the user brings a ClusterEnvironment, which knows of others.

    Raises:
        InputError: they contradict the launcher, or are no number; or another launcher, which is
            not known here, has started this process as one of several.
    """
    launcher = find_launcher()
    if launcher is None:
        on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
        # For which Lightning has a TypeError.
        if on_cpu and devices != "auto" and not re.fullmatch(r"[1-9]\d*", str(devices)):
            raise InputError(
                f"devices={devices!r} is no number of CPU processes: give 1 or more, or none"
            )
        if not own_environment:
            _check_alone(_count(devices, on_cpu) * num_nodes)
        return devices, num_nodes
    name, flag, local, nodes = launcher
    given = devices not in ("auto", -1, "-1")
    if not given:
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
    if accelerator in ("auto", "gpu", "cuda") and (gpus := torch.cuda.device_count()):
        _check_gpus(launcher, gpus, given)
    return devices, nodes


def _count(devices: list[int] | str | int, on_cpu: bool) -> int:
    """How many processes Lightning makes of ``devices`` on a node."""
    if devices in ("auto", -1, "-1"):
        return 1 if on_cpu else max(1, torch.cuda.device_count())
    if isinstance(devices, list):
        return len(devices)
    numbers = str(devices).strip(",").split(",")  # as in "0,1"
    if len(numbers) > 1 or not numbers[0].isdecimal():  # what is no number, Lightning refuses
        return len(numbers)
    return int(numbers[0])


def _check_alone(planned: int) -> None:
    """Looks whether this process is one of several, each of which would train on its own.

    Lightning sets WORLD_SIZE and LOCAL_RANK, too, for the processes that it starts itself.

    Args:
        planned: processes that Lightning knows of.

    Raises:
        InputError: it is; with the variable that says so.
    """
    env = os.environ
    by_lightning = "LOCAL_RANK" in env and "RANK" not in env
    for name in _SIZES:
        size = env.get(name) or "1"
        ours = by_lightning and name == "WORLD_SIZE" and size == str(planned)
        if size != "1" and not ours:
            raise InputError(
                f"{name}={size}, but neither torchrun nor srun has started this process: each "
                "would train alone, into the same run. Start it with torchrun "
                f"(--nproc-per-node={size} on one node) or srun, or unset {name}"
            )
    if env.get("RANK", "0") != "0":
        raise InputError(
            f"RANK={env['RANK']}, but neither torchrun nor srun has started this process, which "
            "would train and write nothing: start it with torchrun or srun, or unset RANK"
        )


def _check_gpus(launcher: Launcher, gpus: int, given: bool) -> None:
    """Looks whether each process has a GPU and each GPU of a SLURM job a process.

    Args:
        launcher: of the processes.
        gpus: that this process sees.
        given: whether the user has said how many are to be used.
    """
    name, flag, local, _ = launcher
    if local > gpus:
        raise InputError(
            f"{name} has started {local} processes on this node, of which this one sees {gpus} "
            f"GPU{'s' * (gpus > 1)}: give {flag}={gpus}, or let every process see all GPUs of its "
            "node (--gpus-per-node, not --gpus-per-task)"
        )
    if name == "srun" and local < gpus and not given:
        raise InputError(
            f"srun has started {local} task{'s' * (local > 1)} on this node, which has {gpus} "
            f"GPUs: give {flag}={gpus}, or devices={local} to leave the others idle"
        )


class Launch(NamedTuple):
    """What a user asked for once, and a launcher may start more than once.

    Attributes:
        id: of srun's step, the same for every start of it, and for nothing else; of torchrun the
            id that it was given, which another call may have been given too.
        name: that its run's folder should have; None for the next free ``version_<n>``.
        again: whether srun's step has been started before.
        agent: the torchrun of this node; "" under srun. It lives through all starts of its
            processes, of which it counts those only that it began itself.
        worker: the process that torchrun started: this one, or a script around it; "" under srun.
    """

    id: str
    name: str | None
    again: bool
    agent: str
    worker: str


def find_launch() -> Launch | None:
    """The launch that this process belongs to; None if it was started by hand."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return Launch(f"torchrun-{env['TORCHELASTIC_RUN_ID']}", None, False, *_torchruns())
    if "SLURM_JOB_ID" in env and "SLURM_STEP_ID" in env:  # srun's
        job = env["SLURM_JOB_ID"]
        if "SLURM_ARRAY_TASK_ID" in env:
            job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
        step, again = env["SLURM_STEP_ID"], env.get("SLURM_RESTART_COUNT", "0") != "0"
        return Launch(f"slurm-{job}.{step}", f"job_{job}", again, "", "")
    return None


def _torchruns() -> tuple[str, str]:
    """Names of torchrun's process on this node and of the one that it started: this one, or that of
    a script around it. On systems without ``/proc`` scripts are not seen through."""
    child, parent = os.getpid(), os.getppid()
    while _is_torchruns(parent):
        child, parent = parent, int(_stat(parent)[1])
    return _name_of(parent), _name_of(child)


def _is_torchruns(process: int) -> bool:
    """Whether torchrun has started a process, rather than being it."""
    try:
        return b"TORCHELASTIC_RUN_ID=" in Path(f"/proc/{process}/environ").read_bytes()
    except OSError:  # another user's, or no such folder
        return False


def _name_of(process: int) -> str:
    """Name of a process on this node that no other has: with the time of its start, as containers
    all have the same few numbers."""
    ticks = _stat(process)[19] if Path(f"/proc/{process}/stat").exists() else ""
    return f"{platform.node()}-{process}-{ticks}"


def _stat(process: int) -> list[str]:
    """What Linux tells of a process, from its state on: then the parent, ..., the start."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
