"""Pictures of instances: masks, outlines, boxes and labels drawn over an image; grids of pictures.

Invariants: what is given is not changed; a class has the same colour in every picture; labels are
readable on any background and stay inside the picture. NumPy, OpenCV and PIL alone. :func:`draw` is
for users and takes nearly anything; :func:`draw_instances` is what all pictures are made by.
"""

from __future__ import annotations

import colorsys
import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from autotimm.coco import masks as rle
from autotimm.images.inspect import BROKEN, FORMATS
from autotimm.structures import RLE, InputError

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
Plate = tuple[int, int, int, int]  # x1, y1, x2, y2 of what a label covers


def draw(
    image: Any,
    found: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
    *,
    threshold: float = 0.5,
    **style: Any,
) -> Image.Image:
    """Draw what was found in an image over it; a notebook shows the picture that is returned.

    Args:
        image: a path, a PIL image, an array [H, W, 3] (RGB) or [H, W] of uint8, or a tensor
            [3, H, W] of uint8 or of floats from 0 to 1, not normalised.
        found: ``boxes`` [N, 4] in the image's pixels, ``labels`` [N], and if they are there
            ``scores`` [N] and ``masks`` [N, H, W] or ``rles``: what ``autotimm.predict`` and
            ``model.predict`` give for an image, or a target.
        class_names: the name of each label, such as ``model.class_names``.
        threshold: what scores less is left out.
        **style: ``alpha``, ``draw_boxes`` and ``draw_labels`` of :func:`draw_instances`.

    Raises:
        InputError: no such image, or what was found does not fit it.
    """
    if not isinstance(found, Mapping):
        raise InputError(f"found is a {type(found).__name__}: give one image's boxes, labels, ...")
    if missing := {"boxes", "labels"} - set(found):
        raise InputError(f"found: it has no {' and no '.join(sorted(missing))}")
    parts = {key: _plain(found[key]) for key in ("boxes", "labels", "scores") if key in found}
    masks = found.get("rles", found.get("masks"))
    scores = parts.get("scores")
    counts = {len(part) for part in (*parts.values(), masks) if part is not None}
    if scores is not None and len(counts) == 1:  # draw_instances() tells where they differ
        kept = np.flatnonzero(np.asarray(scores) >= threshold)
        parts = {key: np.asarray(part)[kept] for key, part in parts.items()}
        masks = masks if masks is None else [masks[i] for i in kept.tolist()]
    masks = masks if masks is None else [_plain(mask) for mask in masks]
    try:
        picture = draw_instances(
            _pixels(image), masks=masks, class_names=class_names, **parts, **style
        )
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"draw(): {error}") from error
    return Image.fromarray(picture)


