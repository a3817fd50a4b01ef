"""The processes that torchrun or srun has started, from their environment variables.

No other module reads these variables. The launcher's number of processes replaces Lightning's
guess, and a flag that contradicts it is refused. Otherwise fewer processes than planned would
silently train.
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
"""Variables with the number of processes: that of torch.distributed, which users and schedulers
set, and those of mpirun in OpenMPI, MPICH and MVAPICH."""


class Launcher(NamedTuple):
    """The launcher of this process, and the processes that it has started.

    Attributes:
        name: ``torchrun`` or ``srun``.
        flag: its flag for the number of processes per node.
        local: the number of processes on this node.
        nodes: the number of nodes.
    """

    name: str
    flag: str
    local: int
    nodes: int


def find_launcher() -> Launcher | None:
    """The launcher of this process; None if it was started by hand.

    Raises:
        InputError: the nodes have different numbers of processes, the variables are invalid, or the
            process belongs to a SLURM job but srun has not started it.
    """
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
        # Lightning needs this variable, which srun does not set with --ntasks.
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(tasks // nodes))
        if tasks > 1 and not _by_srun():
            raise InputError(
                f"the job is one of {tasks} tasks, but this process was not started by srun, and "
                "would wait for the others: put srun before python"
            )
        # "2(x3),1" means three nodes with 2 tasks and one with 1.
        each = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
        if tasks % nodes or "," in each:
            raise InputError(
                f"srun has started {tasks} tasks on {nodes} nodes, not as many on each"
                f"{f' ({each})' if each else ''}: give --ntasks-per-node"
            )
        return Launcher("srun", "--ntasks-per-node", tasks // nodes, nodes)
    return None


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of processes that torchrun or srun has started.

    It does not check whether all nodes have equally many. By hand, these are 0 and 1.
    """
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
    """Whether srun has started this process. A batch script only has the variables of the job."""
    return "SLURM_STEP_ID" in os.environ


def launcher_world(
    devices: list[int] | str | int,
    num_nodes: int,
    accelerator: str = "auto",
    own_environment: bool = False,
) -> tuple[list[int] | str | int, int]:
    """``devices`` and ``num_nodes`` for the trainer, from the launcher if there is one.

    By default, Lightning assumes a single CPU process, and each process would train on its own.

    Args:
        devices: the user's argument.
        num_nodes: the user's argument.
        accelerator: the user's argument.
        own_environment: whether the user gives a ClusterEnvironment, which describes the processes.

    Raises:
        InputError: the arguments contradict the launcher or are not numbers, or an unknown launcher
            has started this process as one of several.
    """
    launcher = find_launcher()
    if launcher is None:
        on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
        # Lightning would raise a TypeError.
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
    """The number of processes per node that Lightning derives from ``devices``."""
    if devices in ("auto", -1, "-1"):
        return 1 if on_cpu else max(1, torch.cuda.device_count())
    if isinstance(devices, list):
        return len(devices)
    numbers = str(devices).strip(",").split(",")  # as in "0,1"
    if len(numbers) > 1 or not numbers[0].isdecimal():  # Lightning refuses other texts
        return len(numbers)
    return int(numbers[0])


def _check_alone(planned: int) -> None:
    """Check that this process is not one of several that would each train on their own.

    Lightning also sets WORLD_SIZE and LOCAL_RANK for the processes that it starts itself.

    Args:
        planned: the number of processes that Lightning knows of.

    Raises:
        InputError: a variable, which the message names, says that there are more processes.
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
    """Check that each process has a GPU, and each GPU of a SLURM job has a process.

    Args:
        launcher: of the processes.
        gpus: the number of GPUs that this process sees.
        given: whether the user has chosen the number of devices.

    Raises:
        InputError: there are too few GPUs or too few processes.
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
    """A step of srun or a call of torchrun, whose processes the launcher may restart.

    Attributes:
        id: of an srun step, unique and the same after a restart; under torchrun its run id, which
            several calls may share.
        name: the name for the run's folder; None for the next free ``version_<n>``.
        again: whether the srun step has been restarted.
        agent: the torchrun process of this node, or "" under srun. It stays the same over restarts
            of its workers, but counts only those restarts that it has caused itself.
        worker: the process that torchrun has started: this one, or a script that runs this one; ""
            under srun.
    """

    id: str
    name: str | None
    again: bool
    agent: str
    worker: str


def find_launch() -> Launch | None:
    """The launch of this process; None if it was started by hand."""
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
    """The names of this node's torchrun process and of the process that it has started.

    The latter is this process or a script that runs it. Without ``/proc``, a script hides torchrun,
    and the names are those of the parent and of this process.
    """
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
    """A unique name of a process on this node.

    It includes the time of its start, because the process numbers in containers are often the same.
    """
    ticks = _stat(process)[19] if Path(f"/proc/{process}/stat").exists() else ""
    return f"{platform.node()}-{process}-{ticks}"


def _stat(process: int) -> list[str]:
    """The fields of ``/proc/<process>/stat`` from the third on: state, parent, ..., start time."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
