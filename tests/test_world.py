"""What torchrun or srun has started is what the trainer takes, and nothing that contradicts it."""

from __future__ import annotations

import pytest

from autotimm import InputError
from autotimm.training.world import Launcher, find_launcher, launcher_world


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
