"""Pictures of an evaluation are written and logged, and their failures do not end a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from autotimm.outputs.pictures import SavePictures


def batch() -> dict[str, Any]:
    """Three images of 32 pixels with one object each."""
    boxes = torch.tensor([[4.0, 4.0, 20.0, 20.0]])
    target = {"boxes": boxes, "labels": torch.tensor([0]), "rles": None}
    return {
        "image": torch.rand(3, 3, 32, 32),
        "image_id": torch.arange(3),
        "original_size": torch.full((3, 2), 32),
        "scale": torch.ones(3, 2),
        "offset": torch.zeros(3, 2),
        "padding": torch.zeros(3, dtype=torch.bool),
        "target": [target] * 3,
    }


def found(box: list[float]) -> dict[str, Any]:
    return {
        "boxes": torch.tensor([box]),
        "labels": torch.tensor([0]),
        "scores": torch.tensor([0.9]),
    }


def trainer(*loggers: Any) -> Any:
    facts = {"is_global_zero": True, "sanity_checking": False, "testing": False, "global_step": 7}
    return SimpleNamespace(**facts, loggers=list(loggers), datamodule=None)


def draw(folder: Path, outputs: list[dict[str, Any]], *loggers: Any, epochs: int = 1) -> None:
    callback, run, model = SavePictures(), trainer(*loggers), Any
    callback._folder = folder
    for _ in range(epochs):
        callback.on_validation_epoch_start(run, model)
        callback.on_validation_batch_end(run, model, outputs, batch(), 0)
        callback.on_validation_epoch_end(run, model)


GOOD = [2.0, 2.0, 18.0, 18.0]


def test_pictures_go_to_the_folder_and_to_the_loggers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path / "tb")
    draw(tmp_path, [found(GOOD)] * 3, logger)
    logger.save()
    path = tmp_path / "pictures" / "val-step7.png"
    with Image.open(path) as picture:
        width, height = picture.size
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    (event,) = events.Images("val/pictures")
    assert (event.step, event.width, event.height) == (7, width, height)


def test_a_picture_that_cannot_be_drawn_is_left_out(tmp_path: Path) -> None:
    outputs = [found(GOOD), found([float("nan")] * 4), found(GOOD)]
    with pytest.warns(UserWarning) as caught:
        draw(tmp_path, outputs, epochs=2)
    warned = [str(w.message) for w in caught]
    assert warned == [
        "the picture of image 1 cannot be drawn, and the run goes on (ValueError: "
        "a box is not finite)"
    ]
    assert (tmp_path / "pictures" / "val-step7.png").is_file()


def test_a_folder_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "pictures").write_text("in the way")
    with pytest.warns(UserWarning, match=r"val-step7\.png cannot be written, and the run goes on"):
        draw(tmp_path, [found(GOOD)] * 3, epochs=2)


def test_a_logger_that_does_not_take_pictures_ends_no_run(tmp_path: Path) -> None:
    class Bad(TensorBoardLogger):
        @property
        def experiment(self) -> Any:
            raise ConnectionError("gone")

    other = TensorBoardLogger(tmp_path / "tb")
    with pytest.warns(UserWarning, match="Bad does not take the pictures, and the run goes on"):
        draw(tmp_path, [found(GOOD)] * 3, Bad(tmp_path / "bad"), other)
    assert (tmp_path / "pictures" / "val-step7.png").is_file()
    assert list(Path(other.log_dir).iterdir())


def test_the_picture_shows_the_image_at_its_scale(tmp_path: Path) -> None:
    """Without instances, the picture is just the scaled image."""
    plain = batch()
    plain["image"] = torch.full((3, 3, 32, 32), 0.5)
    plain["target"] = [
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "rles": []}
    ] * 3
    callback, run = SavePictures(count=1), trainer()
    nothing = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "scores": torch.zeros(0),
    }
    callback.on_validation_batch_end(run, Any, [nothing] * 3, plain, 0)
    ((left, right),) = callback._pairs
    assert left.shape == right.shape == (640, 640, 3)
    assert np.unique(left).tolist() == np.unique(right).tolist() == [128]
