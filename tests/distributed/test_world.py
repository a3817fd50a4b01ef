"""The trainer uses the processes of torchrun or srun, and refuses contradicting arguments."""

from __future__ import annotations

import pytest
import torch

from autotimm import InputError
from autotimm.distributed.launcher import Launcher, find_launcher, launcher_world, rank_and_size


def torchrun(monkeypatch: pytest.MonkeyPatch, local: int, world: int) -> None:
    for name, value in {
        "TORCHELASTIC_RUN_ID": "1",
        "LOCAL_WORLD_SIZE": str(local),
        "WORLD_SIZE": str(world),
        "GROUP_WORLD_SIZE": str(world // local),
    }.items():
        monkeypatch.setenv(name, value)


def test_devices_and_nodes_come_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launcher_world("auto", 1) == ("auto", 1)
    torchrun(monkeypatch, local=4, world=8)
    assert find_launcher() == Launcher("torchrun", "--nproc-per-node", 4, 2)
    assert launcher_world("auto", 1) == (4, 2)
    assert launcher_world([0, 1, 2, 3], 2) == ([0, 1, 2, 3], 2)
    with pytest.raises(InputError, match="devices=1, but torchrun has started 4"):
        launcher_world(1, 1)
    with pytest.raises(InputError, match="num_nodes=3, but torchrun has started 2"):
        launcher_world("auto", 3)


def srun(monkeypatch: pytest.MonkeyPatch, tasks: int, nodes: int, each: str = "") -> None:
    for name in ("SLURM_NTASKS_PER_NODE", "SLURM_JOB_NAME", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "SLURM_NTASKS": str(tasks),
        "SLURM_NNODES": str(nodes),
        "SLURM_PROCID": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_TASKS_PER_NODE": each or f"{tasks // nodes}(x{nodes})",
    }.items():
        monkeypatch.setenv(name, value)


def test_devices_and_nodes_come_from_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    srun(monkeypatch, tasks=8, nodes=2)
    assert launcher_world("auto", 1) == (4, 2)
    assert rank_and_size() == (1, 8)
    with pytest.raises(InputError, match=r"devices=1, but srun has started 4.*ntasks-per-node=1"):
        launcher_world(1, 1)


@pytest.mark.parametrize(("tasks", "each"), [(3, "2,1"), (4, "3,1")])
def test_nodes_with_unequal_tasks_are_refused(
    monkeypatch: pytest.MonkeyPatch, tasks: int, each: str
) -> None:
    srun(monkeypatch, tasks, 2, each)
    with pytest.raises(InputError, match=rf"{tasks} tasks on 2 nodes.*\({each}\).*--ntasks-per"):
        find_launcher()
    assert rank_and_size() == (1, tasks)  # sizes may differ here


def test_nodes_with_unequal_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(monkeypatch, local=2, world=3)
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="3 processes on 2 nodes, 2 of them on this one"):
        find_launcher()


def test_a_job_of_several_tasks_without_srun_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    srun(monkeypatch, tasks=2, nodes=2)
    monkeypatch.delenv("SLURM_STEP_ID")
    with pytest.raises(InputError, match="put srun before python"):
        find_launcher()
    assert rank_and_size() == (0, 1)


def test_every_process_has_a_gpu_and_every_gpu_of_a_job_a_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    srun(monkeypatch, tasks=4, nodes=1)
    assert launcher_world("auto", 1) == (4, 1)
    srun(monkeypatch, tasks=2, nodes=2)
    with pytest.raises(
        InputError, match=r"1 task on this node, which has 4 GPUs.*--ntasks-per-node=4"
    ):
        launcher_world("auto", 1)
    assert launcher_world(1, 1) == (1, 2)
    assert launcher_world("auto", 1, "cpu") == (1, 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    srun(monkeypatch, tasks=4, nodes=1)
    with pytest.raises(InputError, match="4 processes on this node, of which this one sees 1 GPU:"):
        launcher_world("auto", 1)


def test_a_variable_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    srun(monkeypatch, tasks=2, nodes=1)
    monkeypatch.setenv("SLURM_NTASKS", "2(x3)")
    for look in (find_launcher, rank_and_size):
        with pytest.raises(InputError, match=r"SLURM_NTASKS is 2\(x3\), where"):
            look()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="LOCAL_WORLD_SIZE is nothing, where"):
        find_launcher()


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE=2, but neither torchrun nor srun"),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, "WORLD_SIZE=2, .*--nproc-per-node=2"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE=4, "),
        ({"PMI_SIZE": "3"}, "PMI_SIZE=3, "),
        ({"RANK": "1"}, "RANK=1, .*write nothing"),
    ],
)
def test_one_of_several_that_no_known_launcher_started_is_refused(
    variables: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=named):
        launcher_world("auto", 1, "cpu")
    assert launcher_world("auto", 1, "cpu", own_environment=True) == ("auto", 1)
    torchrun(monkeypatch, local=1, world=1)  # such as each process of mpirun
    assert launcher_world("auto", 1, "cpu") == (1, 1)


@pytest.mark.parametrize(
    ("devices", "gpus", "size"),
    [(2, 0, 2), ("2", 0, 2), ([0, 1], 4, 2), ("0,1", 4, 2), ("auto", 4, 4), (-1, 4, 4)],
)
def test_processes_that_lightning_starts_are_accepted(
    devices: list[int] | str | int, gpus: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in {"NODE_RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": str(size)}.items():
        monkeypatch.setenv(name, value)
    assert launcher_world(devices, 1) == (devices, 1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="WORLD_SIZE=3"):
        launcher_world(devices, 1)


def test_variables_for_a_single_process_are_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert launcher_world("auto", 1, "cpu") == ("auto", 1)
