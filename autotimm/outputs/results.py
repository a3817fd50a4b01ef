"""The detections of a test or a prediction as a file in COCO's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from autotimm.evaluation import coco_eval
from autotimm.files.atomic import whole_file
from autotimm.outputs.loggers import run_folder
from autotimm.outputs.pictures import real_images
from autotimm.structures import InputError


class SaveResults(Callback):
    """Writes the detections of a test or a prediction in COCO's results format.

    Boxes and masks are in original pixels and category ids are those of the dataset, so that
    pycocotools and similar tools can read the file. It also has the names of the categories.

    Args:
        path: of the file; by default ``<stage>-results.json`` in the run's folder.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._results: list[dict[str, Any]] = []
        self._path, self._folder = path, Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._path is None:
            self._folder = run_folder(trainer)

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
        ids, names = _categories(pl_module)
        given = batch.get("given_id")
        for i, detections in real_images(batch, outputs):
            image_id = given[i] if given and given[i] is not None else int(batch["image_id"][i])
            self._results += coco_eval.to_results(detections, image_id, ids, names)

    on_predict_batch_end = on_test_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts: list[Any] = [self._results]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * trainer.world_size
            dist.gather_object(self._results, parts if trainer.is_global_zero else None)
        self._results = []
        if trainer.is_global_zero:
            stage = "test" if trainer.testing else "predict"
            path = self._path or self._folder / f"{stage}-results.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(orjson.dumps([result for part in parts for result in part]))
            rank_zero_info(f"results: {path}")

    on_predict_epoch_end = on_test_epoch_end


def _categories(pl_module: LightningModule) -> tuple[list[Any], list[str] | None]:
    """The dataset's own category id of each label, and the names of the labels if known."""
    categories = getattr(pl_module, "categories", None)
    if categories is None:
        raise InputError("results need the categories: give the trainer a data module")
    return [one.get("given_id", one["id"]) for one in categories], getattr(
        pl_module, "class_names", None
    )
