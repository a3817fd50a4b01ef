"""What lies at a location: a COCO folder, shards, or tars of others; looked at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autotimm.files.urls import Location, locate
from autotimm.format.manifest import MANIFEST
from autotimm.streaming import foreign

Layout = Literal["coco", "shards", "tars"]


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A folder of data, on this machine or on a server.

    Attributes:
        location: where it is.
        layout: "shards" of autotimm-shard, "tars" of others without a manifest, or else "coco".
    """

    location: Location
    layout: Layout

    @property
    def folder(self) -> Path | None:
        """Its path on this machine; None on a server, where only shards lie."""
        return self.location.folder


def look(data_dir: str | Path | Location | DataFolder) -> DataFolder:
    """Finds out what a folder or a URL holds; what was looked at already is returned as it is.

    Raises:
        InputError: as :func:`autotimm.files.urls.locate` and
            :func:`autotimm.streaming.foreign.are_tars`.
    """
    if isinstance(data_dir, DataFolder):
        return data_dir
    location = locate(data_dir)
    folder = location.folder
    if folder is None or (folder / MANIFEST).is_file():
        return DataFolder(location, "shards")
    return DataFolder(location, "tars" if foreign.are_tars(folder) else "coco")
