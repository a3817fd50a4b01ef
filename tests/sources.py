"""All that a source holds, for tests of several kinds of sources."""

from __future__ import annotations

from autotimm.streaming.store import FolderSource, ShardSource


def everything(source: ShardSource | FolderSource) -> list[tuple[bytes, dict]]:
    return [
        (bytes(image), record)
        for k, size in enumerate(source.shard_sizes)
        for image, record in (source.read(k, i) for i in range(size))
    ]
