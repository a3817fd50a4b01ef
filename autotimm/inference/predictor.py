"""A model and how it looks at images: views on canvases, and what is found in them joined again.

Everything is in the pixels of the image, as it is shown upright.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autotimm.augmentation.transforms import fit, render
from autotimm.coco import masks
from autotimm.data import options as checks
from autotimm.data.normalize import Normalize
from autotimm.images.turns import LARGE
from autotimm.inference.large import LargeImage
from autotimm.inference.options import Options
from autotimm.inference.tiles import Piece, Window, joined, piece_of, tile_windows
from autotimm.models import restore
from autotimm.models.class_nms import class_nms
from autotimm.structures import Detections, InputError
from autotimm.tasks.detector import ObjectDetector


@dataclass(slots=True)
class View:
    """An image, or a tile of one, that goes onto a canvas of its own."""

    pixels: np.ndarray
    window: Window


class Predictor:
    """A model, the options, and the preprocessing that follows from both."""

    def __init__(self, model: ObjectDetector, options: Options) -> None:
        trained = model.preprocessing
        size = options.image_size or trained.image_size
        if size is None:
            raise InputError(
                "the model does not say at what image size it was trained: give image_size"
            )
        self.model, self.options = model, options
        self.canvas = checks.canvas(size)
        self.resize = options.resize or trained.resize
        self.interpolation = trained.interpolation
        self.fill = trained.fill
        self.normalize = Normalize(trained.mean, trained.std)

    def in_order(self, images: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Yields the pixels and detections of what ``read_ahead`` yields, in its order.

        It looks at a batch at once, or at fewer images where these are large.
        """
        waiting: list[tuple[Any, list[View]]] = []
        for pixels in images:
            if isinstance(pixels, LargeImage):
                yield from self.detect(waiting)
                waiting = []
                yield self.detect_large(pixels)
                continue
            waiting.append((pixels, [] if isinstance(pixels, InputError) else self.views(pixels)))
            held = sum(image.size // 3 for image, views in waiting if views)
            if held >= LARGE or sum(len(views) for _, views in waiting) >= self.options.batch_size:
                del pixels  # which this does not hold while the next ones are read
                yield from self.detect(waiting)
                waiting = []
        yield from self.detect(waiting)

    def views(self, pixels: np.ndarray) -> list[View]:
        """The image as a whole, or its tiles."""
        height, width = pixels.shape[:2]
        if self.options.tile is None:
            return [View(pixels, (0, 0, height, width))]
        windows = tile_windows(height, width, self.options.tile, self.options.overlap)
        return [View(pixels[w[0] : w[2], w[1] : w[3]], w) for w in windows]

    def detect(self, waiting: list[tuple[Any, list[View]]]) -> Iterator[tuple[Any, Any]]:
        """Yields the pixels and the detections of several images, given with their views."""
        size = self.options.batch_size
        all_views = [view for _, views in waiting for view in views]
        batches = (all_views[i : i + size] for i in range(0, len(all_views), size))
        found = (one for batch in batches for one in self._detect_batch(batch))
        for pixels, views in waiting:
            if isinstance(pixels, InputError):
                yield pixels, None
            elif len(views) == 1:
                yield pixels, self._above_min_score(next(found))
            else:
                pieces = [p for view in views for p in _pieces(next(found), view.window)]
                whole = _detections(joined(pieces), pixels.shape[:2], self.model.with_masks)
                yield pixels, self._above_min_score(whole)

    def detect_large(self, image: LargeImage) -> tuple[Any, Any]:
        """An image that is read tile by tile, and its detections; the error and None of another."""
        assert self.options.tile is not None
        tiles = image.tiles(self.options.tile, self.options.overlap)
        views = (View(pixels, window) for window, pixels in tiles)
        pieces: list[Piece] = []
        try:
            while batch := list(islice(views, self.options.batch_size)):
                for view, found in zip(batch, self._detect_batch(batch), strict=True):
                    pieces += _pieces(found, view.window)
        except InputError as error:
            return error, None
        whole = _detections(joined(pieces), image.shape[:2], self.model.with_masks)
        return image, self._above_min_score(whole)

    def _above_min_score(self, found: Detections) -> Detections:
        """The detections with at least ``min_score``, of detections whose best come first."""
        if self.options.min_score is None:
            return found
        count = int((found["scores"] >= self.options.min_score).sum())
        return {key: value[:count] for key, value in found.items()}  # type: ignore[return-value, index]

    @torch.no_grad()
    def _detect_batch(self, views: list[View]) -> list[Detections]:
        """The detections of each view, in its own pixels, on the CPU."""
        canvases, scales = [], []
        for view in views:
            height, width = view.pixels.shape[:2]
            placement = fit(width, height, self.canvas, self.resize)
            canvases.append(
                render(view.pixels, placement, self.canvas, self.fill, self.interpolation)
            )
            scales.append(torch.tensor(placement.scale, dtype=torch.float32))
        device = self.model.device
        stacked = torch.from_numpy(np.stack(canvases)).to(device).permute(0, 3, 1, 2)
        image = self.normalize(stacked)
        was_training = self.model.training
        self.model.eval()
        try:
            with self._precision():
                found = self.model.detect(image)
                if self.options.flip:
                    mirrored = self.model.detect(image.flip(-1))
                    found = [self._merge(*both) for both in zip(found, mirrored, strict=True)]
        finally:
            self.model.train(was_training)
        return [
            _on_cpu(
                restore.restore(one, scale.to(device), torch.zeros_like(scale).to(device), *size)
            )
            for one, scale, size in zip(
                found, scales, (view.pixels.shape[:2] for view in views), strict=True
            )
        ]

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if not self.options.half:
            return contextlib.nullcontext()
        kind = self.model.device.type
        return torch.autocast(kind, torch.float16 if kind == "cuda" else torch.bfloat16)

    def _merge(self, plain: Detections, mirrored: Detections) -> Detections:
        """Merges the detections of a canvas and of its mirror image, by NMS within each class."""
        width = self.canvas[1]
        x1, y1, x2, y2 = mirrored["boxes"].unbind(-1)
        flipped: Any = {**mirrored, "boxes": torch.stack([width - x2, y1, width - x1, y2], -1)}
        if "masks" in mirrored:
            flipped["masks"] = mirrored["masks"].flip(-1)
        both = {key: torch.cat([value, flipped[key]]) for key, value in plain.items()}  # type: ignore[list-item]
        limits = self.model.settings
        kept = class_nms(both["boxes"], both["scores"], both["labels"], limits.nms_thresh)[
            : limits.max_detections_per_image
        ]
        return {key: value[kept] for key, value in both.items()}  # type: ignore[return-value]


def _on_cpu(found: Detections) -> Detections:
    """The detections on the CPU, with boxes and scores as float32."""
    moved: Any = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in found.items()}
    moved.update(boxes=moved["boxes"].float(), scores=moved["scores"].float())
    return moved


