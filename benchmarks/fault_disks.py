"""Full, odd and slow disks, and damaged optimizer states, for ``faults.py``."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import os
import random
import shutil
import subprocess
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fault_runs import Model, checkpoints, final, last_step, room, same, start

from autotimm.checkpoints.resume import newest
from autotimm.checkpoints.storage import whole_folder
from autotimm.structures import InputError
from autotimm.tasks.archive import write_archive
from autotimm.tasks.checkpoint import read_checkpoint

Result = tuple[int, int, list[str]]


class SkippedError(Exception):
    """This machine cannot show the fault; the message says why."""


class Bulky(Model):
    """Has checkpoints of a bit more than 1 MB."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["bulk"] = torch.zeros(250_000)


@contextlib.contextmanager
def mounted(folder: Path, kind: str, *options: str) -> Iterator[Path]:
    """A file system mounted in a new folder; SkippedError where that is not possible."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", kind, *options, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SkippedError(f"no mount of {kind}: {done.stderr.strip()[:80]}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(folder: Path, repeats: int) -> Result:
    """a disk of 4 MB that fills during a checkpoint of torchrun's 2 ranks, then has room again"""
    found: list[str] = []
    with room(folder, "truth") as root:
        assert start(root, 2, model=Bulky).wait() == 0
        truth = final(root)
    for number in range(repeats):
        with (
            room(folder, "full") as outer,
            mounted(outer / "disk", "tmpfs", "-o", "size=4m", "none"),
        ):
            root, ballast = outer / "disk", outer / "disk/ballast"
            ballast.write_bytes(bytes(300_000 + 120_000 * (number % 6)))
            # A fourth checkpoint does not fit beside three others.
            life = start(root, 2, model=Bulky, log=outer, keep_last=3, max_epochs=4)
            code, said = life.wait(), life.said()
            before = last_step(root)
            if not before or code not in (1, 2):
                found.append(f"exit {code}, {before} steps saved: {said[-300:]}")
                continue
            if "No space left" not in said or ".ckpt" not in said:
                found.append(f"the file is not named: {said[-300:]}")
            if Path(newest(root / "version_0") or "").name != f"step_{before}.ckpt":
                found.append("the newest whole checkpoint is not found")
            subprocess.run(["mount", "-o", "remount,size=40m", str(root)], check=True)
            again = start(root, 2, model=Bulky, log=outer)
            if again.wait() != 0 or again.steps()[:1] != [before + 1]:
                found.append(f"does not go on: {again.said()[-300:]}")
            elif not same(final(root), truth):
                found.append("other weights at the end")
    return repeats, repeats - min(len(found), repeats), found


def no_links() -> None:
    """Has links refused, as vfat, exFAT and many network shares do."""

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    os.symlink = os.link = refused  # type: ignore[assignment]


def without_links(folder: Path, repeats: int) -> Result:
    """no links (refused in the process): killed, goes on, then with links again"""
    found: list[str] = []
    for number in range(repeats):
        with room(folder, "links") as root:
            life = start(root, 1, no_links, max_epochs=3)
            life.until(3 + 2 * number)
            life.kill()
            before, again = last_step(root), start(root, 1, no_links, max_epochs=3)
            if again.wait() != 0 or again.steps()[:1] != [before + 1]:
                found.append(f"does not go on: {again.said()[-300:]}")
                continue
            newest_file = checkpoints(root)[-1][1]
            last = newest_file.with_name("last.ckpt")
            if last.is_symlink() or last.read_bytes() != newest_file.read_bytes():
                found.append("last.ckpt is not a copy of the newest")
            if start(root, 1, max_epochs=4).wait() != 0 or last_step(root) != 32:
                found.append("does not go on with links again")
    return repeats, repeats - len(found), found


