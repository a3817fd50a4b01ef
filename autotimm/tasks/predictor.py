"""Prediction: the base class of the models, for images of any size and for batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autotimm.coco.index import Category, shown_names
from autotimm.models import compiled, restore
from autotimm.models.network import CANVAS_MULTIPLE, Network
from autotimm.structures import Batch, Detections
from autotimm.tasks.checkpointed import Checkpointed
from autotimm.tasks.inputs import batched, check_normalised, checked_size


class Predictor(Checkpointed):
    """A model that detects objects in users' images and in batches of a data module.

    Subclasses set ``network`` and the hyper-parameters.
    """

    network: Network

    def __init__(self) -> None:
        super().__init__()
        self._sizes = compiled.Sizes()

    @property
    def class_names(self) -> list[str]:
        """The name of each label, with the category id if several categories share the name.

        A model that has not been trained on any data returns the numbers of the labels.
        """
        if self.categories is None:
            return [str(label) for label in range(self.settings.num_classes)]
        return shown_names([Category(one["id"], one["name"]) for one in self.categories])

    @torch.no_grad()
    def predict(
        self, image: Tensor, size: tuple[int, int] | None = None, *, rles: bool = False
    ) -> list[Detections]:
        """Detect the objects in images of any size.

        Args:
            image: [B, 3, H, W] or [3, H, W] float, normalised by ``preprocessing``'s mean and std.
            size: height and width of the images before they were resized to ``image``. Boxes and
                masks are in these pixels, or in those of ``image`` if None.
            rles: whether to return masks as COCO's RLEs. Dense ones take N * height * width bytes,
                which is 3 GiB for 100 masks of 8000 x 4000 pixels, and RLEs take very few.

        Returns:
            For each image, best first, ``boxes`` [N, 4], ``labels`` [N] and ``scores`` [N]; from a
            segmentor also ``masks`` [N, height, width] uint8 of 0 and 1, or ``rles``.

        Raises:
            InputError: ``image`` is not such a tensor, or ``size`` is not two positive integers.
        """
        image = batched(image)
        height, width = image.shape[-2:]
        original = checked_size((height, width) if size is None else size)
        padded = F.pad(image, (0, -width % CANVAS_MULTIPLE, 0, -height % CANVAS_MULTIPLE))
        was_training = self.training
        self.eval()
        try:
            detections = self.detect(padded.to(self.network.head.classes.weight))
        finally:
            self.train(was_training)
        scale = torch.tensor([width / original[1], height / original[0]], device=self.device)
        origin = torch.zeros_like(scale)
        return [
            restore.restore(one, scale, origin, *original, dense=not rles) for one in detections
        ]

    def forward(self, image: Tensor) -> list[Detections]:
        """As :meth:`predict`."""
        return self.predict(image)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Detections]:
        """Detections of each image of the batch in the pixels of the original image."""
        check_normalised(batch["image"])
        detections = self.detect(batch["image"])
        sizes = batch["original_size"].tolist()
        return [
            restore.restore(one, scale, offset, height, width)
            for one, scale, offset, (height, width) in zip(
                detections, batch["scale"], batch["offset"], sizes, strict=True
            )
        ]

    def detect(self, image: Tensor) -> list[Detections]:
        """``Network.detect`` with this model's thresholds.

        Args:
            image: [B, 3, H, W], normalised; H and W are multiples of 32.

        Returns:
            For each image, detections in its pixels, with masks as probabilities inside the boxes.
        """
        limits = self.settings
        with compiled.explained(), self._sizes.stance(image):
            return self.network.detect(
                image, limits.score_thresh, limits.nms_thresh, limits.max_detections_per_image
            )
