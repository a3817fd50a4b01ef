"""InstanceSegmentor: the detector with a mask branch."""

from __future__ import annotations

from typing import Any, Literal

from autotimm.evaluation.metrics import MetricConfig
from autotimm.models import compiled
from autotimm.plain import plain_arguments
from autotimm.tasks.detector import ObjectDetector
from autotimm.tasks.settings import MaskSettings, by_name, from_hparams


class InstanceSegmentor(ObjectDetector):
    """FCOS with a Mask R-CNN mask head.

    Args:
        backbone: a timm model name.
        num_classes: the number of classes in the dataset, as in ``data.num_classes``.
        metrics: the metrics of validation and test.
        mask_size: side of the square mask that the head predicts for each box; even.
        mask_rois: the average number of boxes per image that the mask head trains on. Images with
            many instances use the places that other images leave.
        mask_loss: ``bce``, the binary cross-entropy of every cell, or ``bce+dice``, which adds the
            dice loss of every mask.
        mask_loss_weight: the weight of the mask loss.
        **detector: the other arguments of ``ObjectDetector``.

    Raises:
        InputError: an argument cannot be used; the message names it.
    """

    with_masks = True

    @plain_arguments
    def __init__(
        self,
        backbone: str = "resnet50",
        num_classes: int = 80,
        metrics: list[MetricConfig] | None = None,
        *,
        mask_size: int = 28,
        mask_rois: int = 32,
        mask_loss: Literal["bce", "bce+dice"] = "bce",
        mask_loss_weight: float = 1.0,
        **detector: Any,
    ) -> None:
        masks = MaskSettings(
            mask_size=mask_size,
            mask_rois=mask_rois,
            mask_loss=mask_loss,
            mask_loss_weight=mask_loss_weight,
        )
        super().__init__(backbone, num_classes, metrics, **detector)
        self.save_hyperparameters(by_name(masks))
        head = self.network.add_masks(mask_size, mask_rois, mask_loss)
        settings = self.settings
        if settings.compile_model:
            compiled.compile_in_place(head, settings.compile_kwargs)

    @property
    def mask_settings(self) -> MaskSettings:
        """The current hyper-parameters of the mask branch."""
        return from_hparams(MaskSettings, self.hparams)

    def _loss_weights(self) -> dict[str, float]:
        return {**super()._loss_weights(), "masks": self.mask_settings.mask_loss_weight}
