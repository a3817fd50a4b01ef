"""Saves that fail: a full disk, on one rank or on all."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from line import Line
from ranks import on_ranks
from saves import names, run

from autotimm import InputError
from autotimm.checkpoints.resume import newest

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Big(Line):
    """A model that grows, so that a later checkpoint does not fit."""

    def __init__(self, grows_at: int) -> None:
        super().__init__()
        self.grows_at = grows_at

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["bulk"] = torch.zeros(60_000 if self.global_step == self.grows_at else 1)


@pytest.fixture
def small_files():
    """Limits files to 100,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_fails_does_not_end_the_run(tmp_path: Path, small_files: None) -> None:
    with pytest.warns(UserWarning, match=r"step_8\.ckpt: .*goes on.*newest checkpoint: .*step_4"):
        run(tmp_path, Big(grows_at=8), max_epochs=3)
    assert names(tmp_path / "version_0") == {
        *("step_4.ckpt", "step_12.ckpt", "last.ckpt -> step_12.ckpt")
    }


def test_a_save_that_fails_at_the_end_is_an_error(tmp_path: Path, small_files: None) -> None:
    with (
        pytest.warns(UserWarning, match=r"step_8\.ckpt: File too large"),
        pytest.raises(InputError, match=r"cannot write the checkpoint .*step_8\.ckpt: File too"),
    ):
        run(tmp_path, Big(grows_at=8), max_epochs=2)
    folder = tmp_path / "version_0"
    assert names(folder) == {"step_4.ckpt", "last.ckpt -> step_4.ckpt"}
    found = newest(folder)
    assert found is not None
    assert found.name == "step_4.ckpt"


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a small tmpfs, which takes root")
    try:
        with pytest.warns(UserWarning, match=r"step_8\.ckpt: No space left on device: .*; the"):
            run(disk, Bulky(), max_epochs=3, keep_last=1)
        # Each has 300 kB, so a second one does not fit.
        assert names(disk / "version_0") == {"step_4.ckpt", "last.ckpt -> step_4.ckpt"}
    except InputError as error:
        assert "step_12.ckpt: No space left" in str(error)
        found = newest(disk / "version_0")
        assert found is not None
        assert found.name == "step_4.ckpt"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


class Bulky(Line):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["bulk"] = torch.zeros(80_000)


RANKS = """
import os, resource, sys, warnings
import torch.distributed as dist
from line import quiet, loader
from test_failed_saves import Big
from autotimm import InputError

if int(os.environ["RANK"]) == 0:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
warnings.simplefilter("ignore")
trainer = quiet(sys.argv[1], max_epochs=3, strategy="ddp", save_every_minutes=1000)
trainer.fit(Big(grows_at=8), loader(4))
print(f"went on to step {trainer.global_step}", flush=True)  # whole, as the other rank prints too
try:
    quiet(sys.argv[1], max_epochs=2, strategy="ddp").fit(Big(grows_at=8), loader(4))
except InputError as error:
    print(f"error: {error}", flush=True)
"""


@pytest.mark.slow
def test_all_ranks_raise_an_error_if_the_first_cannot_write(tmp_path: Path) -> None:
    done = on_ranks(RANKS, tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("went on to step 12") == 2
    assert done.stdout.count("step_8.ckpt: ") == 2
    assert names(tmp_path / "version_0") == {
        *("step_4.ckpt", "step_12.ckpt", "last.ckpt -> step_12.ckpt")
    }
