"""What a run needs of the machine that it is on: files, shared memory, GPUs, a folder to write to.

Each function looks at one thing, on one rank, before anything is started, and raises InputError
with the way out where it is too little.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from autotimm.files import urls
from autotimm.files.units import byte_text
from autotimm.structures import InputError

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  Linux has it there
_FILES = 256  # what a process has open besides that of its workers
_BF16 = (8, 0)  # compute capability of the first GPUs that have it


def check_open_files(workers: int, prefetch: int) -> None:
    """Raises the limit of open files to what the workers' batches need, where the system lets it.

    A batch on its way from a worker is an open file, and so are the ends of its queues.
    """
    needed = _FILES + workers * (prefetch + 8)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise InputError(
            f"{workers} data workers need {needed} open files, but the limit is {hard} (ulimit "
            "-Hn): have it raised, or lower data.num_workers"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def check_shared_memory(batch_bytes: int, workers: int, prefetch: int, processes: int) -> None:
    """Looks whether the images of the batches that workers make ahead fit into shared memory.

    Args:
        batch_bytes: of the images of one batch.
        workers: on each rank.
        prefetch: batches that each makes ahead.
        processes: ranks on this node.
    """
    if not workers or not SHARED_MEMORY.is_dir():
        return
    needed = batch_bytes * workers * (prefetch + 1) * processes
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise InputError(
            f"the batches of {processes} x {workers} data workers need {byte_text(needed)} of "
            f"shared memory, but {SHARED_MEMORY} has {byte_text(free)} free: give the container "
            "more (--shm-size, --ipc=host), or lower data.num_workers or data.prefetch_factor"
        )


def check_precision(precision: str, device: torch.device) -> None:
    """Looks whether the GPU computes in bfloat16, where that is asked for."""
    if device.type != "cuda" or not precision.startswith("bf16"):
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < _BF16:
        have, want = (".".join(map(str, pair)) for pair in (capability, _BF16))
        raise InputError(
            f"precision {precision} needs a GPU of compute capability {want} or more, but "
            f"{torch.cuda.get_device_name(device)} has {have}: take 16-mixed"
        )


def check_batch(config: dict[str, Any], batch_size: int, accumulate: int, world: int) -> None:
    """Looks whether DeepSpeed's configuration has the batch that the other settings make.

    Args:
        config: of DeepSpeed.
        batch_size: images a step on each rank.
        accumulate: batches of a step of the optimizer.
        world: number of ranks.
    """
    for name, value, made in (
        ("train_micro_batch_size_per_gpu", batch_size, f"data.batch_size={batch_size}"),
        (
            "gradient_accumulation_steps",
            accumulate,
            f"trainer.accumulate_grad_batches={accumulate}",
        ),
        (
            "train_batch_size",
            batch_size * accumulate * world,
            f"data.batch_size={batch_size} x {accumulate} batches x {world} ranks",
        ),
    ):
        if config.get(name, "auto") not in ("auto", value):
            raise InputError(
                f"DeepSpeed's configuration has {name}={config[name]}, but {made} makes {value}: "
                "leave it out there"
            )


def checkpoint_folders(trainer: Trainer) -> list[str]:
    """Where the run will write its checkpoints, or the folders above; empty if it writes none."""
    writers = trainer.checkpoint_callbacks
    if trainer.state.fn != TrainerFn.FITTING or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return []
    given = [writer.dirpath for writer in writers if isinstance(writer, ModelCheckpoint)]
    # Without one of their own they write into the run's, and so does whoever else saves.
    named = [str(folder) for folder in given if folder]
    own = [str(trainer.default_root_dir)] if len(named) < len(writers) else []
    return list(dict.fromkeys(own + named))


@contextlib.contextmanager
def probe(folder: str, least: int) -> Iterator[str]:
    """Writes a file where checkpoints will be, yields its path, and removes it again.

    Yields "" for a folder that is none of this machine's file systems.

    Args:
        folder: which need not exist yet.
        least: bytes that a checkpoint has at least.

    Raises:
        InputError: the folder cannot be written to, or has no room for a single checkpoint.
    """
    if urls.kind(folder):
        yield ""
        return
    target = Path(folder).absolute()
    there = next(path for path in (target, *target.parents) if path.exists())
    try:
        handle, name = tempfile.mkstemp(prefix=".autotimm-probe-", dir=there)
    except OSError as error:
        raise InputError(
            f"{folder}: checkpoints cannot be written there: {there}: {error.strerror}: give "
            "another one (trainer.default_root_dir, or the callback's dirpath)"
        ) from None
    try:
        os.close(handle)
        free = shutil.disk_usage(there).free
        if free < least:
            raise InputError(
                f"{folder}: a checkpoint takes {byte_text(least)} or more, but there is room for "
                f"{byte_text(free)}: make room, or give another one (trainer.default_root_dir, or "
                "the callback's dirpath)"
            )
        yield name
    finally:
        Path(name).unlink(missing_ok=True)


def weight_bytes(model: LightningModule) -> int:
    """Bytes of the model's weights and buffers, which every checkpoint has."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
