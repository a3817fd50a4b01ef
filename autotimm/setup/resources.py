"""The resources that a run needs: open files, shared memory, GPUs, folders to write to.

Each function checks one resource on one rank before the run starts, and raises InputError with the
way out if it does not suffice.
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
from lightning.pytorch.utilities import rank_zero_warn

from autotimm import openmp
from autotimm.files import urls
from autotimm.files.units import byte_text
from autotimm.structures import InputError

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  Linux has it there
_FILES = 256  # open files of a process besides those for its workers
_BF16 = (8, 0)  # compute capability of the first GPUs with bfloat16


def check_open_files(workers: int, prefetch: int) -> None:
    """Increase the limit of open files to what the workers need, if the system allows it.

    Each batch that a worker sends is an open file, and so are the ends of its queues.
    """
    needed = _FILES + workers * (prefetch + 8)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        fewer = ", or lower data.num_workers" if hard >= _FILES else ""
        raise InputError(
            f"a run needs {needed} open files with {workers} data workers, but the limit is {hard} "
            f"(ulimit -Hn): have it raised{fewer}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def check_shared_memory(batch_bytes: int, workers: int, prefetch: int, processes: int) -> None:
    """Check that the prefetched batches fit into shared memory.

    Args:
        batch_bytes: bytes of the images of one batch.
        workers: per rank.
        prefetch: batches that each worker prepares ahead.
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
    """Check that the GPU supports bfloat16 if ``precision`` needs it; warn of a CPU without it."""
    if not precision.startswith("bf16"):
        return
    if device.type == "cpu" and _is_slow_in_bfloat16():
        rank_zero_warn(
            f"precision {precision}: this CPU has no instructions for bfloat16 and takes several "
            f"times as long as with --trainer.precision 32-true"
        )
    if device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < _BF16:
        have, want = (".".join(map(str, pair)) for pair in (capability, _BF16))
        raise InputError(
            f"precision {precision} needs a GPU of compute capability {want} or more, but "
            f"{torch.cuda.get_device_name(device)} has {have}: take 16-mixed"
        )


def _is_slow_in_bfloat16() -> bool:
    """Whether convolutions in bfloat16 fall back to code of one number at a time.

    On x86, oneDNN has such convolutions from AVX-512 on. A CPU with AVX2 alone took 6.3 s for what
    it did in 0.9 s in float32 (96 to 96 channels, 32 x 32, forward and backward).
    """
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.14 has it
    return able.get("architecture") == "x86_64" and not able.get("avx512_f", True)


def check_threads(device: torch.device) -> None:
    """Warn if threads that wait for each other will slow down a run on CPUs that others use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    late = device.type == "cpu" and torch.get_num_threads() > 1 and openmp.was_late()
    if late and os.getloadavg()[0] >= (usable or 1):
        rank_zero_warn(
            "other programs use these CPUs, and torch's threads wait for each other without "
            "giving way, as torch was imported before autotimm: import autotimm first, or set "
            "OMP_WAIT_POLICY=passive"
        )


def check_batch(config: dict[str, Any], batch_size: int, accumulate: int, world: int) -> None:
    """Check that batch sizes in DeepSpeed's configuration match the other settings.

    Args:
        config: of DeepSpeed.
        batch_size: images per batch on each rank.
        accumulate: batches per optimizer step.
        world: the number of ranks.
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
    """The folders for the run's checkpoints, or folders above them; empty if it saves none."""
    writers = trainer.checkpoint_callbacks
    if trainer.state.fn != TrainerFn.FITTING or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return []
    given = [writer.dirpath for writer in writers if isinstance(writer, ModelCheckpoint)]
    # Callbacks without a folder, and those of other classes, save into the run's folder.
    named = [str(folder) for folder in given if folder]
    own = [str(trainer.default_root_dir)] if len(named) < len(writers) else []
    return list(dict.fromkeys(own + named))


@contextlib.contextmanager
def probe(folder: str, least: int) -> Iterator[str]:
    """Write a file into a folder for checkpoints, yield its path, and remove it.

    For a URL, yield "".

    Args:
        folder: which need not exist yet; the file is then written into a folder above it.
        least: the minimum size of a checkpoint in bytes.

    Raises:
        InputError: the folder cannot be written to, or has no room for a checkpoint.
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
    """The bytes of the model's weights and buffers, which every checkpoint contains."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
