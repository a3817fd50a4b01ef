"""Each row of metrics.csv once and in order, wherever a run is killed around a checkpoint."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import forked
import pytest
from line import Line, loader, quiet

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TIMES = {"train/images_per_second", "train/data_wait"}

CODE = """
import os, signal, sys
import torch
from pathlib import Path
from line import Line, loader, quiet
from autotimm.checkpoints import storage
from autotimm.outputs.loggers import make_loggers

root, ckpt_path, step, side = sys.argv[1:]


class Logged(Line):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_train_batch_end(self, *_):
        self.log("late", self.weight.detach())  # after the callbacks

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.weight.detach() ** 2)
        return [{}, {}]


save = storage.PlainCheckpointIO.save_checkpoint


def killed(self, checkpoint, path, **rest):
    hit = Path(path).name == f"step_{step}.ckpt"
    if hit and side == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, checkpoint, path, **rest)
    if hit and side == "after":
        os.kill(os.getpid(), signal.SIGKILL)


storage.PlainCheckpointIO.save_checkpoint = killed
trainer = quiet(
    root,
    logger=make_loggers("csv", root, "version_0"),
    max_epochs=3,
    log_every_n_steps=1,
    save_every_n_steps=2,
    keep_last=-1,
    val_check_interval=3,
)
trainer.fit(Logged(), loader(5), loader(1), ckpt_path=ckpt_path or None)
"""


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "version_0/metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    for row in found:  # the mean of an epoch is that of the batches since the start
        row["train/loss_epoch"] = "there" if row.get("train/loss_epoch") else ""
    kept = [{k: v for k, v in row.items() if v and k not in TIMES} for row in found]
    return [row for row in kept if row.keys() - {"epoch", "step"}]


def merged(table: list[dict[str, str]]) -> dict[int, dict[str, str]]:
    """The values by step; each must come once, and the steps in order."""
    steps = [int(row["step"]) for row in table]
    assert steps == sorted(steps)
    values: dict[int, dict[str, str]] = {}
    for row in table:
        known = values.setdefault(int(row["step"]), {})
        assert not known.keys() & row.keys() - {"step", "epoch"}, row
        known.update(row)
    return values


def fit(folder: Path, ckpt_path: str = "", step: int = 0, side: str = "") -> int:
    folder.mkdir(exist_ok=True)
    script = folder / "fit.py"
    script.write_text(CODE)
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    return forked.run(script, folder, ckpt_path, step, side, env=os.environ | path).returncode


@pytest.mark.slow
def test_a_killed_run_has_each_row_once_and_in_order(tmp_path: Path) -> None:
    assert fit(tmp_path / "truth") == 0
    truth = merged(rows(tmp_path / "truth"))
    assert sorted(truth) == list(range(15))
    weights = [0.8 ** (step + 1) for step in range(15)]
    assert [float(row.pop("late")) for row in truth.values()] == pytest.approx(weights)
    # A checkpoint within an epoch, after a validation, and at an epoch's end.
    for step in (2, 8, 10):
        for side in ("before", "after"):
            folder = tmp_path / f"{side}-{step}"
            assert fit(folder, "", step, side) != 0
            assert step - 1 in merged(rows(folder)), "the row was on the disk"
            saved = sorted((folder / "version_0/checkpoints").glob("step_*.ckpt"))
            assert fit(folder, "last" if saved else "") == 0
            found = merged(rows(folder))
            for row in found.values():  # of the killed step it comes behind the checkpoint
                row.pop("late", None)
            assert found == truth, folder.name


def test_a_row_is_on_the_disk_when_its_checkpoint_is_saved(tmp_path: Path) -> None:
    class Logged(Line):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train/loss", loss, on_step=True, on_epoch=True)
            return loss

        def on_save_checkpoint(self, checkpoint):
            seen.append((self.trainer.global_step, rows(tmp_path)[-1]))

    seen: list[tuple[int, dict[str, str]]] = []
    run = quiet(tmp_path, max_epochs=1, log_every_n_steps=1, save_every_n_steps=2, logger="csv")
    run.fit(Logged(), loader(5))
    assert [(step, int(row["step"])) for step, row in seen] == [(2, 1), (4, 3), (5, 4)]
    assert [row.keys() & {"train/loss_step", "train/loss_epoch"} for _, row in seen] == [
        {"train/loss_step"},
        {"train/loss_step"},
        {"train/loss_epoch"},
    ]
    assert len(rows(tmp_path)) == 6, "no row twice"
