"""Checks of the machine: packages, GPUs, shared memory, open files, CPUs, the speed of a disk.

Each function checks one thing and returns findings; none leaves a change behind.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from packaging.requirements import Requirement

from autotimm.files.units import byte_text
from autotimm.setup.resources import SHARED_MEMORY
from autotimm.strategies.build_locks import left_locks

_PROBED = 64 * 2**20  # bytes, written or read at most
_SLOW = 50e6  # bytes/s: about what 8 GPUs that train a usual model read of JPEG
_LEAST_SHARED = 10**9  # bytes: what a few workers prefetch at 640 px
_LEAST_FILES = 1024
_DEVELOPERS = ("dev", "docs", "peers")  # extras for those who work on this package
_DRIVER = Path("/proc/driver/nvidia/version")


Level = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        level: "fail" if a run would end with an error, "warn" if it would run,
            but slowly or not as intended.
        name: of what was checked.
        text: what the check found.
        remedy: what to do about it; "" if there is no problem.
    """

    level: Level
    name: str
    text: str
    remedy: str = ""


def packages() -> list[Finding]:
    """The version of every package that this one requires, optional ones with their extra."""
    found = [Finding("ok", "python", platform.python_version())]
    try:
        required = [Requirement(text) for text in importlib.metadata.requires("autotimm") or []]
    except importlib.metadata.PackageNotFoundError:
        return [
            *found,
            Finding("fail", "autotimm", "is not installed", "pip install -e . (in its folder)"),
        ]
    found.append(Finding("ok", "autotimm", importlib.metadata.version("autotimm")))
    extras = importlib.metadata.metadata("autotimm").get_all("Provides-Extra") or []
    for extra in ("", *(one for one in extras if one not in _DEVELOPERS)):
        chosen = [one for one in required if _is_of(one, extra)]
        found += [_package(one, extra) for one in chosen]
    return found


def _is_of(requirement: Requirement, extra: str) -> bool:
    if requirement.marker is None:
        return not extra
    always = requirement.marker.evaluate({"extra": ""})
    return always if not extra else not always and requirement.marker.evaluate({"extra": extra})


def _package(requirement: Requirement, extra: str) -> Finding:
    name, wanted = requirement.name, f"{requirement.name}{requirement.specifier}"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if extra:
            return Finding("ok", name, f"not there, for {extra}: pip install '{wanted}'")
        return Finding("fail", name, "is not installed", f"pip install '{wanted}'")
    if requirement.specifier.contains(version, prereleases=True):
        return Finding("ok", name, version)
    return Finding(
        "warn" if extra else "fail",
        name,
        f"{version} is not one of {wanted}",
        f"pip install '{wanted}'",
    )


def gpus() -> list[Finding]:
    """The GPUs that PyTorch sees, the driver, and NCCL."""
    driver = _DRIVER.read_text().splitlines()[0] if _DRIVER.is_file() else ""
    if not torch.cuda.is_available():
        if not driver:
            text = "none: training on the CPU is slow; it suits a sample and small models"
            return [Finding("warn", "GPU", text)]
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        remedy = "install the torch for this driver (pytorch.org), or see CUDA_VISIBLE_DEVICES"
        return [Finding("fail", "GPU", f"a driver is there, but torch ({built}) sees none", remedy)]
    found = [Finding("ok", "CUDA", f"{torch.version.cuda}; {driver or 'driver unknown'}")]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        text = (
            f"{torch.cuda.get_device_name(index)}, {byte_text(free)} of {byte_text(total)} free, "
            f"compute capability {major}.{minor}, {'bf16' if major >= 8 else 'no bf16'}"
        )
        used = free < total / 2
        remedy = "another process uses it: nvidia-smi shows which" if used else ""
        found.append(Finding("warn" if used else "ok", f"GPU {index}", text, remedy))
    if torch.distributed.is_nccl_available():
        found.append(Finding("ok", "NCCL", ".".join(map(str, torch.cuda.nccl.version()))))
    elif torch.cuda.device_count() > 1:
        remedy = "install a torch that has it: several GPUs need it"
        found.append(Finding("fail", "NCCL", "torch has none", remedy))
    return found


def limits() -> list[Finding]:
    """Shared memory, open files and CPUs, against what any run needs."""
    found = []
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free
        small = free < _LEAST_SHARED
        remedy = "give the container more (--shm-size, --ipc=host)" if small else ""
        text = f"{SHARED_MEMORY}: {byte_text(free)} free"
        found.append(Finding("warn" if small else "ok", "shared memory", text, remedy))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = hard != resource.RLIM_INFINITY and hard < _LEAST_FILES
    text = " of at most ".join(
        "any" if n == resource.RLIM_INFINITY else str(n) for n in (soft, hard)
    )
    remedy = "have it raised (ulimit -Hn)" if few else ""
    found.append(Finding("warn" if few else "ok", "open files", text, remedy))
    for lock in left_locks():
        text = f"{lock} has every start with DeepSpeed wait; a killed one may have left it"
        found.append(Finding("warn", "compiled extensions", text, f"rm {lock}"))
    usable = len(os.sched_getaffinity(0))
    found.append(Finding("ok", "CPUs", f"{usable} of {os.cpu_count()} may be used"))
    return found


def write_speed(folder: Path) -> Finding:
    """Measures the disk on which a run would make ``folder``, with a file that it then removes."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    name = f"writing to {folder}"
    try:
        if shutil.disk_usage(there).free < 2 * _PROBED:
            return Finding("fail", name, "the disk is full", "make room, or give another --out")
        with tempfile.NamedTemporaryFile(prefix=".autotimm-probe-", dir=there) as file:
            block = os.urandom(2**20)
            begun = time.perf_counter()
            for _ in range(_PROBED // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return _speed(name, _PROBED, time.perf_counter() - begun)
    except OSError as error:
        return Finding("fail", name, str(error.strerror), "give another --out")


def read_speed(folder: Path, files: Iterable[Path]) -> Finding:
    """Measures how fast some of a folder's files come from the disk, bypassing the page cache."""
    read, took = 0, 0.0
    name = f"reading from {folder}"
    try:
        for path in files:
            with path.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                begun = time.perf_counter()
                while read < _PROBED and (block := file.read(2**20)):
                    read += len(block)
                took += time.perf_counter() - begun
            if read >= _PROBED:
                break
    except OSError as error:
        return Finding("fail", name, f"{error.filename}: {error.strerror}", "see its permissions")
    return _speed(name, read, took)


def _speed(name: str, count: int, seconds: float) -> Finding:
    rate = count / max(seconds, 1e-6)
    text = f"{byte_text(int(rate))}/s ({byte_text(count)})"
    if rate >= _SLOW or count < 2**20:  # of less than 1 MiB, opening takes most of the time
        return Finding("ok", name, text)
    return Finding("warn", name, text, "use a disk of the machine itself")
