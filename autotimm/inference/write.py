"""Writes the detections of many images: COCO's JSON, and pictures."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from autotimm import visualize
from autotimm.evaluation.coco_eval import to_results
from autotimm.files import urls
from autotimm.files.atomic import whole_file
from autotimm.files.shortage import reason
from autotimm.inference.large import LargeImage
from autotimm.redaction import redacted
from autotimm.structures import Detections, InputError

RESULTS, IMAGES, PICTURES = "results.json", "images.json", "pictures"
VIDEOS = "videos"
_LONGEST = 200  # bytes of a name: file systems take 255, with a number and a suffix


class Stems:
    """Names for what is written of each image: its own, of which none comes twice."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}  # how often each name was wanted

    def of(self, name: str) -> str:
        """The image's name, shortened for file systems, and numbered if another image has it."""
        stem = Path(urls.shown(name)).stem or "image"
        stem = stem.encode()[:_LONGEST].decode(errors="ignore")
        chosen = stem
        while chosen.lower() in self._used:  # some file systems take a for A
            self._used[stem.lower()] += 1
            chosen = f"{stem}-{self._used[stem.lower()]}"
        self._used[chosen.lower()] = 1
        return chosen


def as_text(name: str) -> str:
    """A path or URL for JSON, which must be UTF-8 where a file's name need not be; no secrets."""
    return os.fsencode(redacted(name)).decode("utf-8", "backslashreplace")


def drawn_over(
    pixels: np.ndarray,
    found: Detections,
    least: float,
    names: Sequence[str],
    size: tuple[int, int] | None = None,
) -> tuple[np.ndarray, int]:
    """A picture with the detections that have at least the score ``least``, and their number.

    ``size`` is as of :func:`autotimm.visualize.draw_instances`.
    """
    count = int((found["scores"] >= least).sum())
    rles = found.get("rles")
    picture = visualize.draw_instances(
        pixels,
        found["boxes"][:count],
        found["labels"][:count],
        found["scores"][:count],
        None if rles is None else rles[:count],
        class_names=names,
        size=size,
    )
    return picture, count


def is_output(out: Path) -> Callable[[Path], bool]:
    """Makes the test whether a run wrote a file or folder: into ``out``, or beside its own JSON."""
    here = os.path.realpath(out)  # Path.resolve() fails on loops of links

    def own(path: Path) -> bool:
        if path.name not in (RESULTS, IMAGES, PICTURES, VIDEOS):
            return False
        pair = (path.parent / RESULTS, path.parent / IMAGES)
        return os.path.realpath(path.parent) == here or all(one.is_file() for one in pair)

    return own


@dataclass
class Writer:
    """Writes images one by one; :meth:`close` completes the JSON files, which appear only then.

    ``results.json`` holds COCO results with class names added. ``images.json`` holds the images
    (ids from 1, in order) and the categories as an annotation file does, so that
    ``COCO("images.json").loadRes("results.json")`` opens both.

    Attributes:
        out: folder; made with the first image.
        categories: ``id`` and ``name`` of each label, for the JSON.
        names: of each label, for pictures and results.
        as_json: whether to write the JSON files.
        draw_from: least score of the detections that are drawn; None draws no pictures.
        images: those written so far, as in ``images.json``.
        instances: number of detections written so far.
        drawn: number of detections drawn so far.
        smaller: number of pictures so far that are smaller than their image.
    """

    out: Path
    categories: Sequence[dict[str, Any]]
    names: Sequence[str]
    as_json: bool = True
    draw_from: float | None = None
    images: list[dict[str, Any]] = field(default_factory=list)
    instances: int = 0
    drawn: int = 0
    smaller: int = 0
    _stems: Stems = field(default_factory=lambda: Stems())
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _results: BinaryIO | None = None  # written as they come: there may be too many for the memory
    _begun: bool = False

    def add(self, name: str, pixels: np.ndarray | LargeImage, found: Detections) -> None:
        """Writes the detections of an image.

        Args:
            name: the image's path or URL.
            pixels: [H, W, 3] uint8 RGB; a large image, of which all tiles were read, is drawn
                smaller, and a small one larger.
            found: detections in these pixels, best first.

        Raises:
            InputError: the picture or the results cannot be written.
        """
        if not self.images:
            with self._naming(""):
                self.out.mkdir(parents=True, exist_ok=True)
        size = height, width = pixels.shape[:2]
        image_id = len(self.images) + 1
        shown = as_text(name)
        self.images.append({"id": image_id, "file_name": shown, "width": width, "height": height})
        self.instances += len(found["scores"])
        if self.as_json:
            ids = [one["id"] for one in self.categories]
            self._append(to_results(found, image_id, ids, self.names))
        if self.draw_from is not None:
            if isinstance(pixels, LargeImage):
                self.smaller += 1
                found, pixels = pixels.shrunk(found), pixels.reduced
                size = pixels.shape[:2]
            else:
                pixels = visualize.enlarged(pixels)
            picture, count = drawn_over(pixels, found, self.draw_from, self.names, size)
            self.drawn += count
            folder = self.out / PICTURES
            folder.mkdir(exist_ok=True)
            visualize.save_png(folder / f"{self._stems.of(shown)}.png", picture)

    def close(self) -> list[str]:
        """Completes the JSON files; returns the names of the files and folders written to ``out``.

        Raises:
            InputError: a file cannot be written.
        """
        if self.as_json:
            content = {"images": self.images, "annotations": [], "categories": self.categories}
            with self._naming(RESULTS), self._open:
                self._append([])
                assert self._results is not None
                self._results.write(b"]")
            with self._naming(IMAGES), whole_file(self.out / IMAGES) as file:
                file.write(orjson.dumps(content))
        drawn = [f"{PICTURES}/"] if self.draw_from is not None else []
        return [*([RESULTS, IMAGES] if self.as_json else []), *drawn]

    def _append(self, entries: Sequence[dict[str, Any]]) -> None:
        with self._naming(RESULTS):
            if self._results is None:
                self._results = self._open.enter_context(whole_file(self.out / RESULTS))
                self._results.write(b"[")
            for entry in entries:
                self._results.write((b",\n" if self._begun else b"") + orjson.dumps(entry))
                self._begun = True

    @contextlib.contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Turns an OSError into an InputError that names the file."""
        try:
            yield
        except OSError as error:
            raise InputError(f"cannot write {self.out / name}: {reason(error)}") from error
