"""``config.yaml`` of a run: what it leaves out, and what is said if it cannot be written."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from jsonargparse import Namespace
from lightning.pytorch.cli import SaveConfigCallback

from autotimm.cli.lightning_cli import SaveConfig


class FirstRank:
    """A trainer whose ``log_dir`` would wait for ranks that do not ask for it."""

    default_root_dir = "runs"

    def __init__(self, logger: object) -> None:
        self.logger = logger

    @property
    def log_dir(self) -> str:
        raise AssertionError("a broadcast that the first rank alone begins")


@pytest.mark.parametrize(
    ("logger", "folder"),
    [(SimpleNamespace(log_dir="runs/version_0"), "runs/version_0"), (None, "runs")],
)
def test_the_first_rank_names_the_file_without_the_others(
    logger: object, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SaveConfigCallback, "setup", full)
    config = SaveConfig(cast(Any, None), Namespace())
    with pytest.raises(OSError, match="No space left") as caught:
        config.setup(cast(Any, FirstRank(logger)), cast(Any, None), "fit")
    assert caught.value.filename == str(Path(folder, "config.yaml"))


@pytest.mark.parametrize(("stage", "kept"), [("fit", False), ("test", True)])
def test_a_new_run_by_the_config_of_a_resumed_one_begins_anew(
    stage: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test cannot do without a checkpoint, and its config says which one it was."""
    saved = []
    monkeypatch.setattr(
        SaveConfigCallback, "setup", lambda config, *_: saved.append(config.config.as_dict())
    )
    given = Namespace(ckpt_path="runs/last/checkpoints/last.ckpt", seed_everything=7)
    SaveConfig(cast(Any, None), given).setup(cast(Any, None), cast(Any, None), stage)
    assert ("ckpt_path" in saved[0]) == kept
    assert saved[0]["seed_everything"] == 7 and "ckpt_path" in given
