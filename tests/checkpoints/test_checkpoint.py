"""Checkpoints on the disk are whole or absent, can be found again, and do not run code."""

from __future__ import annotations

import errno
import os
import resource
import time
from pathlib import Path
from typing import Any

import forked
import orjson
import pytest
import torch

from autotimm import InputError
from autotimm.checkpoints.resume import newest
from autotimm.checkpoints.storage import COMPLETE, PlainCheckpointIO, whole_folder
from autotimm.tasks.checkpoint import read_checkpoint

FILES = PlainCheckpointIO()


def save(path: Path, step: int, value: float = 1.0, epoch: int = 0) -> Path:
    """The parts of a checkpoint that ``newest`` needs, by a clock that runs backwards."""
    content = {
        "pytorch-lightning_version": "2.6.0",
        "state_dict": {"a": torch.full((2000,), value)},
        "loops": {},
        "optimizer_states": [],
        "epoch": epoch,
        "global_step": step,
        "autotimm": {"saved": 1e9 - step},
    }
    FILES.save_checkpoint(content, path)
    os.utime(path, (1e9 - step, 1e9 - step))
    return path


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "last.ckpt", 1)

    def full_disk(content, file) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(InputError, match=r"cannot write the checkpoint .*last\.ckpt: No space"):
        save(path, 2, value=0)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(path)["state_dict"]["a"][0] == 1


def test_a_checkpoint_that_the_system_cuts_short_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "last.ckpt", 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (70, 50_000, 300_000):  # within the header, the tensor, and the rest
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(InputError, match=r"cannot write the checkpoint .*last\.ckpt: "):
                FILES.save_checkpoint({"state_dict": {"a": torch.zeros(74_900)}}, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
        assert read_checkpoint(path)["state_dict"]["a"][0] == 1


SAVES = """
import itertools, os, signal, sys, time
from pathlib import Path
import torch
from autotimm.checkpoints.storage import PlainCheckpointIO, whole_folder

def save(folder, kind, step):
    state = {"state_dict": {"a": torch.full((2_000_000,), float(step))}, "global_step": step}
    if kind == "file":
        PlainCheckpointIO().save_checkpoint(state | {"loops": {}, "optimizer_states": []},
                                            folder / "last.ckpt")
    else:
        with whole_folder(folder / f"step_{step}.ckpt", step) as inner:
            torch.save(state, inner / "part.pt")

root, kind = Path(sys.argv[1]), sys.argv[2]
for attempt in range(12):
    folder = root / str(attempt)
    folder.mkdir()
    ours, theirs = os.pipe()
    child = os.fork()
    for step in itertools.count(1) if child == 0 else ():
        save(folder, kind, step)
        os.write(theirs, b".")
    os.close(theirs)
    done = os.read(ours, 1)
    time.sleep(0.007 * attempt)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(len(done + os.read(ours, 1000)), flush=True)
    os.close(ours)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_in_the_middle_of_a_save_the_last_good_one_is_there(
    kind: str, tmp_path: Path
) -> None:
    """Processes that save repeatedly are killed with kill -9, later and later."""
    saving = forked.run("-c", SAVES, tmp_path, kind)
    assert saving.returncode == 0, saving.stderr[-3000:]
    cut_off = 0
    for attempt, done in enumerate(map(int, saving.stdout.split())):
        folder = tmp_path / str(attempt)
        cut_off += any(path.name.endswith(".tmp") for path in folder.iterdir())
        found = newest(folder)
        assert found is not None
        content = torch.load(found / "part.pt" if kind == "folder" else found, weights_only=True)
        assert content["global_step"] in (done, done + 1)
        assert (content["state_dict"]["a"] == content["global_step"]).all()
    assert attempt == 11
    assert cut_off  # some of the kills interrupted a save


def test_the_newest_whole_one_is_found(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    assert newest(tmp_path) is None
    assert newest(tmp_path / "nowhere") is None
    inside = tmp_path / "checkpoints"
    first = save(inside / "a.ckpt", step=10)
    assert newest(tmp_path) == newest(inside) == first
    # The step counts, and no clock.
    second = save(inside / "b.ckpt", step=20)
    (inside / "last.ckpt").symlink_to("b.ckpt")
    assert newest(tmp_path) == second
    third = save(inside / "Z.ckpt", step=20, epoch=1)  # by the end of the epoch
    assert newest(tmp_path) == third
    third.unlink()
    # No run can resume from weights alone, and hidden files may not be complete.
    FILES.save_checkpoint({"state_dict": {}, "global_step": 99}, inside / "weights.ckpt")
    save(inside / ".lr_find.ckpt", step=99)
    (inside / "gone.ckpt").symlink_to("nothing.ckpt")
    assert newest(tmp_path) == second
    assert not recwarn.list


@pytest.mark.parametrize("renames", [1, 2])
def test_a_kill_between_the_renames_of_a_folder_loses_neither(
    renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same step is saved again, as after its validation, and killed at either rename."""
    path = tmp_path / "checkpoints" / "step_7.ckpt"
    with whole_folder(path, step=7) as folder:
        (folder / "weights").write_bytes(b"old")
    real, left = Path.rename, [renames]

    def rename(self: Path, target: Path) -> Path:
        if self.parent == path.parent:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt), whole_folder(path, step=7) as folder:
        (folder / "weights").write_bytes(b"new")
    monkeypatch.undo()
    assert newest(tmp_path) == path
    assert (path / "weights").read_bytes() == (b"old" if renames == 1 else b"new")


