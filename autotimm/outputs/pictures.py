"""Pictures of an evaluation: predictions beside ground truth, in the run's folder and its loggers.

Invariant: an error in drawing, writing or logging a picture does not end the run. Only the first
one causes a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from autotimm import visualize
from autotimm.outputs.loggers import log_picture, one_line, run_folder
from autotimm.structures import Batch, Detections, InputError, Preprocessing, Target

_UNTOUCHED = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class SavePictures(Callback):
    """Draws the first images of an evaluation, predictions beside ground truth, as a PNG grid.

    The first rank writes it as ``pictures/<stage>-step<n>.png`` into the run's folder, and logs it
    as ``<stage>/pictures``.

    Args:
        count: the number of images; 0 for none.
        threshold: the minimum score of the predictions to draw.
    """

    def __init__(self, count: int = 6, threshold: float = 0.5) -> None:
        if count < 0:
            raise InputError(f"SavePictures: count={count} must not be negative")
        self.count = count
        self.threshold = threshold
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self._folder = Path()
        self._warned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = run_folder(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pairs = []

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        datamodule: Any = getattr(trainer, "datamodule", None)
        names = datamodule.class_names if datamodule is not None else None
        for i, detections in real_images(batch, outputs):
            if len(self._pairs) >= self.count:
                break
            try:
                picture = _picture(batch, i, datamodule)
                confident = _above(detections, self.threshold)
                pair = (_draw(picture, confident, names), _draw(picture, batch["target"][i], names))
            except Exception as error:
                self._warn(f"the picture of image {batch['image_id'][i]} cannot be drawn", error)
                continue
            self._pairs.append(pair)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pairs, self._pairs = self._pairs, []
        if not pairs:
            return
        stage = "test" if trainer.testing else "val"
        path = self._folder / "pictures" / f"{stage}-step{trainer.global_step}.png"
        try:
            sheet = visualize.grid(pairs, columns=2)
            path.parent.mkdir(parents=True, exist_ok=True)
            visualize.save_png(path, sheet)
            if trainer.testing:
                rank_zero_info(f"pictures: {path}")
        except Exception as error:
            self._warn(f"{path} cannot be written", error)
            return
        for logger in trainer.loggers:
            try:
                log_picture(logger, f"{stage}/pictures", sheet, trainer.global_step)
            except Exception as error:
                self._warn(f"{logger.__class__.__name__} does not take the pictures", error)

    on_test_epoch_end = on_validation_epoch_end

    def _warn(self, what: str, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            rank_zero_warn(f"{what}, and the run goes on ({one_line(error)})")


def real_images(batch: Batch, outputs: list[Detections]) -> Iterator[tuple[int, Detections]]:
    """The index and detections of each image, without those repeated to give all ranks as many."""
    for i, (padding, detections) in enumerate(zip(batch["padding"].tolist(), outputs, strict=True)):
        if not padding:
            yield i, detections


def _above(detections: Detections, threshold: float) -> Detections:
    """The detections with a score of at least ``threshold``, which come first."""
    count = int((detections["scores"] >= threshold).sum())
    return {key: value[:count] for key, value in detections.items()}  # type: ignore[return-value, index]


def _picture(
    batch: Batch, index: int, datamodule: Any
) -> tuple[visualize.Picture, tuple[int, int]]:
    """An image of the batch, resized to a longest side of 640 pixels without its padding.

    Returns:
        The picture, uint8 RGB [H, W, 3], and the original height and width.
    """
    height, width = batch["original_size"][index].tolist()
    image = batch["image"][index].float().cpu()
    done = getattr(datamodule, "preprocessing", None) or _UNTOUCHED
    mean, std = torch.tensor(done.mean), torch.tensor(done.std)
    pixels = (image * std[:, None, None] + mean[:, None, None]).clamp(0, 1) * 255
    scale, offset = batch["scale"][index].tolist(), batch["offset"][index].tolist()
    left, top = round(offset[0]), round(offset[1])
    right, bottom = left + round(width * scale[0]), top + round(height * scale[1])
    content = pixels[:, top:bottom, left:right].permute(1, 2, 0).round().to(torch.uint8).numpy()
    factor = visualize.SIDE / max(height, width)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    picture = cv2.resize(content, size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(picture, np.uint8), (height, width)


def _draw(
    picture: tuple[visualize.Picture, tuple[int, int]],
    instances: Detections | Target,
    names: list[str] | None,
) -> visualize.Picture:
    image, size = picture
    scores: Any = instances.get("scores")
    return visualize.draw_instances(
        image,
        instances["boxes"].cpu().numpy(),
        instances["labels"].cpu().numpy(),
        None if scores is None else scores.cpu().numpy(),
        instances.get("rles"),
        class_names=names,
        size=size,
    )
