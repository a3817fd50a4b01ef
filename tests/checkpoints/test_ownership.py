"""Two starts in one folder: neither removes what the other would resume from."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from line import Line, loader, quiet
from saves import names, run

from autotimm.checkpoints.ownership import LOCK, Ownership

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another(folder: Path) -> Iterator[None]:
    """A process that trains in this folder, as far as its lock tells, until it is killed."""
    words = [sys.executable, "-c", HOLD, str(folder / LOCK)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            process.kill()


def go_on(root: Path, epochs: int) -> None:
    logger = CSVLogger(root, name="", version="version_0")
    trainer = quiet(root, logger=logger, num_sanity_val_steps=0, max_epochs=epochs, keep_last=1)
    trainer.fit(Line(), loader(4), ckpt_path=root / "version_0" / "checkpoints" / "last.ckpt")


def test_what_another_start_would_resume_from_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "version_0"
    run(tmp_path, Line(), max_epochs=2, keep_last=1)
    assert not (folder / LOCK).exists()
    half = folder / "checkpoints" / ".step_9.ckpt.0a1b2c3d.tmp"
    half.write_bytes(b"what the other is writing")
    with another(folder), pytest.warns(UserWarning, match=f"another process trains in {folder}"):
        go_on(tmp_path, 4)
    assert half.exists()
    assert names(folder) - {half.name} == {
        "step_8.ckpt",
        "step_16.ckpt",
        "last.ckpt -> step_16.ckpt",
    }
    # The other was killed: its lock is gone, though the file is left.
    assert (folder / LOCK).exists()
    go_on(tmp_path, 5)
    assert not half.exists() and not (folder / LOCK).exists()
    assert names(folder) == {"step_8.ckpt", "step_20.ckpt", "last.ckpt -> step_20.ckpt"}


def test_what_another_start_wrote_under_the_same_name_is_kept(tmp_path: Path) -> None:
    """Also one that came first, without a word of this one: on a disk without locks."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    own = Ownership()
    assert own.enter(folder, [])
    for name, content in (("step_1.ckpt", b"mine"), ("step_2.ckpt", b"mine, too")):
        (folder / name).write_bytes(content)
        own.wrote(folder / name)
    (folder / "theirs").write_bytes(b"his!")
    shutil.move(folder / "theirs", folder / "step_1.ckpt")
    assert not own.may_remove(folder / "step_1.ckpt")
    assert own.may_remove(folder / "step_2.ckpt")
    assert not own.may_remove(folder / "step_3.ckpt")
    own.leave()
    assert list(tmp_path.iterdir()) == [folder]