@pytest.mark.parametrize("harm", ["cut", "empty", "zeros", "text", "bit"])
def test_a_damaged_one_is_left_aside(harm: str, tmp_path: Path) -> None:
    good, bad = save(tmp_path / "a.ckpt", step=10), save(tmp_path / "b.ckpt", step=20)
    data = bytearray(bad.read_bytes())
    place = data.index(b"\x00\x00\x80\x3f" * 100) + 40  # within the weights
    if harm == "cut":
        del data[-30:]
    elif harm == "empty":
        data.clear()
    elif harm == "zeros":
        data[place:] = bytes(len(data) - place)
    elif harm == "text":
        data[:] = b"<html>404</html>"
    else:
        data[place] ^= 1
    bad.write_bytes(data)
    with pytest.warns(UserWarning, match=r"b\.ckpt is damaged and left aside"):
        assert newest(tmp_path) == good


def test_a_folder_is_whole_when_all_of_it_is_there(tmp_path: Path) -> None:
    old = save(tmp_path / "a.ckpt", step=10)
    path = tmp_path / "b.ckpt"
    with whole_folder(path, step=17) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "0.pt").write_bytes(b"12345")
        assert newest(tmp_path) == old
    assert newest(tmp_path) == path
    complete = orjson.loads((path / COMPLETE).read_bytes())
    assert complete["files"] == {"part/0.pt": 5}
    assert complete["step"] == 17
    assert complete["checksums"].keys() == complete["files"].keys()
    assert abs(complete["saved"] - time.time()) < 60
    # It takes the place of another, and leaves nothing beside it.
    with whole_folder(path, step=18) as folder:
        (folder / "0.pt").write_bytes(b"123")
    assert [p.name for p in path.iterdir() if p.name != COMPLETE] == ["0.pt"]
    assert {p.name for p in tmp_path.iterdir()} == {"a.ckpt", "b.ckpt"}
    # A failure within leaves it as it was.
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(InputError, match=r"cannot write the checkpoint .*b\.ckpt: No space"),
        whole_folder(path, step=19),
    ):
        raise full
    assert newest(tmp_path) == path
    (path / "0.pt").write_bytes(b"12")
    with pytest.warns(UserWarning, match=r"b\.ckpt is damaged .*0\.pt is missing or cut off"):
        assert newest(tmp_path) == old
    (path / COMPLETE).unlink()
    with pytest.warns(UserWarning, match=r"b\.ckpt is damaged"):
        assert newest(tmp_path) == old


@pytest.mark.parametrize(
    "content",
    [
        {"loops": {"fit_loop": 7}},
        {"loops": []},
        {"callbacks": 5},
        {"optimizer_states": {}},
        {"pytorch-lightning_version": 7},
    ],
)
def test_entries_of_a_wrong_type_are_reported_as_damage(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"pytorch-lightning_version": "2.5", "state_dict": {}, **content}, path)
    with pytest.raises(InputError, match="is not what a trainer saves there"):
        FILES.load_checkpoint(path)
