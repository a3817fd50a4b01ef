"""Detects what a location holds: a COCO folder, shards, or tars that another tool wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autotimm.coco.layouts import Split
from autotimm.files.urls import Location, locate
from autotimm.format.manifest import MANIFEST
from autotimm.streaming import foreign

Layout = Literal["coco", "shards", "tars"]


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A folder of data, on this machine or on a server.

    Attributes:
        location: the path or URL.
        layout: "shards" that autotimm-shard wrote, "tars" of another tool, without a manifest, or
            "coco", which stands for anything else.
    """

    location: Location
    layout: Layout

    @property
    def folder(self) -> Path | None:
        """The path on this machine; None for a URL, which can only be of shards."""
        return self.location.folder


@dataclass(frozen=True, slots=True)
class NamedFiles(Location):
    """A split whose annotation files and image folders were named one by one.

    Attributes:
        split: the only one.
    """

    split: Split

    @classmethod
    def of(cls, split: Split) -> NamedFiles:
        """The location of a split; messages call it by its first annotation file."""
        return cls(str(split.annotation_file), split.image_folder, split)


def detect_layout(data_dir: str | Path | Location | DataFolder) -> DataFolder:
    """Detects what a folder or URL holds; returns a ``DataFolder`` unchanged.

    Raises:
        InputError: for the reasons given in :func:`autotimm.files.urls.locate` and
            :func:`autotimm.streaming.foreign.are_tars`.
    """
    if isinstance(data_dir, DataFolder):
        return data_dir
    location = locate(data_dir)
    if isinstance(location, NamedFiles):
        return DataFolder(location, "coco")
    folder = location.folder
    if folder is None or (folder / MANIFEST).is_file():
        return DataFolder(location, "shards")
    return DataFolder(location, "tars" if foreign.are_tars(folder) else "coco")
