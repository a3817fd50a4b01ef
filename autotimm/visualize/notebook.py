"""Draw detections over whatever a user has as an image, such as in a notebook."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from autotimm.images.decode import decode_upright, rgb
from autotimm.images.opening import BROKEN
from autotimm.structures import InputError
from autotimm.visualize.instances import Picture, draw_instances


def draw(
    image: Any,
    found: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
    *,
    threshold: float = 0.5,
    **style: Any,
) -> Image.Image:
    """Draw detections or a target over their image. A notebook shows the returned picture.

    Args:
        image: a path, a PIL image, an array [H, W, 3] (RGB) or [H, W] of uint8, or a tensor
            [3, H, W] of uint8 or of floats from 0 to 1, not normalised.
        found: the instances, as ``autotimm.predict`` and ``model.predict`` return them for an
            image: ``boxes`` [N, 4] in the image's pixels, ``labels`` [N], optionally ``scores`` [N]
            and either ``masks`` [N, H, W] or ``rles``.
        class_names: the name of each label, such as ``model.class_names``.
        threshold: instances with a lower score are left out.
        **style: ``alpha``, ``draw_boxes`` and ``draw_labels`` of ``draw_instances``.

    Raises:
        InputError: the image cannot be read, or the instances do not fit it.
    """
    if not isinstance(found, Mapping):
        raise InputError(f"found is a {type(found).__name__}: give one image's boxes, labels, ...")
    if missing := {"boxes", "labels"} - set(found):
        raise InputError(f"found: it has no {' and no '.join(sorted(missing))}")
    parts = {key: _plain(found[key]) for key in ("boxes", "labels", "scores") if key in found}
    masks = found.get("rles", found.get("masks"))
    scores = parts.get("scores")
    counts = {len(part) for part in (*parts.values(), masks) if part is not None}
    if scores is not None and len(counts) == 1:  # draw_instances() reports counts that differ
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


def _pixels(image: Any) -> Picture:
    """Convert any image that ``draw`` accepts to [H, W, 3] uint8 RGB."""
    if isinstance(image, str | os.PathLike):
        try:
            return decode_upright(Path(image).read_bytes())
        except InputError as error:
            raise InputError(f"{os.fspath(image)}: {error}") from error
        except OSError as error:
            raise InputError(f"{os.fspath(image)}: {error.strerror}") from error
    if isinstance(image, Image.Image):
        try:
            return rgb(ImageOps.exif_transpose(image))
        except InputError:
            raise
        except BROKEN as error:  # PIL does not read the pixels of a file before this point
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


def _plain(values: Any) -> Any:
    """Convert a tensor on any device to an array; return anything else unchanged."""
    if not hasattr(values, "detach"):
        return values
    values = values.detach().cpu()
    # In float32, because NumPy has no bfloat16.
    return (values.float() if values.is_floating_point() else values).numpy()
