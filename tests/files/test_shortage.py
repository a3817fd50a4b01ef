"""Whatever a library raises where memory or a disk is short, one line says what to do."""

from __future__ import annotations

import errno
import os
import textwrap
from pathlib import Path

import cv2
import forked
import numpy as np
import pytest
import torch
from conftest import SAMPLE

from autotimm.files.atomic import whole_file
from autotimm.files.shortage import reason, shortage


def raised(do) -> BaseException:
    with pytest.raises(Exception) as caught:
        do()
    return caught.value


def wrapped() -> None:
    try:
        raise MemoryError
    except MemoryError as error:
        raise ValueError("cannot instantiate") from error


IN_WORKER = MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback")
CUDA = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 4 GiB"
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (raised(lambda: np.empty((10**9, 10**6))), "out of memory: lower"),
        (raised(lambda: torch.empty(10**15)), "out of memory (it tried to allocate 4,000,"),
        (raised(wrapped), "out of memory: lower"),
        (IN_WORKER, "out of memory: lower"),
        (CUDA, "the device is out of memory (it tried to allocate 2.50 GiB): lower"),
        (RuntimeError("CUDA error: out of memory"), "the device is out of memory: lower"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"), "the device is out of memory"),
        (RuntimeError("std::bad_alloc"), "out of memory: lower"),
        (RuntimeError("can't start new thread"), "out of memory: lower"),
        (cv2.error("(-4:Insufficient memory) Failed to allocate 9 bytes"), "out of memory: lower"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory: lower"),
        (ImportError("x.so: failed to map segment from shared object"), "out of memory: lower"),
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space"),
            "shared memory (/dev/shm) is full: use fewer workers",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "a.json"), "a.json: No space left on"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a"), "a: Disk quota exceeded: your quota"),
        (OSError(errno.EFBIG, "File too large", "a"), "a: File too large: its file system or ulim"),
        (OSError(errno.EIO, "Input/output error", "a"), "a: Input/output error: the disk or its"),
        (OSError(errno.EROFS, "Read-only file system", "a"), "a: Read-only file system: it cannot"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device for standard"),
        (OSError(errno.EMFILE, "Too many open files", "a"), "Too many open files: raise ulimit -n"),
        (OSError(errno.ENFILE, "Too many open files in system"), "Too many open files in system:"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "Resource temporarily"),
        (RuntimeError("shapes do not match"), None),
        (ValueError("out of memory is what this text is about"), None),
        (OSError(errno.ENOENT, "No such file or directory", "out of memory.txt"), None),
        (KeyError("x"), None),
    ],
)
def test_a_shortage_is_one_line_with_a_way_out(error: BaseException, line: str | None) -> None:
    found = shortage(error)
    if line is None:
        assert found is None
    else:
        assert found is not None and found.startswith(line) and "\n" not in found


@pytest.mark.parametrize(
    ("verb", "flag"),
    [("predict", "--tile"), ("evaluate", "--num-workers"), ("shard", "--workers")],
)
def test_the_line_names_the_flags_of_the_verb(verb: str, flag: str) -> None:
    assert flag in (shortage(MemoryError(), verb) or "")
    assert "--data.batch_size" in (shortage(MemoryError()) or "")


def test_an_error_of_writing_gets_the_name_of_the_file(tmp_path: Path) -> None:
    def fail() -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError("PytorchStreamWriter failed writing file data/0") from error

    with pytest.raises(RuntimeError) as caught, whole_file(tmp_path / "a.bin"):
        fail()
    assert (shortage(caught.value) or "").startswith(f"{tmp_path / 'a.bin'}: No space left")
    assert not list(tmp_path.iterdir())


def test_a_reason_has_the_way_out_only_where_a_disk_is_short() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "a")
    assert reason(full) == "No space left on device: free some room there, or choose another folder"
    assert reason(OSError(errno.EACCES, "Permission denied", "a")) == "Permission denied"
    assert reason(OSError("what a library says")) == "what a library says"


LIMITED = """
import resource, sys
from autotimm.cli.main import main
import autotimm.cli.lightning_cli, autotimm.inference.predict, autotimm.sharding.cli
kind, more, *words = sys.argv[1:]
if kind == "AS":
    with open("/proc/self/statm") as file:
        more = int(file.read().split()[0]) * resource.getpagesize() + int(more)
limit = getattr(resource, f"RLIMIT_{kind}")
resource.setrlimit(limit, (int(more), int(more)))
sys.argv = ["autotimm", *words]
main()
"""
FIT = [
    *("fit", f"--data.data_dir={SAMPLE}", "--model.init_args.backbone=test_resnet"),
    *("--model.init_args.pretrained=false", "--model.init_args.compile_model=false"),
    *("--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.logger=csv"),
]


def limited(kind: str, more: int, *words: object, cwd: Path) -> tuple[int, str]:
    done = forked.run("-c", textwrap.dedent(LIMITED), kind, more, *words, cwd=cwd)
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_out_of_host_memory_is_one_line(workers: int, tmp_path: Path) -> None:
    size = [f"--data.num_workers={workers}", "--data.batch_size=8", "--data.image_size=4096"]
    code, said = limited("AS", 400_000_000, *FIT, *size, cwd=tmp_path)
    errors = [line for line in said.splitlines() if "error: " in line]
    assert code == 2 and "Traceback" not in said, said[-3000:]
    assert len(errors) == 1 and "out of memory" in errors[0] and "--data.batch_size" in errors[0]


@pytest.mark.slow
def test_a_full_disk_names_the_file(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    """By a limit on the size of files, which fails as a full disk does, but for the number."""
    words = {
        "fit": [*FIT, "--data.image_size=64", "--data.num_workers=0"],
        "evaluate": ["evaluate", "--checkpoint", checkpoint, "--data", SAMPLE, "--num-workers", 0],
        "predict": ["predict", photos, "--checkpoint", checkpoint, "--out", "found"],
        "preview": ["preview", "--data", SAMPLE, "--image-size", 64, "--out", "a.png"],
        "export": ["export", "--checkpoint", checkpoint, "--out", "a.safetensors"],
    }
    for verb, given in words.items():
        code, said = limited("FSIZE", 1500, *given, cwd=tmp_path)
        last = said.strip().splitlines()[-1]
        assert code == 2 and "Traceback" not in said, (verb, said[-3000:])
        assert "File too large" in last, (verb, said[-2000:])
        names = ("runs/", "evaluation/", "found/", "a.png", "a.safetensors")
        assert any(name in last for name in names), (verb, last)
        assert last.endswith("choose another folder"), (verb, last)
    assert not list(tmp_path.rglob("*.tmp"))
