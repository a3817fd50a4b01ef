"""ObjectDetector: the training and evaluation of FCOS as a LightningModule.

The network and its losses are in ``autotimm.models``, prediction is in ``predictor.py``, and
checkpoints are in ``checkpointed.py``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from autotimm.evaluation.coco_eval import MAX_DETECTIONS
from autotimm.evaluation.metrics import MetricConfig, StageMetrics
from autotimm.models import compiled
from autotimm.models.network import Network
from autotimm.plain import plain, plain_arguments
from autotimm.structures import Batch, Detections, InputError
from autotimm.tasks import optimization
from autotimm.tasks.data_checks import categories_of_data, matched_categories, warn_of_backbone
from autotimm.tasks.inputs import check_normalised
from autotimm.tasks.predictor import Predictor
from autotimm.tasks.settings import DetectorSettings, by_name


class ObjectDetector(Predictor):
    """FCOS on any timm backbone with feature maps.

    Args:
        backbone: a timm model name.
        num_classes: the number of classes in the dataset, as in ``data.num_classes``.
        metrics: the metrics of validation and test.
        pretrained: True for timm's weights, a path for a local weights file, False for random ones.
        fpn_channels: width of the feature pyramid and of the heads.
        head_convs: convolutions in each tower of the FCOS head.
        layout: ``torchvision`` for a network that can start from torchvision's detectors: their
            biases, their locations, and their convolution of P2.
        box_quality: what the branch beside the boxes learns, by which scores fall and of which
            overlapping boxes the better one stays: ``centerness``, how near the location is to the
            object's centre, or ``iou``, how well the predicted box overlaps it.
        class_loss_weight: the weight of the classes' focal loss in the sum of the losses.
        box_loss_weight: the weight of the boxes' GIoU loss.
        centerness_loss_weight: the weight of the loss of the branch beside the boxes.
        score_thresh: the minimum class probability of a detection.
        nms_thresh: NMS removes the worse of two boxes of a class with a higher IoU.
        max_detections_per_image: the maximum number of detections to keep, best first.
        freeze_backbone: whether to train only the pyramid and the heads.
        frozen_stages: the number of first stages of the backbone that are not trained. 1 freezes
            the stem; 2, as in detectron2's recipes, also freezes the stage after it.
        backbone_norm: how batch norms of the backbone train. ``frozen`` keeps the statistics and
            affine parameters of the pretrained weights, which suits few images per rank. ``sync``
            computes statistics over all ranks, and ``batch`` over each rank alone.
        optimizer: ``adamw`` or ``sgd``.
        lr: peak learning rate.
        backbone_lr_factor: multiplies ``lr`` for the backbone.
        layer_decay: multiplies ``lr`` once more for each layer of the backbone, counted from the
            last; 1 gives all layers the same rate.
        weight_decay: of weights, but not of norms, biases and other parameters that timm exempts.
        scheduler: ``cosine``, ``multistep`` (divides by ten at each of ``milestones``), or
            ``constant`` (the same as None); the rate changes at every optimizer step.
        milestones: shares of the run, for ``multistep``; 8/12 and 11/12 by default.
        warmup_steps: optimizer steps of linear warm-up.
        compile_model: whether to compile the network with torch.compile.
        compile_kwargs: arguments of torch.compile; unused without ``compile_model``.

    Raises:
        InputError: an argument cannot be used; the message names it.
    """

    with_masks = False

    @plain_arguments
    def __init__(
        self,
        backbone: str = "resnet50",
        num_classes: int = 80,
        metrics: list[MetricConfig] | None = None,
        *,
        pretrained: bool | str = True,
        fpn_channels: int = 256,
        head_convs: int = 4,
        layout: Literal["autotimm", "torchvision"] = "autotimm",
        box_quality: Literal["centerness", "iou"] = "centerness",
        class_loss_weight: float = 1.0,
        box_loss_weight: float = 1.0,
        centerness_loss_weight: float = 1.0,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        max_detections_per_image: int = 100,
        freeze_backbone: bool = False,
        frozen_stages: int = 0,
        backbone_norm: Literal["batch", "frozen", "sync"] = "batch",
        optimizer: Literal["adamw", "sgd"] = "adamw",
        lr: float = 1e-4,
        backbone_lr_factor: float = 1.0,
        layer_decay: float = 1.0,
        weight_decay: float = 1e-4,
        scheduler: Literal["cosine", "multistep", "constant"] | None = "cosine",
        milestones: list[float] | None = None,
        warmup_steps: int = 0,
        compile_model: bool = True,
        compile_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        settings = DetectorSettings(
            backbone=backbone,
            num_classes=num_classes,
            pretrained=pretrained if isinstance(pretrained, bool) else str(pretrained),
            fpn_channels=fpn_channels,
            head_convs=head_convs,
            layout=layout,
            box_quality=box_quality,
            class_loss_weight=class_loss_weight,
            box_loss_weight=box_loss_weight,
            centerness_loss_weight=centerness_loss_weight,
            score_thresh=score_thresh,
            nms_thresh=nms_thresh,
            max_detections_per_image=max_detections_per_image,
            freeze_backbone=freeze_backbone,
            frozen_stages=frozen_stages,
            backbone_norm=backbone_norm,
            optimizer=optimizer,
            lr=lr,
            backbone_lr_factor=backbone_lr_factor,
            layer_decay=layer_decay,
            weight_decay=weight_decay,
            scheduler=scheduler,
            milestones=milestones,
            warmup_steps=warmup_steps,
            compile_model=compile_model,
            compile_kwargs=compile_kwargs,
        )
        configs = [m if isinstance(m, MetricConfig) else MetricConfig(**m) for m in metrics or ()]
        _check_limits(configs, max_detections_per_image)
        # As a dict: otherwise Lightning would also save the arguments of its command line.
        self.save_hyperparameters(
            {**by_name(settings), "metrics": plain([asdict(m) for m in configs])}
        )
        self.network = Network(
            backbone,
            num_classes,
            pretrained=pretrained,
            fpn_channels=fpn_channels,
            head_convs=head_convs,
            freeze_backbone=freeze_backbone,
            backbone_norm=backbone_norm,
            frozen_stages=frozen_stages,
            with_masks=self.with_masks,
            layout=layout,
            box_quality=box_quality,
        )
        self.preprocessing = self.network.backbone.preprocessing
        if compile_model:
            compiled.compile_in_place(self.network, compile_kwargs)
        self.stage_metrics = torch.nn.ModuleDict(
            {f"{stage}_metrics": StageMetrics(stage, configs) for stage in ("val", "test")}
        )
        self.categories = None

    # ---------------------------------------------------------------- training

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._synchronise_norms()
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "categories"):
            return
        categories = categories_of_data(datamodule, self.settings.num_classes, self.categories)
        if stage != "fit":  # training may continue with other classes, but evaluation may not
            own, predicts = self.categories, stage == "predict"
            categories = matched_categories(own, categories, any_order=predicts) or categories
        self.categories = categories

    def _synchronise_norms(self) -> None:
        # A single rank sees all images anyway.
        if self.settings.backbone_norm != "sync" or self.trainer.world_size == 1:
            return
        if self.trainer.strategy.root_device.type == "cpu":
            raise InputError(
                "backbone_norm='sync' needs GPUs, and these ranks train on CPUs: take frozen"
            )
        self.network.backbone.synchronise()

    def on_train_start(self) -> None:
        # The user may have given the data module another mean or std, which checkpoints record.
        datamodule = getattr(self.trainer, "datamodule", None)
        self.preprocessing = getattr(datamodule, "preprocessing", self.preprocessing)
        warn_of_backbone(self.network.backbone, getattr(datamodule, "image_size", None))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        weights = self._loss_weights()
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        count = batch["image"].shape[0]
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=count)
        parts = {f"train/{name}_loss": loss.detach() for name, loss in losses.items()}
        self.log_dict(parts, batch_size=count)
        return total

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The unweighted losses by name, divided by counts that are averaged over ranks.

        Args:
            batch: of a training loader, on the model's device and normalised.

        Raises:
            InputError: the images are not normalised, the batch has no masks and the model needs
                them, or the network does not compile.
        """
        check_normalised(batch["image"])
        masks = batch.get("masks") if self.with_masks else None
        if self.with_masks and masks is None:
            raise InputError("the data has no masks: give the data module masks=True")
        boxes, labels = batch["boxes"], batch["labels"]
        compiled.mark_dynamic(1, boxes, labels, masks)
        with compiled.explained():
            sums = self.network(batch["image"], boxes, labels, masks)
        losses = sums.normalised(mean_over_ranks(sums.counts().detach()))
        return losses if self.with_masks else {k: v for k, v in losses.items() if k != "masks"}

    def _loss_weights(self) -> dict[str, float]:
        settings = self.settings
        return {
            "classes": settings.class_loss_weight,
            "boxes": settings.box_loss_weight,
            "centerness": settings.centerness_loss_weight,
        }

    def logged(self) -> set[str]:
        """The names of what this class logs in a fit, without the values of single classes."""
        losses = {f"train/{name}_loss" for name in self._loss_weights()}
        return {"train/loss", *losses, *self._metrics("val").names()}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return optimization.configure(self.network, self.settings, self.trainer)

    # -------------------------------------------------------------- evaluation

    def validation_step(  # type: ignore[override]
        self, batch: Batch, batch_idx: int
    ) -> list[Detections]:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> list[Detections]:  # type: ignore[override]
        return self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _evaluate(self, batch: Batch, stage: str) -> list[Detections]:
        detections = self.predict_step(batch, 0)
        real = [i for i, padding in enumerate(batch["padding"].tolist()) if not padding]
        targets, ids = batch["target"], batch["image_id"].tolist()
        self._metrics(stage).update(
            [detections[i] for i in real], [targets[i] for i in real], [ids[i] for i in real]
        )
        return detections

    def _log_metrics(self, stage: str) -> None:
        metrics = self._metrics(stage)
        values = metrics.compute(self.class_names)
        metrics.reset()
        shown = {f"{stage}/{config.name}" for config in metrics.configs if config.prog_bar}
        for name, value in values.items():
            # The value comes from the images of all ranks and is the same on each, as is the mean.
            self.log(name, value, prog_bar=name in shown, sync_dist=True)

    def _metrics(self, stage: str) -> StageMetrics:
        metrics = self.stage_metrics[f"{stage}_metrics"]
        assert isinstance(metrics, StageMetrics)
        return metrics


def _check_limits(configs: list[MetricConfig], found: int) -> None:
    """InputError where a metric counts more detections than the model finds."""
    for config in configs:
        if config.max_detections > max(found, MAX_DETECTIONS):
            raise InputError(
                f"metric {config.name!r}: max_detections {config.max_detections} has no effect "
                f"with max_detections_per_image={found}: set that to it or more"
            )


def mean_over_ranks(counts: Tensor) -> Tensor:
    """``counts`` averaged over all ranks; every rank gets the same result."""
    if not (dist.is_available() and dist.is_initialized()):
        return counts
    counts = counts.clone()
    dist.all_reduce(counts)
    return counts / dist.get_world_size()
