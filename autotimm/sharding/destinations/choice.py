"""Chooses the destination of shards by what the user gives: a local folder, or a URL's store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from autotimm.files import urls
from autotimm.sharding.destinations.local_folder import LocalFolder
from autotimm.structures import InputError

if TYPE_CHECKING:
    from autotimm.sharding.destinations.remote_folder import RemoteFolder

Destination: TypeAlias = "LocalFolder | RemoteFolder"


def destination(text: str) -> Destination:
    """Makes the destination for a folder or URL on the command line.

    Raises:
        InputError: the text is empty, or autotimm-shard cannot write to such a URL.
    """
    if not text:
        raise InputError("DST: empty; give a folder or a URL")
    kind = urls.kind(text)
    if not kind:
        return LocalFolder(Path(text))
    if kind in ("chained", "http", "https"):
        raise InputError(
            f"DST: {kind} URLs cannot be written to; give a folder, or the URL of a store such as "
            "s3://bucket/folder"
        )
    if kind == "memory":
        raise InputError(
            "DST: memory URLs are gone with the process; give a folder, or the URL of a store"
        )
    if kind == "file":
        return LocalFolder(urls.file_path(text))
    if kind == "s3":
        urls.locate(text)  # refuses keys in the URL, which would count as the bucket's name
    from autotimm.sharding.destinations.remote_folder import RemoteFolder

    return RemoteFolder(text)
