"""Workers that hang before they begin are killed and started anew, once."""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.live import Live
from torch.utils.data import DataLoader

from autotimm.streaming import starting
from autotimm.streaming.starting import Starter
from autotimm.streaming.workers import write_directly
from autotimm.structures import InputError


class Numbers:
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return index


def hanging(worker: int, begun: Any, turns: str, folder: Path, times: int) -> None:
    """As ``begin``; the second worker hangs before it, as often as said."""
    if worker == 1 and len(list(folder.iterdir())) < times:
        (folder / str(os.getpid())).touch()
        while True:
            time.sleep(1)
    starting_begin(worker, begun, turns)


starting_begin = starting.begin


def loader(more: dict[str, Any], **options: Any) -> DataLoader:
    options |= {"num_workers": 2, "batch_size": 2, "collate_fn": np.array}
    return DataLoader(Numbers(), **options, **more)  # type: ignore[arg-type]


@pytest.fixture
def hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_threads: None):
    """Sets how often the second worker hangs. The patience ends once it does and the first one has
    begun, and not before, so that a busy machine changes nothing."""
    attempts, all_begin = [0], starting._all_begin

    def times(count: int) -> Path:
        def soon(begun: Any, workers: list[Any]) -> bool:
            attempts[0] += 1
            if attempts[0] > count:
                return all_begin(begun, workers)
            while len(list(tmp_path.iterdir())) < attempts[0] or not begun[0]:
                time.sleep(0.01)
            monkeypatch.setattr(starting, "PATIENCE", 0.1)
            try:
                return all_begin(begun, workers)
            finally:
                monkeypatch.setattr(starting, "PATIENCE", patience)

        patience = starting.PATIENCE
        monkeypatch.setattr(starting, "begin", partial(hanging, folder=tmp_path, times=count))
        monkeypatch.setattr(starting, "_all_begin", soon)
        return tmp_path

    return times


def is_alive(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if Path("/proc", path.name).exists()]


@pytest.mark.parametrize("kept", [False, True])
def test_workers_that_begin_are_left_alone(kept: bool, own_threads: None) -> None:
    starter = Starter(partial(loader, persistent_workers=kept), 2)
    for _ in range(3):
        assert [one.tolist() for one in starter.iterator()] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_worker_that_hangs_is_replaced_and_nothing_is_lost(hangs) -> None:
    folder = hangs(1)
    with pytest.warns(UserWarning, match=r"data worker 1 of 2 has not begun .* started anew$"):
        batches = Starter(loader, 2).iterator()
    assert [one.tolist() for one in batches] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert len(list(folder.iterdir())) == 1 and not is_alive(folder)


@pytest.mark.slow  # torch waits for hung workers, 10 s each time
@pytest.mark.filterwarnings("ignore:data worker")
def test_a_worker_that_hangs_twice_is_an_error_with_a_way_out(hangs) -> None:
    folder = hangs(2)
    before = multiprocessing.active_children()
    with pytest.raises(InputError, match=r"data worker 1 of 2 .*: give data\.num_workers 0"):
        Starter(loader, 2).iterator()
    assert len(list(folder.iterdir())) == 2 and not is_alive(folder)
    assert multiprocessing.active_children() == before


def test_a_worker_that_dies_at_its_start_is_left_to_the_loader(
    monkeypatch: pytest.MonkeyPatch, own_threads: None
) -> None:
    monkeypatch.setattr(starting, "begin", lambda *_, **__: os._exit(3))
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* exited unexpectedly|exit code 3"):
        next(Starter(loader, 2).iterator())


def test_a_worker_does_not_wait_for_the_lock_of_a_progress_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parent's thread that draws a bar may hold the lock when a worker is forked."""
    before = sys.stdout, sys.stderr
    with Live(console=Console(file=io.StringIO(), force_terminal=True)):
        assert sys.stdout is not before[0] and sys.stderr is not before[1]
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", sys.stdout)  # put back by the end of the block
            patched.setattr(sys, "stderr", sys.stderr)
            write_directly()
            assert (sys.stdout, sys.stderr) == before
    write_directly()
    assert (sys.stdout, sys.stderr) == before, "without a bar nothing changes"
