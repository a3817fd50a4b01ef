"""What was found in many images, as files: COCO's JSON, and pictures."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from autotimm import urls, visualize
from autotimm.evaluation.coco_eval import to_results
from autotimm.sharding.manifest import whole_file
from autotimm.structures import Detections, InputError

RESULTS, IMAGES, PICTURES = "results.json", "images.json", "pictures"
_LONGEST = 200  # bytes of a name; disks take 255, a number and a suffix come besides


@dataclass
class Writer:
    """Takes images one by one; :meth:`close` ends the JSON, whose files appear then, whole.

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
    instances: int = 0
    drawn: int = 0
    _names: dict[str, int] = field(default_factory=dict)  # of pictures, and how often each came
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _results: BinaryIO | None = None  # on the disk at once: of many images there is no end
    _begun: bool = False

    def add(self, name: str, pixels: np.ndarray, found: Detections) -> None:
        """Takes an image: where it came from, [H, W, 3] uint8, and what was found in it.

        Raises:
            InputError: its picture or its results cannot be written.
        """
        height, width = pixels.shape[:2]
        image_id = len(self.images) + 1
        # A file's name need not be UTF-8, and JSON must.
        shown = os.fsencode(urls.shown(name)).decode("utf-8", "backslashreplace")
        self.images.append({"id": image_id, "file_name": shown, "width": width, "height": height})
        self.instances += len(found["scores"])
        if self.as_json:
            ids = [one["id"] for one in self.categories]
            self._append(to_results(found, image_id, ids, self.names))
        if self.draw_from is not None:
            count = int((found["scores"] >= self.draw_from).sum())
            self.drawn += count
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
        """Ends the JSON of all images taken; returns the names of what is in ``out``.

        Raises:
            InputError: a file cannot be written.
        """
        if self.as_json:
            content = {"images": self.images, "annotations": [], "categories": self.categories}
            with self._told(RESULTS), self._open:
                self._append([])
                assert self._results is not None
                self._results.write(b"]")
            with self._told(IMAGES), whole_file(self.out / IMAGES) as file:
                file.write(orjson.dumps(content))
        drawn = [f"{PICTURES}/"] if self.draw_from is not None else []
        return [*([RESULTS, IMAGES] if self.as_json else []), *drawn]

    def _append(self, entries: Sequence[dict[str, Any]]) -> None:
        with self._told(RESULTS):
            if self._results is None:
                self._results = self._open.enter_context(whole_file(self.out / RESULTS))
                self._results.write(b"[")
            for entry in entries:
                self._results.write((b",\n" if self._begun else b"") + orjson.dumps(entry))
                self._begun = True

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot write {self.out / name}: {reason}") from error

    def _picture_name(self, name: str) -> str:
        """The image's own name, cut to what every disk takes, numbered where another has it."""
        stem = Path(name.partition("?")[0] if urls.kind(name) else name).stem or "image"
        stem = stem.encode()[:_LONGEST].decode(errors="ignore")
        chosen = stem
        while chosen.lower() in self._names:  # disks that take a for A
            self._names[stem.lower()] += 1
            chosen = f"{stem}-{self._names[stem.lower()]}"
        self._names[chosen.lower()] = 1
        return f"{chosen}.png"
