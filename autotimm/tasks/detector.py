"""ObjectDetector: FCOS as a LightningModule.

What it learns and finds is in ``autotimm.models``; its checkpoints are in ``checkpointed.py``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from autotimm.coco.index import Category, shown_names
from autotimm.evaluation.metrics import MetricConfig, StageMetrics
from autotimm.models import compiled, restore
from autotimm.models.network import CANVAS_MULTIPLE, Network
from autotimm.structures import Batch, Detections, InputError
from autotimm.tasks import optimization
from autotimm.tasks.checkpointed import Checkpointed
from autotimm.tasks.data_checks import categories_of_data, check_categories, warn_of_backbone
from autotimm.tasks.inputs import batched, check_normalised, checked_size
from autotimm.tasks.settings import DetectorSettings, by_name


class ObjectDetector(Checkpointed):
    """FCOS on any timm backbone with feature maps.

    Args:
        backbone: a timm model name.
        num_classes: classes of the data set; ``data.num_classes`` knows.
        metrics: what to measure in validation and test.
        pretrained: True for timm's weights, a path for a local weights file, False for none.
        fpn_channels: width of the feature pyramid and of the heads.
        head_convs: convolutions in each tower of the FCOS head.
        class_loss_weight, box_loss_weight, centerness_loss_weight: what each loss counts.
        score_thresh: least class probability of a detection.
        nms_thresh: of two boxes of a class that overlap by more, the worse one goes.
        max_detections_per_image: best ones kept.
        freeze_backbone: train the pyramid and the heads alone.
        frozen_stages: how many of the backbone's first stages are not trained: 1 for the stem, 2
            for the first stage behind it as well, which is what detectron2's recipes do.
        backbone_norm: ``frozen`` keeps the batch norms of the backbone, statistics and affine
            parameters, as its pretrained weights have them, which suits a few images a rank;
            ``sync`` takes statistics over all ranks; ``batch`` leaves each rank to its own.
        optimizer: ``adamw`` or ``sgd``.
        lr: peak learning rate.
        backbone_lr_factor: what ``lr`` is multiplied by for the backbone.
        layer_decay: what it is multiplied by once more for each layer of the backbone, counted from
            the last; 1 for all alike.
        weight_decay: of weights; norms, biases and what timm names besides are not decayed.
        scheduler: ``cosine``, ``multistep`` (a tenth at each of ``milestones``), or ``constant``
            (also None); by optimizer step.
        milestones: shares of the run, for ``multistep``; by default 8/12 and 11/12.
        warmup_steps: optimizer steps of linear warm-up.
        compile_model: run the network through torch.compile.
        compile_kwargs: passed on to it; unused while ``compile_model`` is off.

    Raises:
        InputError: a value that cannot be used, naming the argument.
    """

    with_masks = False

    def __init__(
        self,
        backbone: str = "resnet50",
        num_classes: int = 80,
        metrics: list[MetricConfig] | None = None,
        *,
        pretrained: bool | str = True,
        fpn_channels: int = 256,
        head_convs: int = 4,
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
        # Given as a dict, so that Lightning does not add what its command line was started with.
        self.save_hyperparameters({**by_name(settings), "metrics": [asdict(m) for m in configs]})
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
        )
        self.preprocessing = self.network.backbone.preprocessing
        if compile_model:
            compiled.compile_in_place(self.network, compile_kwargs)
        self._sizes = compiled.Sizes()
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
        of_data = categories_of_data(datamodule, self.settings.num_classes)
        if stage != "fit":  # training may take a model on to other classes, evaluation may not
            check_categories(self.categories, of_data)
        self.categories = of_data

    def _synchronise_norms(self) -> None:
        # One rank has all images already.
        if self.settings.backbone_norm != "sync" or self.trainer.world_size == 1:
            return
        if self.trainer.strategy.root_device.type == "cpu":
            raise InputError(
                "backbone_norm='sync' needs GPUs, and these ranks train on CPUs: take frozen"
            )
        self.network.backbone.synchronise()

    def on_train_start(self) -> None:
        # The user may have given the data another mean or std: the checkpoint has to know.
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
        """The losses by name, unweighted, divided by counts that are averaged over ranks."""
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

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Detections]:
        """Detections of each image of the batch in the pixels of the original image."""
        check_normalised(batch["image"])
        found = self.detect(batch["image"])
        sizes = batch["original_size"].tolist()
        return [
            restore.restore(detections, scale, offset, height, width)
            for detections, scale, offset, (height, width) in zip(
                found, batch["scale"], batch["offset"], sizes, strict=True
            )
        ]

    def _evaluate(self, batch: Batch, stage: str) -> list[Detections]:
        found = self.predict_step(batch, 0)
        real = [i for i, padding in enumerate(batch["padding"].tolist()) if not padding]
        targets, ids = batch["target"], batch["image_id"].tolist()
        self._metrics(stage).update(
            [found[i] for i in real], [targets[i] for i in real], [ids[i] for i in real]
        )
        return found

    def _log_metrics(self, stage: str) -> None:
        metrics = self._metrics(stage)
        values = metrics.compute(self.class_names)
        metrics.reset()
        shown = {f"{stage}/{config.name}" for config in metrics.configs if config.prog_bar}
        for name, value in values.items():
            # Every rank has the same value, computed from all ranks' images: the mean is it, too.
            self.log(name, value, prog_bar=name in shown, sync_dist=True)

    def _metrics(self, stage: str) -> StageMetrics:
        metrics = self.stage_metrics[f"{stage}_metrics"]
        assert isinstance(metrics, StageMetrics)
        return metrics

    def detect(self, image: Tensor) -> list[Detections]:
        """As ``Network.detect``, with this model's thresholds: of normalised images whose sides the
        pyramid divides, in their pixels, masks as probabilities inside the boxes."""
        limits = self.settings
        with compiled.explained(), self._sizes.stance(image):
            return self.network.detect(
                image, limits.score_thresh, limits.nms_thresh, limits.max_detections_per_image
            )

    # --------------------------------------------------------------- inference

    def forward(self, image: Tensor) -> list[Detections]:
        """As :meth:`predict`."""
        return self.predict(image)

    @property
    def class_names(self) -> list[str]:
        """What to call each label: its category's name, with the id where several share that name;
        the number of the label where the model was not trained on any data yet."""
        if self.categories is None:
            return [str(label) for label in range(self.settings.num_classes)]
        return shown_names([Category(one["id"], one["name"]) for one in self.categories])

    @torch.no_grad()
    def predict(
        self, image: Tensor, size: tuple[int, int] | None = None, *, rles: bool = False
    ) -> list[Detections]:
        """Find the objects in images of any size.

        Args:
            image: [B, 3, H, W] or [3, H, W] float, normalised by ``preprocessing``'s mean and std.
            size: height and width of the pictures that were resized to ``image``, in whose pixels
                boxes and masks are then given; as in ``image`` if None.
            rles: give masks as COCO's RLEs. Dense ones take N * height * width bytes (3 GiB for
                100 of 8000 x 4000 pixels), RLEs next to nothing.

        Returns:
            For each image ``boxes`` [N, 4] in its pixels, ``labels`` [N], ``scores`` [N], best
            first, and from a segmentor ``masks`` [N, height, width], uint8 of 0 and 1, or ``rles``.

        Raises:
            InputError: not such a tensor, or not such a size.
        """
        image = batched(image)
        height, width = image.shape[-2:]
        wanted = checked_size((height, width) if size is None else size)
        padded = F.pad(image, (0, -width % CANVAS_MULTIPLE, 0, -height % CANVAS_MULTIPLE))
        was_training = self.training
        self.eval()
        try:
            found = self.detect(padded.to(self.network.head.classes.weight))
        finally:
            self.train(was_training)
        scale = torch.tensor([width / wanted[1], height / wanted[0]], device=self.device)
        origin = torch.zeros_like(scale)
        return [restore.restore(one, scale, origin, *wanted, dense=not rles) for one in found]


def mean_over_ranks(counts: Tensor) -> Tensor:
    """``counts`` averaged over the processes of the job; the same on all of them."""
    if not (dist.is_available() and dist.is_initialized()):
        return counts
    counts = counts.clone()
    dist.all_reduce(counts)
    return counts / dist.get_world_size()
