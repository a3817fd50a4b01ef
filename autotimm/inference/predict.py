"""Detects objects in images of any kind and size, in their own pixels.

Images are fitted to the canvas as in evaluation, so the detections are those whose AP was measured
there. Only the arithmetic may differ: evaluation uses 16 bits on a GPU by default, and this module
only with ``half``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from autotimm.augmentation.transforms import RESIZES, fit, render
from autotimm.coco import masks
from autotimm.data import options as checks
from autotimm.data.normalize import Normalize
from autotimm.images.depth import checked_range
from autotimm.inference.large import LargeImage
from autotimm.inference.sources import read_ahead
from autotimm.inference.tiles import Piece, Window, joined, piece_of, tile_windows
from autotimm.models import restore
from autotimm.structures import Detections, InputError
from autotimm.tasks.detector import ObjectDetector


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of prediction.

    Attributes:
        batch_size: canvases per forward pass.
        image_size: height and width of the canvas in pixels, or one side for both; None for that of
            the model's training.
        resize: how an image is fitted to the canvas, "letterbox" or "stretch"; None for that of the
            model's training.
        tile: side, in image pixels, of the tiles into which larger images are cut; None does not
            cut them.
        overlap: least share of a tile's side that it has in common with its neighbours. Without
            overlap (0), an object that a tile's border cuts stays in two pieces.
        flip: also run the model on the mirror image of each canvas. Of two detections of a class
            that overlap by more than the model's ``nms_thresh``, the better one is kept.
        half: 16-bit arithmetic: float16 on a GPU, bfloat16 on a CPU.
        min_score: least score of a detection; None keeps all that pass the model's
            ``score_thresh``, a limit on the class probability alone, without centerness.
        pixel_range: values that become black and white in images of more than 8 bits a channel
            whose files do not declare their bits; None for those of the model's training, and for
            each image's own where that had no such images.

    Raises:
        InputError: a value cannot be used.
    """

    batch_size: int = 4
    image_size: int | tuple[int, int] | None = None
    resize: str | None = None
    tile: int | None = None
    overlap: float = 0.2
    flip: bool = False
    half: bool = False
    min_score: float | None = None
    pixel_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        checks.whole("batch_size", self.batch_size, 1, 4096)
        if self.image_size is not None:
            checks.canvas(self.image_size)
        if self.resize is not None:
            checks.one_of("resize", self.resize, RESIZES)
        if self.tile is not None:
            checks.whole("tile", self.tile, 32, 2**16)
        if self.min_score is not None:
            checks.share("min_score", self.min_score)
        if self.pixel_range is not None:
            checked_range("pixel_range", self.pixel_range)
        if checks.share("overlap", self.overlap) > 0.9:
            raise InputError(f"overlap={self.overlap} must be 0 to 0.9, a share of a tile's side")


def predict(
    model: ObjectDetector, images: Any, *, dense: bool = False, **how: Any
) -> list[Detections]:
    """Finds the objects in images of any kind and size.

    Args:
        model: from ``autotimm.load``, on the device that is to run it.
        images: a list of paths, URLs, PIL images or uint8 arrays [H, W, 3] (RGB), or one of them.
        dense: return masks as [N, H, W] uint8 of 0 and 1, which takes N * H * W bytes, instead of
            COCO's RLEs.
        **how: the fields of :class:`Options`.

    Returns:
        For each image ``boxes`` [N, 4] x1, y1, x2, y2 in its pixels, ``labels`` [N] (indices into
        ``model.class_names``) and ``scores`` [N], best first; from a segmentor also ``rles``, or
        ``masks`` if ``dense``.

    Raises:
        InputError: an image cannot be read (the message names it), or an option cannot be used.
    """
    try:
        options = Options(**how)
    except TypeError as error:
        raise InputError(f"predict(): {error}") from error
    several = isinstance(images, list | tuple) or (
        isinstance(images, Iterable)
        and not isinstance(images, str | np.ndarray)
        and not hasattr(images, "__fspath__")
        and not hasattr(images, "mode")
    )
    found = []
    for pixels, detections in predictions(model, images if several else [images], options):
        if isinstance(pixels, InputError):
            raise pixels
        if dense and "rles" in detections:
            detections["masks"] = _dense(detections.pop("rles"), pixels.shape[:2])
        found.append(detections)
    return found


def _dense(rles: Any, size: tuple[int, ...]) -> Tensor:
    out = np.zeros((len(rles), *size), np.uint8)
    for mask, rle in zip(out, rles, strict=True):
        mask[:] = masks.decode(rle)
    return torch.from_numpy(out)


def predictions(
    model: ObjectDetector, images: Iterable[Any], options: Options
) -> Iterator[tuple[Any, Any]]:
    """Yields each image's pixels [H, W, 3] uint8 and its detections, in the order of the images.

    For an image that cannot be read it yields the InputError and None; in place of the pixels of
    one that is read tile by tile, the LargeImage.
    """
    predictor = _Predictor(model, options)
    waiting: list[tuple[Any, list[_View]]] = []
    count = 0
    pixel_range = options.pixel_range or model.preprocessing.pixel_range
    tiled = options.tile is not None
    for pixels in read_ahead(images, tiled=tiled, pixel_range=pixel_range):
        if isinstance(pixels, LargeImage):
            yield from predictor.detect(waiting)
            waiting, count = [], 0
            yield predictor.detect_large(pixels)
            continue
        views = [] if isinstance(pixels, InputError) else predictor.views(pixels)
        waiting.append((pixels, views))
        count += len(views)
        if count >= options.batch_size:
            yield from predictor.detect(waiting)
            waiting, count = [], 0
    yield from predictor.detect(waiting)


def looker(
    model: ObjectDetector, options: Options
) -> Callable[[Sequence[np.ndarray]], list[Detections]]:
    """What finds the objects in decoded images [H, W, 3] uint8, best first, with these options."""
    predictor = _Predictor(model, options)

    def look(images: Sequence[np.ndarray]) -> list[Detections]:
        waiting = [(pixels, predictor.views(pixels)) for pixels in images]
        return [found for _, found in predictor.detect(waiting)]

    return look


@dataclass(slots=True)
class _View:
    """An image, or a tile of one, that goes onto a canvas of its own."""

    pixels: np.ndarray
    window: Window


class _Predictor:
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

    def views(self, pixels: np.ndarray) -> list[_View]:
        """The image as a whole, or its tiles."""
        height, width = pixels.shape[:2]
        if self.options.tile is None:
            return [_View(pixels, (0, 0, height, width))]
        windows = tile_windows(height, width, self.options.tile, self.options.overlap)
        return [_View(pixels[w[0] : w[2], w[1] : w[3]], w) for w in windows]

    def detect(self, waiting: list[tuple[Any, list[_View]]]) -> Iterator[tuple[Any, Any]]:
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
        views = (_View(pixels, window) for window, pixels in tiles)
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
    def _detect_batch(self, views: list[_View]) -> list[Detections]:
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
        kept = batched_nms(
            both["boxes"].float(), both["scores"].float(), both["labels"], limits.nms_thresh
        )[: limits.max_detections_per_image]
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