@contextlib.contextmanager
def fat(outer: Path) -> Iterator[Path]:
    """A file system of 40 MB as USB sticks have: no links, times of whole two seconds, names of
    either case. The kernel mounts it, or else FUSE."""
    image, folder = outer / "image", outer / "disk"
    if not shutil.which("mkfs.vfat"):
        raise SkippedError("needs mkfs.vfat (Debian: dosfstools)")
    image.write_bytes(b"")
    os.truncate(image, 40 << 20)
    subprocess.run(["mkfs.vfat", str(image)], check=True, stdout=subprocess.DEVNULL)
    try:
        with mounted(folder, "vfat", "-o", "loop", str(image)) as disk:
            yield disk
    except SkippedError:
        if not shutil.which("fusefat"):
            raise
    else:
        return
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["fusefat", "-o", "rw+", str(image), str(folder)], **quiet)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def on_fat(folder: Path, repeats: int) -> Result:
    """a run on a FAT file system: killed, goes on there, same end"""
    found: list[str] = []
    with room(folder, "truth") as root:
        assert start(root, 1, max_epochs=3).wait() == 0
        truth = final(root)
    for number in range(repeats):
        with room(folder, "fat") as outer, fat(outer) as root:
            life = start(root, 1, log=outer, max_epochs=3)
            life.until(3 + 2 * number)
            life.kill()
            before, again = last_step(root), start(root, 1, log=outer, max_epochs=3)
            if again.wait() != 0 or again.steps()[:1] != [before + 1]:
                found.append(f"does not go on: {again.said()[-300:]}")
            elif not same(final(root), truth):
                found.append("other weights at the end")
            elif (last := checkpoints(root)[-1][1].with_name("last.ckpt")).is_symlink():
                found.append(f"{last.name} is a link")
    return repeats, repeats - len(found), found


def delayed(chance: float) -> None:
    """Has what other processes wrote, and removed, seen late: in-process, as NFS' caches do.

    A listing misses a name, a name that is listed is gone when it is opened, a stat of a file that
    was just renamed fails once.
    """
    dice = random.Random(os.getpid())
    real_scandir, real_stat = os.scandir, os.stat

    def listed(*given: Any) -> Any:
        entries = list(real_scandir(*given))
        kept = [one for one in entries if not (".ckpt" in one.name and dice.random() < chance)]
        return contextlib.nullcontext(iter(kept))

    def stat(path: Any, *given: Any, **more: Any) -> os.stat_result:
        if ".ckpt" in str(path) and dice.random() < chance:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real_stat(path, *given, **more)

    os.scandir, os.stat = listed, stat  # type: ignore[assignment]


def delayed_visibility(folder: Path, repeats: int) -> Result:
    """late visibility (listings and stats in the process miss names): nothing wrong is trained"""
    found: list[str] = []
    for _ in range(repeats):
        with room(folder, "delayed") as root:
            for _ in range(3):
                before = last_step(root)
                life = start(root, 1, functools.partial(delayed, 0.1))
                life.until(4)
                life.kill()
                steps = life.steps()
                # A start may go on from an older step that it saw, never from a damaged one.
                if steps and steps[0] > before + 1:
                    found.append(f"goes on from {steps[0]} after {before}")
                if "Traceback" in life.said():
                    found.append(life.said()[-400:])
    return 3 * repeats, 3 * repeats - min(len(found), 3 * repeats), found


# ---------------------------------------------------------------- optimizer states alone


def flipped(path: Path, tensor: torch.Tensor, chance: random.Random) -> bytes:
    """A file's bytes with one bit of a tensor changed, where the tensor lies in it."""
    content = bytearray(path.read_bytes())
    raw = tensor.contiguous().numpy().tobytes()
    places = list(_places(content, raw))
    at = chance.choice(places) + chance.randrange(len(raw))
    content[at] ^= 1 << chance.randrange(8)
    return bytes(content)


def _places(content: bytearray, raw: bytes) -> Iterator[int]:
    at = content.find(raw)
    while at >= 0:
        yield at
        at = content.find(raw, at + 1)


