"""What a run leaves behind besides its checkpoints: its speed, pictures, COCO results."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from autotimm import masks, visualize
from autotimm.evaluation import coco_eval
from autotimm.sharding.manifest import whole_file
from autotimm.structures import Batch, Detections, InputError, Preprocessing, Target

PICTURE_SIDE = 640
_UNTOUCHED = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class ImagesPerSecond(Callback):
    """Logs ``images_per_second``: training images of all ranks over an epoch's wall-clock time,
    validation left out.

    Args:
        skip: steps at the start of each epoch that are left out: workers start and code compiles.
    """

    def __init__(self, skip: int = 2) -> None:
        self.skip = skip
        self._since = 0.0  # when counting began, moved on by the time of validations
        self._paused = 0.0
        self._images = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since, self._images = 0.0, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._since:
            self._images += batch["image"].shape[0] * trainer.world_size
        elif batch_idx + 1 >= self.skip:
            _finish_device_work(pl_module)
            self._since = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._since:
            _finish_device_work(pl_module)
            self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._since:
            self._since += time.perf_counter() - self._paused

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._images:
            _finish_device_work(pl_module)
            seconds = time.perf_counter() - self._since
            pl_module.log("train/images_per_second", self._images / seconds, sync_dist=True)


class EpochLines(Callback):
    """Says one line an epoch where the output goes to a file, in which no progress bar shows.

    The loss is the mean over the epoch's batches on the first rank.
    """

    def __init__(self) -> None:
        self._losses: list[torch.Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = (outputs["loss"] if isinstance(outputs, dict) else outputs).detach()
        # Lightning has divided it by the batches of a step.
        self._losses.append(loss * trainer.accumulate_grad_batches)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        losses, self._losses = self._losses, []
        if losses and trainer.is_global_zero and not sys.stdout.isatty():
            parts = [f"loss {torch.stack(losses).mean():.4g}"] + [
                f"{name.removeprefix('train/').replace('_', ' ')} {value:.4g}"
                for name, value in sorted(trainer.callback_metrics.items())
                if name == "train/images_per_second" or name.endswith("mAP")
            ]
            end = "" if trainer.max_epochs in (None, -1) else f" of {trainer.max_epochs}"
            print(f"epoch {trainer.current_epoch + 1}{end}:", ", ".join(parts), flush=True)


class SavePictures(Callback):
    """Draws the first images of an evaluation, predictions beside ground truth, into a PNG grid.

    Written as ``pictures/<stage>-step<n>.png`` in the run's folder by the first rank.

    Args:
        count: images to draw; 0 for none.
        threshold: least score of a prediction that is drawn.
    """

    def __init__(self, count: int = 6, threshold: float = 0.5) -> None:
        if count < 0:
            raise InputError(f"SavePictures: count={count} must not be negative")
        self.count = count
        self.threshold = threshold
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = _run_folder(trainer)

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
        for i, found in _real(batch, outputs):
            if len(self._pairs) >= self.count:
                break
            picture = _picture(batch, i, datamodule)
            confident = _above(found, self.threshold)
            self._pairs.append(
                (_draw(picture, confident, names), _draw(picture, batch["target"][i], names))
            )

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._pairs:
            return
        stage = "test" if trainer.testing else "val"
        path = self._folder / "pictures" / f"{stage}-step{trainer.global_step}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        visualize.save_png(path, visualize.grid(self._pairs, columns=2))
        if trainer.testing:
            rank_zero_info(f"pictures: {path}")
        self._pairs = []

    on_test_epoch_end = on_validation_epoch_end

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rank_zero_info(f"run: {self._folder}")


class SaveResults(Callback):
    """Writes what a test or a prediction found as ``<stage>-results.json``, in COCO's format.

    Boxes and masks are in original pixels and the category ids are the data set's own, so that
    pycocotools and every tool around it read the file.
    """

    def __init__(self) -> None:
        self._results: list[dict[str, Any]] = []
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = _run_folder(trainer)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._results = []

    on_predict_epoch_start = on_test_epoch_start

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        ids = _category_ids(pl_module)
        for i, found in _real(batch, outputs):
            self._results += coco_eval.to_results(found, int(batch["image_id"][i]), ids)

    on_predict_batch_end = on_test_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts: list[Any] = [self._results]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * trainer.world_size
            dist.gather_object(self._results, parts if trainer.is_global_zero else None)
        self._results = []
        if trainer.is_global_zero:
            stage = "test" if trainer.testing else "predict"
            path = self._folder / f"{stage}-results.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(orjson.dumps([result for part in parts for result in part]))
            rank_zero_info(f"results: {path}")

    on_predict_epoch_end = on_test_epoch_end


def _real(batch: Batch, outputs: list[Detections]) -> Iterator[tuple[int, Detections]]:
    """Index and detections of the images that are not repeats made to even out the ranks."""
    for i, (padding, found) in enumerate(zip(batch["padding"].tolist(), outputs, strict=True)):
        if not padding:
            yield i, found


def _above(found: Detections, threshold: float) -> Detections:
    """Those that score at least ``threshold``; they come first."""
    count = int((found["scores"] >= threshold).sum())
    return {key: value[:count] for key, value in found.items()}  # type: ignore[return-value, index]


def _picture(batch: Batch, index: int, datamodule: Any) -> tuple[np.ndarray, float]:
    """An image of the batch as uint8 RGB [H, W, 3] without its padding, enlarged or reduced to a
    longest side of 640 pixels, and what to multiply original pixels by to get to it."""
    height, width = batch["original_size"][index].tolist()
    image = batch["image"][index].float().cpu()
    done = getattr(datamodule, "preprocessing", None) or _UNTOUCHED
    mean, std = torch.tensor(done.mean), torch.tensor(done.std)
    pixels = (image * std[:, None, None] + mean[:, None, None]).clamp(0, 1) * 255
    scale, offset = batch["scale"][index].tolist(), batch["offset"][index].tolist()
    left, top = round(offset[0]), round(offset[1])
    right, bottom = left + round(width * scale[0]), top + round(height * scale[1])
    content = pixels[:, top:bottom, left:right].permute(1, 2, 0).round().to(torch.uint8).numpy()
    factor = PICTURE_SIDE / max(height, width)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    return cv2.resize(content, size, interpolation=cv2.INTER_LINEAR), factor


def _draw(
    picture: tuple[np.ndarray, float], instances: Detections | Target, names: list[str] | None
) -> np.ndarray:
    image, factor = picture
    size = (image.shape[1], image.shape[0])
    rles = instances.get("rles")
    scores: Any = instances.get("scores")
    small = None
    if rles is not None:
        small = [
            cv2.resize(m, size, interpolation=cv2.INTER_NEAREST) for m in map(masks.decode, rles)
        ]
    return visualize.draw_instances(
        image,
        instances["boxes"].cpu().numpy() * factor,
        instances["labels"].cpu().numpy(),
        None if scores is None else scores.cpu().numpy(),
        small,
        class_names=names,
    )


def _category_ids(pl_module: LightningModule) -> list[int]:
    """The data set's own category id of each label."""
    categories: Any = getattr(pl_module, "categories", None)
    if categories is None:
        raise InputError("results need the categories: give the trainer a data module")
    return [category["id"] for category in categories]


def _run_folder(trainer: Trainer) -> Path:
    """Where the run writes. ``log_dir`` asks the first rank, so every rank must ask at once."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def _finish_device_work(pl_module: LightningModule) -> None:
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize(pl_module.device)
