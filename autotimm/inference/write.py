"""What was found in many images, as files: COCO's JSON, and pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from autotimm import urls, visualize
from autotimm.evaluation.coco_eval import to_results
from autotimm.sharding.manifest import whole_file
from autotimm.structures import Detections

RESULTS, IMAGES, PICTURES = "results.json", "images.json", "pictures"


@dataclass
class Writer:
    """Takes images one by one; :meth:`close` writes the JSON.

    ``results.json`` holds COCO results, with the class' name besides; ``images.json`` the images
    (ids from 1 in their order) and categories as an annotation file has them, so that
    ``COCO("images.json").loadRes("results.json")`` opens both.

    Attributes:
        out: folder, which is there.
        categories: ``id`` and ``name`` of each label, for JSON.
        names: what to call each label.
        as_json: whether to write these files.
        draw_from: least score of what is drawn; None draws no picture.
    """

    out: Path
    categories: Sequence[dict[str, Any]]
    names: Sequence[str]
    as_json: bool = True
    draw_from: float | None = None
    images: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    _taken: set[str] = field(default_factory=set)

    def add(self, name: str, pixels: np.ndarray, found: Detections) -> None:
        """Takes an image: where it came from, [H, W, 3] uint8, and what was found in it.

        Raises:
            InputError: its picture cannot be written.
        """
        height, width = pixels.shape[:2]
        image_id = len(self.images) + 1
        # A file's name need not be UTF-8, and JSON must.
        shown = os.fsencode(urls.shown(name)).decode("utf-8", "backslashreplace")
        self.images.append({"id": image_id, "file_name": shown, "width": width, "height": height})
        if self.as_json:
            ids = [one["id"] for one in self.categories]
            self.results += to_results(found, image_id, ids, self.names)
        if self.draw_from is not None:
            count = int((found["scores"] >= self.draw_from).sum())
            rles = found.get("rles")
            picture = visualize.draw_instances(
                pixels,
                found["boxes"][:count],
                found["labels"][:count],
                found["scores"][:count],
                None if rles is None else rles[:count],
                class_names=self.names,
            )
            folder = self.out / PICTURES
            folder.mkdir(exist_ok=True)
            visualize.save_png(folder / self._picture_name(shown), picture)

    def close(self) -> list[str]:
        """Writes the JSON of all images taken; returns the names of what is in ``out``."""
        if self.as_json:
            content = {"images": self.images, "annotations": [], "categories": self.categories}
            for name, value in ((RESULTS, self.results), (IMAGES, content)):
                with whole_file(self.out / name) as file:
                    file.write(orjson.dumps(value))
        drawn = [f"{PICTURES}/"] if self.draw_from is not None else []
        return [*([RESULTS, IMAGES] if self.as_json else []), *drawn]

    def _picture_name(self, name: str) -> str:
        """The image's own name, numbered where another has it."""
        stem = Path(name.partition("?")[0]).stem or "image"
        chosen, number = stem, 2
        while chosen.lower() in self._taken:  # disks that take a for A
            chosen, number = f"{stem}-{number}", number + 1
        self._taken.add(chosen.lower())
        return f"{chosen}.png"