def draw_instances(
    image: Any,
    boxes: Any,
    labels: Any,
    scores: Any = None,
    masks: Any = None,
    class_names: Sequence[str] | None = None,
    *,
    alpha: float = 0.4,
    draw_boxes: bool = True,
    draw_labels: bool = True,
) -> Picture:
    """Draw N instances over an image, the large ones first, so that the small ones stay visible.

    Args:
        image: [H, W, 3] uint8 RGB.
        boxes: [N, 4] x1, y1, x2, y2 in pixels.
        labels: [N] 0-based class indices.
        scores: [N] 0 to 1, written behind the names where given.
        masks: N RLEs of the image's size, or [N, H, W] with more than 0.5 inside.
        class_names: the name of each label; without them labels are written as numbers.
        alpha: how much of the colour covers the pixels of a mask, 0 to 1.
        draw_boxes: draw the boxes too.
        draw_labels: write names and scores too.

    Returns:
        A new picture, [H, W, 3] uint8.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    picture = np.array(image, order="C")  # a copy, as OpenCV takes it
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"image is {picture.dtype} {picture.shape}, not uint8 [H, W, 3]")
    height, width = picture.shape[:2]
    if not height or not width:
        raise ValueError(f"image is {height} x {width} pixels")
    boxes = np.asarray(boxes, np.float64)
    if boxes.size and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise ValueError(f"boxes are {list(boxes.shape)}, not [N, 4]")
    boxes = boxes.reshape(-1, 4)
    labels = np.asarray(labels, np.int64).reshape(-1)
    for name, values in (("labels", labels), ("scores", scores), ("masks", masks)):
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"{len(boxes)} boxes, but {len(values)} {name}")

    if not np.isfinite(boxes).all():
        raise ValueError("a box is not finite")
    boxes = boxes.clip(-1e6, 1e6)
    line = max(1, round(min(height, width) / 400))
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    order = np.argsort(-sides.prod(axis=1), kind="stable")
    for i in order:
        colour = class_colour(int(labels[i]))
        if masks is not None:
            _blend(picture, masks[i], colour, alpha, line)
    for i in order:
        if draw_boxes:
            x1, y1, x2, y2 = boxes[i].round().astype(int).tolist()
            end = (max(x2 - 1, x1), max(y2 - 1, y1))
            cv2.rectangle(picture, (x1, y1), end, class_colour(int(labels[i])), line)
    if not draw_labels or not len(boxes):
        return picture
    canvas = Image.fromarray(picture)
    pen, font = ImageDraw.Draw(canvas), _font(max(9, min(28, round(min(height, width) / 32))))
    plates = np.zeros((len(order), 4), np.int64)  # what the labels so far cover
    for n, i in enumerate(order):
        label = int(labels[i])
        known = class_names is not None and 0 <= label < len(class_names)
        text = str(class_names[label]) if known and class_names is not None else str(label)
        if scores is not None:
            text += f" {float(scores[i]):.2f}"
        colour = class_colour(label)
        plates[n] = _write(pen, text, boxes[i].tolist(), plates[:n], colour, font)
    return np.array(canvas)


def class_colour(label: int) -> Colour:
    """The RGB colour of a class: vivid, and unlike those of other classes.

    Hues go round by the golden ratio, which keeps any number of them apart. The closest come 13,
    21, 34, 55, ... classes later, so six shades take turns: no multiple of six is among these.
    """
    hue = (0.58 + label * 0.61803398875) % 1
    shades = ((0.85, 1.0), (0.55, 1.0), (0.95, 0.75), (0.7, 0.85), (0.4, 0.9), (0.8, 0.6))
    saturation, value = shades[label % 6]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def grid(
    pairs: Sequence[tuple[Any, Any]],
    titles: tuple[str, str] = ("prediction", "ground truth"),
    *,
    columns: int = 1,
    max_width: int = 1600,
    gap: int = 12,
) -> Picture:
    """Lay pairs of pictures out side by side on white, with titles above.

    Args:
        pairs: (left, right), each [H, W, 3] uint8. Pairs may differ in size: all are scaled to
            one width, keeping their aspect.
        titles: above the left and the right pictures; empty strings leave the line out.
        columns: pairs next to each other.
        max_width: the result is no wider, in pixels. Pictures are made smaller, never larger
            than the widest one.
        gap: between pictures, in pixels; twice as much between pairs.

    Returns:
        [H, W, 3] uint8.

    Raises:
        ValueError: no pairs, or no room for them.
    """
    if not pairs or columns < 1:
        raise ValueError("a grid needs at least one pair and one column")
    columns = min(columns, len(pairs))
    gaps = gap * (2 + columns + 2 * (columns - 1))  # around, inside pairs, between pairs
    widest = max(np.shape(one)[1] for pair in pairs for one in pair)
    cell = min(widest, (max_width - gaps) // (2 * columns))
    if cell < 1:
        raise ValueError(f"{columns} columns do not fit into {max_width} pixels")
    font = _font(max(9, min(28, cell // 14)))
    title_height = round(1.7 * font.size) if any(titles) else 0

    lines = []
    for start in range(0, len(pairs), columns):
        line = [[_fit(one, cell) for one in pair] for pair in pairs[start : start + columns]]
        lines.append((line, max(one.shape[0] for pair in line for one in pair)))
    height = title_height + gap + sum(tallest + gap for _, tallest in lines)
    sheet = np.full((height, 2 * columns * cell + gaps, 3), 255, np.uint8)
    lefts = [gap + k // 2 * (2 * cell + 3 * gap) + k % 2 * (cell + gap) for k in range(2 * columns)]
    top = title_height + gap
    for line, tallest in lines:
        for left, one in zip(lefts, [one for pair in line for one in pair], strict=False):
            sheet[top : top + one.shape[0], left : left + cell] = one
        top += tallest + gap
    if not title_height:
        return sheet
    canvas = Image.fromarray(sheet)
    pen = ImageDraw.Draw(canvas)
    for k, left in enumerate(lefts):
        middle = (left + cell / 2, gap / 2 + title_height / 2)
        pen.text(middle, titles[k % 2], fill=(40, 40, 40), font=font, anchor="mm")
    return np.array(canvas)


def save_png(path: str | Path, image: Any) -> None:
    """Write [H, W, 3] uint8 as a PNG, whole or not at all; InputError where that fails."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            Image.fromarray(np.asarray(image)).save(file, format="PNG")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _plain(values: Any) -> Any:
    """A tensor of any device as an array; anything else as it is."""
    if not hasattr(values, "detach"):
        return values
    values = values.detach().cpu()
    # NumPy has no bfloat16.
    return (values.float() if values.is_floating_point() else values).numpy()