def _state(step: int) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(step)
    momentum = {"momentum_buffer": torch.randn(1000, generator=chance)}
    state = {"state": {0: momentum}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    weights = {"weight": torch.randn(1000, generator=chance)}
    loops = {"loops": {}, "epoch": 0, "global_step": step, "pytorch-lightning_version": "2.6"}
    return {"state_dict": weights, "optimizer_states": [state], "lr_schedulers": [], **loops}


def _file(path: Path, step: int) -> tuple[Path, torch.Tensor]:
    state = _state(step)
    with path.open("wb") as file:
        write_archive(state, file)
    return path, state["optimizer_states"][0]["state"][0]["momentum_buffer"]


def _folder(path: Path, step: int) -> tuple[Path, torch.Tensor]:
    """As DeepSpeed's: files of weights and of optimizer states, written by the storage code."""
    state = _state(step)
    with whole_folder(path, step) as inner:
        (inner / "checkpoint").mkdir()
        torch.save(state["state_dict"], inner / "checkpoint/mp_rank_00_model_states.pt")
        part = inner / "checkpoint/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
        torch.save(state["optimizer_states"], part)
    return (
        path / part.relative_to(inner),
        state["optimizer_states"][0]["state"][0]["momentum_buffer"],
    )


def _damaged(folder: Path, repeats: int, make: Callable[[Path, int], Any]) -> Result:
    chance, found = random.Random(2), []
    with room(folder, "optimizer") as root:
        make(root / "step_6.ckpt", 6)
        part, tensor = make(root / "step_7.ckpt", 7)
        whole = part.read_bytes()
        for _ in range(repeats):
            part.write_bytes(flipped(part, tensor, chance))
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                path = newest(root)
            told = [str(one.message) for one in seen]
            if path is None or path.name != "step_6.ckpt":
                found.append(f"taken: {path}")
            if not any("step_7.ckpt is damaged" in one for one in told):
                found.append(f"not told: {told}")
            if part.name == "step_7.ckpt":
                with contextlib.suppress(InputError):
                    read_checkpoint(part)
                    found.append("read by path")
            part.write_bytes(whole)
    return repeats, repeats - min(len(found), repeats), found


def optimizer_of_a_file(folder: Path, repeats: int) -> Result:
    """one bit of an optimizer's tensor in a .ckpt: found, the one before is taken, told"""
    return _damaged(folder, 10 * repeats, _file)


def optimizer_of_a_folder(folder: Path, repeats: int) -> Result:
    """the same in a folder as DeepSpeed's"""
    return _damaged(folder, 10 * repeats, _folder)


def optimizer_in_a_run(folder: Path, repeats: int) -> Result:
    """the same in a run of torchrun that was killed: goes on from the step before"""
    chance, found = random.Random(3), []
    for _ in range(repeats):
        with room(folder, "run") as root:
            life = start(root, 2)
            life.until(5)
            life.kill()
            step, path = checkpoints(root)[-1]
            with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
                loaded = torch.load(path, weights_only=True)
                buffer = loaded["optimizer_states"][0]["state"][0]["momentum_buffer"]
                raw = buffer.numpy().tobytes()
                member = next(n for n in archive.namelist() if archive.read(n) == raw)
                info = archive.getinfo(member)
            content = bytearray(path.read_bytes())
            at = content.index(raw, info.header_offset) + chance.randrange(len(raw))
            content[at] ^= 1 << chance.randrange(8)
            path.write_bytes(content)
            again = start(root, 2)
            code, said = again.wait(), again.said()
            if code or again.steps()[:1] != [step]:
                found.append(f"exit {code}, from {again.steps()[:1]}: {said[-300:]}")
            elif f"step_{step}.ckpt is damaged" not in " ".join(said.split()):
                found.append("not told")
    return repeats, repeats - len(found), found


def small_shared_memory() -> None:
    """Gives this process a /dev/shm of 64 kB, by a mount of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000) != 0:  # CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", "/dev/shm"], check=True)


def copied(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True)


FAULTS = [
    full_disk,
    without_links,
    on_fat,
    delayed_visibility,
    optimizer_of_a_file,
    optimizer_of_a_folder,
    optimizer_in_a_run,
]
