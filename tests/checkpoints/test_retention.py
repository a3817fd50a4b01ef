"""Which checkpoints are kept, and what happens where links cannot be made or files removed."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from line import Line
from saves import names, run, state

from autotimm.checkpoints import callback
from autotimm.checkpoints.resume import damage_of
from autotimm.checkpoints.retention import kept, point
from autotimm.checkpoints.storage import whole_folder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


SCORES = {"a": 0.1, "b": None, "c": 0.3, "d": float("nan"), "e": 0.3, "f": 0.2}


@pytest.mark.parametrize(
    ("last", "best", "mode", "expected"),
    [
        (1, 0, "max", "f"),
        (1, 1, "max", "cf"),
        (2, 1, "max", "cfe"),
        (1, 2, "max", "cef"),
        (1, 3, "max", "cef"),
        (1, 4, "max", "cefa"),
        (1, 9, "max", "cefad"),
        (1, 1, "min", "af"),
        (1, 9, "min", "afced"),
        (-1, 1, "max", "cfedba"),
        (0, 1, "max", "c"),
        (9, 0, "max", "fedcba"),
    ],
)
def test_the_newest_and_the_best_are_kept(last: int, best: int, mode: str, expected: str) -> None:
    assert kept(SCORES, last, best, mode) == list(expected)


def test_without_checkpoints_nothing_is_kept() -> None:
    assert kept({}, 2, 1, "max") == []
    assert kept({"a": None}, 0, 1, "max") == []


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)


@pytest.mark.usefixtures("no_links")
@pytest.mark.filterwarnings("ignore:.*last cannot lead to")
def test_where_links_cannot_be_made_the_newest_is_there_twice(tmp_path: Path) -> None:
    run(tmp_path, Line(), max_epochs=3)
    folder = tmp_path / "version_0"
    assert names(folder) == {"step_8.ckpt", "step_12.ckpt", "last.ckpt"}
    assert state(folder / "checkpoints" / "last.ckpt")["global_step"] == 12


@pytest.mark.usefixtures("no_links")
def test_where_links_cannot_be_made_a_folder_is_there_twice(tmp_path: Path) -> None:
    for step in (1, 2):
        with whole_folder(tmp_path / f"step_{step}.ckpt", step) as folder:
            (folder / "checkpoint").mkdir()
            (folder / "checkpoint" / "weights").write_bytes(b"w" * step)
        point(tmp_path / "last.ckpt", f"step_{step}.ckpt")
    copy, whole = tmp_path / "last.ckpt", tmp_path / "step_2.ckpt"
    for name in ("checkpoint/weights", "complete.json"):
        assert (copy / name).read_bytes() == (whole / name).read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"step_1.ckpt", "step_2.ckpt", "last.ckpt"}
    assert damage_of(copy) is None


def test_old_checkpoints_are_removed_once_links_can_be_set_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = callback.point

    def fail(link: Path, name: str) -> None:
        if name == "step_8.ckpt":
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(link, name)

    monkeypatch.setattr(callback, "point", fail)
    with pytest.warns(UserWarning, match=r"step_8\.ckpt: No space left"):
        run(tmp_path, Line(), max_epochs=2, keep_last=1)
    folder = tmp_path / "version_0"
    assert names(folder) == {"step_4.ckpt", "step_8.ckpt", "last.ckpt -> step_4.ckpt"}
    with pytest.warns(UserWarning, match=r"step_8\.ckpt: No space left"):
        run(tmp_path, Line(), max_epochs=3, keep_last=1)
    assert names(tmp_path / "version_1") == {"step_12.ckpt", "last.ckpt -> step_12.ckpt"}


def test_a_checkpoint_that_cannot_be_removed_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "step_4.ckpt":
            raise OSError(errno.EPERM, "Operation not permitted")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.warns(UserWarning, match=r"step_4\.ckpt .*cannot be removed: Operation not"):
        run(tmp_path, Line(), max_epochs=4)
    assert names(tmp_path / "version_0") == {
        *("step_4.ckpt", "step_12.ckpt", "step_16.ckpt", "last.ckpt -> step_16.ckpt")
    }
