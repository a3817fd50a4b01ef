"""ObjectDetector: FCOS as a LightningModule. What it learns and finds is in ``autotimm.models``.

Hyper-parameters are kept as plain values, so that a checkpoint loads with weights only, wherever
it comes from.
"""

from __future__ import annotations

import operator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from autotimm import urls
from autotimm.coco import Category, shown_names
from autotimm.evaluation.metrics import MetricConfig, StageMetrics
from autotimm.models import compiled, restore
from autotimm.models.network import CANVAS_MULTIPLE, Network
from autotimm.structures import Batch, Detections, InputError, Preprocessing
from autotimm.tasks import optimization
from autotimm.tasks.checkpoint import (
    EMA,
    categories_of,
    check_goes_on,
    preprocessing_of,
    read_checkpoint,
    weights_of,
)
from autotimm.tasks.settings import check


class ObjectDetector(LightningModule):
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
        settings = {k: v for k, v in locals().items() if k not in {"self", "__class__", "metrics"}}
        check(settings)
        configs = [m if isinstance(m, MetricConfig) else MetricConfig(**m) for m in metrics or ()]
        if not isinstance(pretrained, bool):
            settings["pretrained"] = str(pretrained)
        # Given as a dict, so that Lightning does not add what its command line was started with.
        self.save_hyperparameters({**settings, "metrics": [asdict(m) for m in configs]})
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
        self.preprocessing: Preprocessing = self.network.backbone.preprocessing
        """Of images: what the weights were trained with. A data module asks for it."""
        if compile_model:
            compiled.compile_in_place(self.network, compile_kwargs)
        self._sizes = compiled.Sizes()
        self.stage_metrics = torch.nn.ModuleDict(
            {f"{stage}_metrics": StageMetrics(stage, configs) for stage in ("val", "test")}
        )
        self.categories: list[dict[str, Any]] | None = None
        """Of the data set that the model was trained on: label i is ``categories[i]``."""

    # ---------------------------------------------------------------- training

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._synchronise_norms()
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "categories"):
            return
        options: Any = self.hparams
        if datamodule.num_classes != options.num_classes:
            raise InputError(
                f"num_classes={options.num_classes} of the model, but {datamodule.data_dir} "
                f"has {datamodule.num_classes} categories: give the model num_classes="
                f"{datamodule.num_classes}, or other data"
            )
        of_data = [{"id": c.id, "name": c.name} for c in datamodule.categories]
        if stage != "fit":  # training may take a model on to other classes, evaluation may not
            self._check_categories(of_data)
        self.categories = of_data

    def _synchronise_norms(self) -> None:
        options: Any = self.hparams
        # One rank has all images already.
        if options.backbone_norm != "sync" or self.trainer.world_size == 1:
            return
        if self.trainer.strategy.root_device.type == "cpu":
            raise InputError(
                "backbone_norm='sync' needs GPUs, and these ranks train on CPUs: take frozen"
            )
        self.network.backbone.synchronise()

    def on_train_start(self) -> None:
        # Of the data, which may have been told otherwise: the checkpoint has to know.
        datamodule = getattr(self.trainer, "datamodule", None)
        self.preprocessing = getattr(datamodule, "preprocessing", self.preprocessing)
        self._warn_of_backbone(getattr(datamodule, "image_size", None))

    def _warn_of_backbone(self, canvas: tuple[int, int] | None) -> None:
        backbone = self.network.backbone
        if backbone.norm == "frozen" and backbone.norms_are_fresh():
            rank_zero_warn(
                "backbone_norm='frozen' keeps norms that have seen no image yet: give "
                "pretrained=True or a weights file"
            )
        if canvas is not None and canvas != (full := backbone.padded(*canvas)):
            rank_zero_warn(
                f"the backbone's windows fill images of a multiple of {backbone.multiple} pixels, "
                f"so that image_size {canvas[0]} x {canvas[1]} costs as much as {full[0]} x "
                f"{full[1]}: take another image_size, or a backbone such as convnext_tiny"
            )

    def _check_categories(self, others: list[dict[str, Any]] | None) -> None:
        """Raises InputError if ``others``, where both are known, gives a label another sense."""
        for mine, other in zip(self.categories or (), others or (), strict=False):
            if mine != other:
                raise InputError(
                    f"the model and the data do not mean the same classes: {mine} and {other}; "
                    f"give the data that the model was trained on, or a model of this data"
                )

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
        _check_normalised(batch["image"])
        masks = batch.get("masks") if self.with_masks else None
        if self.with_masks and masks is None:
            raise InputError("the data has no masks: give the data module masks=True")
        boxes, labels = batch["boxes"], batch["labels"]
        compiled.any_size(1, boxes, labels, masks)
        with compiled.explained():
            sums = self.network(batch["image"], boxes, labels, masks)
        losses = sums.normalised(mean_over_ranks(sums.counts().detach()))
        return losses if self.with_masks else {k: v for k, v in losses.items() if k != "masks"}

    def _loss_weights(self) -> dict[str, float]:
        options: Any = self.hparams
        return {
            "classes": options.class_loss_weight,
            "boxes": options.box_loss_weight,
            "centerness": options.centerness_loss_weight,
        }

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return optimization.configure(self.network, self.hparams, self.trainer)

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
        _check_normalised(batch["image"])
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
        options: Any = self.hparams
        with compiled.explained(), self._sizes.stance(image):
            return self.network.detect(
                image, options.score_thresh, options.nms_thresh, options.max_detections_per_image
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
            options: Any = self.hparams
            return [str(label) for label in range(options.num_classes)]
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
        if not isinstance(image, Tensor):
            raise InputError(
                f"predict() takes normalised float images as a tensor, not {type(image).__name__}"
            )
        if image.ndim == 3:
            image = image[None]
        if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
            raise InputError(
                f"predict() takes normalised float images [B, 3, H, W], not {image.dtype} "
                f"{list(image.shape)}"
            )
        height, width = image.shape[-2:]
        wanted = _size((height, width) if size is None else size)
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

    # ------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["categories"] = self.categories
        checkpoint["preprocessing"] = asdict(self.preprocessing)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._is_in_training():
            check_goes_on(checkpoint)
            optimization.check_goes_on(self.hparams, checkpoint.get("hyper_parameters"))
        elif EMA in checkpoint:
            checkpoint["state_dict"] = weights_of(checkpoint)
        saved = categories_of(checkpoint)
        self._check_categories(saved)
        self.categories = saved or self.categories
        self.preprocessing = preprocessing_of(checkpoint)

    def _is_in_training(self) -> bool:
        try:
            return self.trainer.training
        except RuntimeError:  # with which Lightning says that no trainer has this model
            return False

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As in torch, but weights that do not fit are an InputError of one line."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        # What is no weight, or has no name, torch trips over.
        except (RuntimeError, AttributeError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"the checkpoint's weights do not fit this {type(self).__name__} (num_classes, "
                f"backbone, fpn_channels and mask_size must be those of the training): "
                f"{reason[:200]}..."
            ) from error

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: str | torch.device | None = None,
        strict: bool = True,
        **overrides: Any,
    ) -> Self:
        """The model of a checkpoint on disk or at a URL. Only weights and plain values are read.

        Where the training kept an average of the weights (``ema_decay``), that is the model.

        It comes uncompiled, as a few predictions would not pay for minutes of compilation:
        ``compile_model=True`` asks for it.

        Args:
            checkpoint_path: a path, or a URL that fsspec opens.
            map_location: where the model goes: a device, or its name; the CPU if None.
            strict: whether every weight must be there.
            **overrides: constructor arguments that replace those in the checkpoint.

        Raises:
            InputError: no such file, or not a checkpoint of this class that can be read safely.
        """
        checkpoint = read_checkpoint(checkpoint_path)
        name = urls.shown(str(checkpoint_path))
        return cls.of_checkpoint(checkpoint, name, map_location, strict, overrides)

    @classmethod
    def of_checkpoint(
        cls,
        checkpoint: dict[str, Any],
        checkpoint_path: str,
        map_location: str | torch.device | None,
        strict: bool,
        overrides: dict[str, Any],
    ) -> Self:
        """As :meth:`load_from_checkpoint`, of what ``read_checkpoint`` has read; messages call it
        ``checkpoint_path``."""
        settings = checkpoint.get("hyper_parameters")
        if not isinstance(settings, dict) or "state_dict" not in checkpoint:
            raise InputError(f"{checkpoint_path} is not a checkpoint of {cls.__name__}")
        # The weights come from the checkpoint: none are to be downloaded first.
        settings = {**settings, "pretrained": False, "compile_model": False, **overrides}
        try:
            model = cls(**settings)
        except InputError:
            raise
        # Settings of the wrong kind fail wherever they are used first.
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"{checkpoint_path} is not a checkpoint of {cls.__name__} ({error})"
            ) from error
        model.on_load_checkpoint(checkpoint)
        try:
            model.load_state_dict(checkpoint["state_dict"], strict=strict)
        except InputError as error:
            raise InputError(f"{checkpoint_path}: {error}") from error
        try:
            return model.to(map_location or "cpu")
        except (RuntimeError, AssertionError, TypeError) as error:  # no such device, or none here
            reason = next(iter(str(error).splitlines()), "")
            raise InputError(f"map_location={map_location!r} cannot be had: {reason}") from error


def _size(given: Any) -> tuple[int, int]:
    try:
        height, width = (operator.index(side) for side in given)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise InputError(f"predict() takes a size of (height, width) in whole pixels, not {given}")
    return height, width


def _check_normalised(image: Tensor) -> None:
    if not image.is_floating_point():
        raise InputError(
            "the batch's images are not normalised: the data module does that, so give the trainer "
            "datamodule=..., not its dataloaders"
        )


def mean_over_ranks(counts: Tensor) -> Tensor:
    """``counts`` averaged over the processes of the job; the same on all of them."""
    if not (dist.is_available() and dist.is_initialized()):
        return counts
    counts = counts.clone()
    dist.all_reduce(counts)
    return counts / dist.get_world_size()
