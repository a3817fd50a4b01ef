"""The progress bar: its numbers, and that it does not make a GPU wait."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import RichProgressBar
from line import Line, loader

from autotimm import AutoTrainer
from autotimm.training import progress


@pytest.fixture(autouse=True)
def screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_is_seen", lambda: True)


def test_in_a_file_there_is_no_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor are there Lightning's lines about the model and about products."""
    for seen in (True, False):
        monkeypatch.setattr(progress, "_is_seen", lambda seen=seen: seen)
        run = AutoTrainer(accelerator="cpu", default_root_dir=tmp_path, max_epochs=1)
        run.fit(Line(), loader(6))
        out, err = capfd.readouterr()
        assert ("it/s" in out) == seen
        assert "epoch 1 of 1: loss" in out
        assert "FLOP" not in out + err


def test_the_bar_asks_a_device_for_numbers_only_at_steps_that_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = RichProgressBar.get_metrics

    def count(self, run, model):
        asked.append(run.global_step)
        return ask(self, run, model)

    monkeypatch.setattr(RichProgressBar, "get_metrics", count)

    class Logging(Line):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss, prog_bar=True)
            return loss

    def steps_asked(folder: str) -> list[int]:
        asked.clear()
        run = AutoTrainer(
            accelerator="cpu",
            default_root_dir=tmp_path / folder,
            enable_model_summary=False,
            log_every_n_steps=4,
            max_epochs=1,
        )
        run.fit(Logging(), loader(10))
        assert isinstance(run.progress_bar_callback, progress.ProgressBar)
        return sorted(set(asked))

    assert steps_asked("cpu") == [*range(1, 11)]
    monkeypatch.setattr(progress, "_waits", lambda _: True)
    assert steps_asked("gpu") == [
        1,
        4,
        8,
        10,
    ]  # first, logged, end of the epoch


def test_the_bar_shows_what_people_look_for(tmp_path: Path) -> None:
    shown: list[dict] = []

    class Shown(progress.ProgressBar):
        def get_metrics(self, run, model):
            shown.append(super().get_metrics(run, model))
            return shown[-1]

    class Logging(Line):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train/loss", loss, prog_bar=True)
            self.log_dict({"train/boxes_loss": loss / 4, "train/masks_loss": 3 * loss / 4})
            return loss

        def on_validation_epoch_end(self):
            self.log("val/mask_mAP", 0.25, prog_bar=True)

    run = AutoTrainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_model_summary=False,
        log_every_n_steps=2,
        max_epochs=2,
        callbacks=[Shown()],
    )
    run.fit(Logging(), loader(6), loader(1))
    last = next(one for one in reversed(shown) if "ETA" in one)
    assert {"loss", "boxes", "masks", "images/s", "data wait", "ETA", "val/mask_mAP"} == {*last}
    assert last["loss"] == pytest.approx(last["boxes"] + last["masks"])
    assert last["val/mask_mAP"] == 0.25
