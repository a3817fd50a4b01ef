"""A worker reuses its blocks, but never one of which the main process holds a view."""

import gc
import os
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from autotimm.data import block
from autotimm.data.block import Block

SHAPES = {"number": ("int64", (3,)), "image": ("uint8", (2, 300, 300, 3)), "flag": ("bool", (5,))}
BATCHES = 40
pytestmark = pytest.mark.usefixtures("own_threads")


@pytest.fixture(autouse=True)
def _only_what_the_test_makes_is_collected() -> Iterator[None]:
    """Garbage collection of all imported modules takes half a second, and copies their memory."""
    gc.freeze()
    yield
    gc.unfreeze()


class Numbered(IterableDataset):
    """Yields blocks filled from their number, and the number of blocks that the worker has made."""

    def __init__(self, grows: bool = False) -> None:
        super().__init__()
        self.grows = grows

    def __iter__(self) -> Iterator[tuple[Block, int]]:
        for number in range(BATCHES):
            shapes = SHAPES | {"more": ("float32", (100_000 * number,))} if self.grows else SHAPES
            made = Block.of(shapes)
            for value in made.tensors().values():
                value[...] = number
            yield made, len(block._made)


def loader(workers: int = 1, context: str | None = "fork", **given) -> DataLoader:
    return DataLoader(
        Numbered(**given),
        batch_size=None,
        collate_fn=lambda item: item,
        num_workers=workers,
        multiprocessing_context=context,
    )


def intact(arrays: dict[str, torch.Tensor], number: int) -> bool:
    expected = {"number": number, "image": number, "flag": bool(number)}
    # With NumPy, because PyTorch would wait in a fork for threads that do not exist there.
    return all((arrays[key].numpy() == value).all() for key, value in expected.items())


def test_arrays_lie_one_after_another_aligned() -> None:
    arrays = Block.of(SHAPES).tensors()
    assert {k: (str(v.dtype), tuple(v.shape)) for k, v in arrays.items()} == {
        key: (f"torch.{kind}", shape) for key, (kind, shape) in SHAPES.items()
    }
    first = arrays["number"].data_ptr()
    starts = [v.data_ptr() - first for v in arrays.values()]
    assert starts == [0, 64, 64 + 540_032]


def test_few_blocks_do_where_none_is_kept() -> None:
    counts = []
    for number, (received, made) in enumerate(loader()):
        assert intact(received.tensors(), number)
        counts.append(made)
    assert counts[-1] <= 6  # prefetched, in the queue, and in use


def test_blocks_that_grow_take_the_place_of_those_that_are_too_small() -> None:
    assert max(made for _, made in loader(grows=True)) <= 6


def test_a_batch_that_is_kept_does_not_change() -> None:
    """Keeps one array of each block, a different one each time."""
    turns = list(islice(cycle(SHAPES), BATCHES))
    kept = [received.tensors()[key] for key, (received, _) in zip(turns, loader(), strict=True)]
    gc.collect()
    for number, (key, value) in enumerate(zip(turns, kept, strict=True)):
        assert bool((value == (number > 0 if key == "flag" else number)).all()), (number, key)


PARTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "rows": lambda image: image[1, 7:9],
    "channels first": lambda image: image.permute(0, 3, 1, 2)[1:],
    "NumPy": lambda image: image.numpy()[0, ::2],
    "memoryview": lambda image: memoryview(image.numpy()),
    "storage": lambda image: image.untyped_storage(),
    "DLPack": lambda image: torch.utils.dlpack.to_dlpack(image[0]),
}


def test_a_part_of_an_array_holds_its_block() -> None:
    """Keeps a view of each kind, a different one each time."""
    turns = list(islice(cycle(PARTS), BATCHES))
    kept = [
        PARTS[kind](received.tensors()["image"])
        for kind, (received, _) in zip(turns, loader(), strict=True)
    ]
    gc.collect()
    for number, (kind, part) in enumerate(zip(turns, kept, strict=True)):
        if kind == "DLPack":
            part = torch.utils.dlpack.from_dlpack(part)
        elif kind == "storage":
            part = part[:9]
        assert np.asarray(part).flatten()[0] == number, (number, kind)


def test_a_block_that_is_never_opened_is_let_go() -> None:
    assert max(made for _, made in loader()) <= 6


def test_a_fork_that_drops_a_block_does_not_let_go_of_it() -> None:
    received, _ = next(iter(loader()))
    memory, arrays = received._memory, received.tensors()
    child = os.fork()
    if not child:
        del received, arrays
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert memory[0] == block._HELD
    assert intact(arrays, 0)
    del received, arrays
    assert memory[0] == block._LOST


def test_a_fork_keeps_its_batches() -> None:
    batches = iter(loader())
    received, _ = next(batches)
    arrays = received.tensors()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)  # waits for the main process
        os._exit(0 if intact(arrays, 0) else 1)
    os.close(reading)
    del received, arrays
    counts = [made for _, made in batches]
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0
    assert counts[-1] <= 6


@pytest.mark.filterwarnings("error")
def test_a_batch_of_inference_mode_is_freed_outside_of_it() -> None:
    with torch.inference_mode():
        received, _ = next(iter(loader()))
        memory = received._memory.numpy()
        held = received.tensors()["image"][0]
    del received
    assert memory[0] == block._HELD
    del held  # an exception in the finalizer would only be a warning
    gc.collect()
    assert memory[0] == block._FREE


def test_blocks_that_were_kept_once_are_given_up() -> None:
    kept, counts = [], []
    for number, (received, made) in enumerate(loader()):
        kept.append(received)
        if number == 25:
            kept.clear()
        counts.append(made)
    assert max(counts) > 25
    assert counts[35] <= block._IDLE + 16


def test_no_more_is_pinned_than_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for length in (300_000, 500_000, 10):
        monkeypatch.setattr(block, "get_worker_info", lambda: "a worker")
        made.append(Block.of({"flat": ("uint8", (length,))}))
        made[-1]._memory[block._STATE] = block._FREE
    assert [len(b._memory) // 1000 for b in made] == [300, 500, 0]
    assert made[1]._memory.data_ptr() == made[2]._memory.data_ptr()
    block._made.clear()


def test_another_way_to_share_memory() -> None:
    strategy = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        kept = [received.tensors() for received, _ in loader()]
        assert all(map(intact, kept, range(BATCHES)))
    finally:
        torch.multiprocessing.set_sharing_strategy(strategy)