def _pieces(found: Detections, window: Window) -> Iterator[Piece]:
    """A tile's detections in the pixels of the whole image, without those of empty masks."""
    y, x = window[:2]
    for i, box in enumerate(found["boxes"].tolist()):
        label, score = int(found["labels"][i]), float(found["scores"][i])
        if "rles" in found:
            left, top, inside = masks.decode_window(found["rles"][i])
        else:
            left, top = (int(side) for side in box[:2])
            right, bottom = (int(np.ceil(side)) for side in box[2:])
            inside = np.ones((bottom - top, right - left), np.bool_)
        if inside.size:
            x1, y1, x2, y2 = box
            moved = (x + x1, y + y1, x + x2, y + y2)
            yield piece_of(window, label, score, y + top, x + left, inside, moved)


def _detections(pieces: list[Piece], size: tuple[int, ...], with_masks: bool) -> Detections:
    """Joined pieces as the detections of an image of ``size``: height, width."""
    found = Detections(
        boxes=torch.tensor([p.box for p in pieces], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([p.label for p in pieces], dtype=torch.int64),
        scores=torch.tensor([p.score for p in pieces], dtype=torch.float32),
    )
    if with_masks:
        found["rles"] = [masks.encode_window(p.inside, p.top, p.left, *size[:2]) for p in pieces]
    return found