def _pixels(image: Any) -> Picture:
    """What ``draw`` takes as an image, [H, W, 3] uint8 RGB."""
    if isinstance(image, str | os.PathLike):
        try:
            with Image.open(image, formats=FORMATS) as opened:
                return _pixels(opened)
        except InputError as error:
            raise InputError(f"{os.fspath(image)}: {error}") from error
        except (OSError, Image.DecompressionBombError) as error:
            reason = getattr(error, "strerror", None) or "not an image that can be read"
            raise InputError(f"{os.fspath(image)}: {reason}") from error
    if isinstance(image, Image.Image):
        from autotimm.images.decode import rgb

        try:
            return rgb(ImageOps.exif_transpose(image))
        except InputError:
            raise
        except BROKEN as error:  # PIL reads the pixels of a file only now
            raise InputError("not an image that can be read") from error
    pixels = np.asarray(_plain(image))
    if hasattr(image, "detach") and pixels.ndim == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.dtype.kind == "f" and pixels.size:
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise InputError(
                "the image has values outside of 0 to 1: give the photo, not what the model gets"
            )
        pixels = (255 * pixels).round().astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def _window(mask: Any, height: int, width: int) -> tuple[int, int, NDArray[np.uint8]]:
    """The box of a mask, by its left and top, and the mask [h, w] of 0 and 1 inside it."""
    shape = tuple(mask.get("size", ())) if isinstance(mask, dict) else np.shape(mask)
    if shape != (height, width):
        raise ValueError(f"a mask of {shape} does not fit an image of {(height, width)}")
    if isinstance(mask, dict):
        return rle.decode_window(cast(RLE, mask))
    dense = (np.asarray(mask) > 0.5).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(dense)
    return x, y, dense[y : y + h, x : x + w]


def _blend(picture: Picture, mask: Any, colour: Colour, alpha: float, line: int) -> None:
    """Tint the pixels of a mask and draw its outline; changes ``picture``.

    Looks at the box of the mask only, for the sake of small objects on large pictures.
    """
    x, y, inside = _window(mask, *picture.shape[:2])
    if not inside.size:
        return
    height, width = inside.shape
    part = picture[y : y + height, x : x + width]
    tint = part + alpha * (np.array(colour) - part.astype(np.float32))
    np.copyto(part, tint.round().astype(np.uint8), where=inside[..., None] > 0)

    lighter = tuple(round(value + 0.4 * (255 - value)) for value in colour)
    contours, _ = cv2.findContours(inside.copy(), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, lighter, line, cv2.LINE_AA, offset=(x, y))


def _write(
    pen: ImageDraw.ImageDraw,
    text: str,
    box: list[float],
    plates: NDArray[np.int64],
    colour: Colour,
    font: ImageFont.FreeTypeFont,
) -> Plate:
    """Write on a plate of ``colour`` by the box; returns what the plate covers."""
    left, _, right, _ = font.getbbox(text)
    pad = max(1, round(font.size / 6))
    size = (round(right - left) + 2 * pad, round(font.size) + 2 * pad)
    x1, y1, x2, y2 = plate = _free_plate(size, box, plates, pen.im.size)
    pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
    # Rec. 601 luma decides between black and white letters.
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    ink = (0, 0, 0) if luma > 140 else (255, 255, 255)
    pen.text((x1 + pad - left, (y1 + y2) / 2), text, fill=ink, font=font, anchor="lm")
    return plate


def _free_plate(
    size: tuple[int, int], box: list[float], taken: NDArray[np.int64], limits: tuple[int, int]
) -> Plate:
    """A place for a label inside the picture: by a corner of the box, clear of other labels.

    Above the upper left corner if that is free, else the first free one of the others, else there
    all the same.
    """
    width, height = size
    x1, y1, x2, y2 = box
    above = y1 - height if y1 >= height else y1
    places = [(x1, above), (x1, y1), (x2 - width, above), (x1, y2), (x2 - width, y2 - height)]
    options: list[Plate] = []
    for x, y in places:
        left = round(max(0, min(x, limits[0] - width)))
        top = round(max(0, min(y, limits[1] - height)))
        right, bottom = left + width, top + height
        options.append((left, top, right, bottom))
        beside = (taken[:, 0] >= right) | (taken[:, 2] <= left)
        if (beside | (taken[:, 1] >= bottom) | (taken[:, 3] <= top)).all():
            return options[-1]
    return options[0]


def _fit(image: Any, width: int) -> Picture:
    image = np.asarray(image)
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    if image.shape[1] == width:
        return image
    smaller = width < image.shape[1]
    return cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The scalable font that PIL brings along, so that pictures look alike on every machine."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise InputError("this build of Pillow has no FreeType: pip install a wheel of Pillow")
    return font
