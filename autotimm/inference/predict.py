"""What a model finds in images of any kind and size, in their own pixels.

An image goes onto the canvas as in evaluation, so that what is found here is what was measured
there, but for the arithmetic: evaluation works in 16 bits on a GPU, this where ``half`` says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from autotimm import masks
from autotimm.data import options as checks
from autotimm.data.normalize import Normalize
from autotimm.data.transforms import RESIZES, fit, render
from autotimm.inference.sources import read_ahead
from autotimm.inference.tiles import Piece, Window, joined, piece_of, tile_windows
from autotimm.models import restore
from autotimm.structures import Detections, InputError
from autotimm.tasks.detector import ObjectDetector


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How images are looked at.

    Attributes:
        batch_size: canvases at once.
        image_size: height and width of the canvas, or one side for both; None for that of the
            model's training.
        resize: how an image is fitted to it, "letterbox" or "stretch"; None for as in training.
        tile: side of the tiles into which larger images are cut, in their own pixels; None leaves
            them whole.
        overlap: least share of a tile that it has in common with its neighbours; with 0 what a
            border cuts stays cut.
        flip: also look at each canvas mirrored, and keep the better of two detections of a class
            that overlap by more than the model's ``nms_thresh``.
        half: 16-bit arithmetic: float16 on a GPU, bfloat16 on a CPU.
        min_score: what is found with less is left out; None leaves all that the model's
            ``score_thresh`` lets through, which is of the class alone, before the score takes the
            centre into account.

    Raises:
        InputError: a value that cannot be used.
    """

    batch_size: int = 4
    image_size: int | tuple[int, int] | None = None
    resize: str | None = None
    tile: int | None = None
    overlap: float = 0.2
    flip: bool = False
    half: bool = False
    min_score: float | None = None

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
        if checks.share("overlap", self.overlap) > 0.9:
            raise InputError(f"overlap={self.overlap} must be 0 to 0.9, a share of a tile's side")


def predict(
    model: ObjectDetector, images: Any, *, dense: bool = False, **how: Any
) -> list[Detections]:
    """Finds the objects in images of any kind and size.

    Args:
        model: of ``autotimm.load``, on the device on which it is to work.
        images: a list of paths, URLs, PIL images or uint8 arrays [H, W, 3] (RGB), or one of them.
        dense: give masks as [N, H, W] uint8 of 0 and 1, which takes N * H * W bytes, instead of
            COCO's RLEs.
        **how: the fields of :class:`Options`.

    Returns:
        For each image ``boxes`` [N, 4] x1, y1, x2, y2 in its pixels, ``labels`` [N] (whose names
        ``model.class_names`` has), ``scores`` [N], best first, and from a segmentor ``rles``, or
        ``masks``.

    Raises:
        InputError: an image cannot be read, which it names, or an option cannot be used.
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
    """Each image's pixels [H, W, 3] uint8 with its detections, in order, as they come; of one that
    cannot be read the InputError, and None."""
    look = _Look(model, options)
    waiting: list[tuple[Any, list[_View]]] = []
    room = 0
    for pixels in read_ahead(images):
        own = [] if isinstance(pixels, InputError) else look.views(pixels)
        waiting.append((pixels, own))
        room += len(own)
        if room >= options.batch_size:
            yield from look.at(waiting)
            waiting, room = [], 0
    yield from look.at(waiting)


@dataclass(slots=True)
class _View:
    """An image, or a tile of one, to be laid on a canvas."""

    pixels: np.ndarray
    window: Window


class _Look:
    """A model with all that follows from it and the options."""

    def __init__(self, model: ObjectDetector, options: Options) -> None:
        wanted = model.preprocessing
        size = options.image_size or wanted.image_size
        if size is None:
            raise InputError(
                "the model does not tell the size of its training's images: give image_size"
            )
        self.model, self.options = model, options
        self.canvas = checks.canvas(size)
        self.resize = options.resize or wanted.resize
        self.interpolation = wanted.interpolation
        self.fill = wanted.fill
        self.normalize = Normalize(wanted.mean, wanted.std)

    def views(self, pixels: np.ndarray) -> list[_View]:
        """The image as a whole, or its tiles."""
        height, width = pixels.shape[:2]
        if self.options.tile is None:
            return [_View(pixels, (0, 0, height, width))]
        windows = tile_windows(height, width, self.options.tile, self.options.overlap)
        return [_View(pixels[w[0] : w[2], w[1] : w[3]], w) for w in windows]

    def at(self, waiting: list[tuple[Any, list[_View]]]) -> Iterator[tuple[Any, Any]]:
        """The detections of several images."""
        size = self.options.batch_size
        views = [view for _, own in waiting for view in own]
        parts = (views[i : i + size] for i in range(0, len(views), size))
        found = (one for part in parts for one in self._found(part))
        for pixels, own in waiting:
            if isinstance(pixels, InputError):
                yield pixels, None
            elif len(own) == 1:
                yield pixels, self._good(next(found))
            else:
                pieces = [p for view in own for p in _pieces(next(found), view.window)]
                with_masks = self.model.with_masks
                yield pixels, self._good(_whole(joined(pieces), pixels.shape[:2], with_masks))

    def _good(self, found: Detections) -> Detections:
        """What scores enough; the best come first."""
        if self.options.min_score is None:
            return found
        count = int((found["scores"] >= self.options.min_score).sum())
        return {key: value[:count] for key, value in found.items()}  # type: ignore[return-value, index]

    @torch.no_grad()
    def _found(self, views: list[_View]) -> list[Detections]:
        """Detections in the pixels of each view."""
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
                    found = [self._either(*both) for both in zip(found, mirrored, strict=True)]
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

    def _either(self, plain: Detections, mirrored: Detections) -> Detections:
        """Of a canvas and its mirror image: the better of two that overlap, class by class."""
        width = self.canvas[1]
        x1, y1, x2, y2 = mirrored["boxes"].unbind(-1)
        turned: Any = {**mirrored, "boxes": torch.stack([width - x2, y1, width - x1, y2], -1)}
        if "masks" in mirrored:
            turned["masks"] = mirrored["masks"].flip(-1)
        both = {key: torch.cat([value, turned[key]]) for key, value in plain.items()}  # type: ignore[list-item]
        limits = self.model.settings
        kept = batched_nms(
            both["boxes"].float(), both["scores"].float(), both["labels"], limits.nms_thresh
        )[: limits.max_detections_per_image]
        return {key: value[kept] for key, value in both.items()}  # type: ignore[return-value]


def _on_cpu(found: Detections) -> Detections:
    return {k: v.float().cpu() if k in ("boxes", "scores") else _here(v) for k, v in found.items()}  # type: ignore[return-value, attr-defined]


def _here(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def _pieces(found: Detections, window: Window) -> Iterator[Piece]:
    """A tile's detections in the pixels of the whole image, those of empty masks left out."""
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


def _whole(pieces: list[Piece], size: tuple[int, ...], with_masks: bool) -> Detections:
    """Joined pieces as detections."""
    found = Detections(
        boxes=torch.tensor([p.box for p in pieces], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([p.label for p in pieces], dtype=torch.int64),
        scores=torch.tensor([p.score for p in pieces], dtype=torch.float32),
    )
    if with_masks:
        found["rles"] = [masks.encode_window(p.inside, p.top, p.left, *size[:2]) for p in pieces]
    return found
