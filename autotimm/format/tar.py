"""Lists the members of a tar by its headers, without reading the data between them.

Invariants: a tar that is cut off anywhere, or has a damaged header, raises an InputError; offsets
and sizes lie inside the file; nothing is extracted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from autotimm.structures import InputError

BLOCK = 512  # bytes: the format's unit
RECORD = 20 * BLOCK  # tar files end on a multiple of this

_NO_DATA = b"12346"  # links and devices, which have no data whatever size the header gives
_LONGEST = 1 << 20  # bytes of a name that are read
_PAX_LENGTH = re.compile(rb"([0-9]{1,9}) ")


def members(tar: memoryview, plain: bool = True) -> Iterator[tuple[str, int, int]]:
    """Yields the name, data offset and size of every file in a tar.

    Args:
        tar: the whole file.
        plain: accept only plain ustar, which autotimm-shard writes. If False, read the long names
            of pax and GNU tars too, and ignore entries that are not files.

    Raises:
        InputError: the tar is cut off or damaged, or has an entry that is not allowed.
    """
    position = 0
    name: str | None = None  # the long name of the next entry
    while True:
        header = bytes(tar[position : position + BLOCK])
        if len(header) < BLOCK:
            raise InputError(f"the shard is cut off at byte {position}")
        if not any(header):
            _check_end(tar, position)
            return
        size, written = (field.strip(b"\0 ") for field in (header[124:136], header[148:156]))
        total = sum(header) - sum(header[148:156]) + 8 * 32
        # int() also accepts signs and underscores, and a negative size would cause an endless loop.
        if not all(re.fullmatch(b"[0-7]+", f) for f in (size, written)) or int(written, 8) != total:
            raise InputError(f"the shard is damaged at byte {position}")
        kind, start = header[156:157], position + BLOCK
        length = 0 if kind in _NO_DATA else int(size, 8)
        position = start + -(-length // BLOCK) * BLOCK
        if position > len(tar):
            raise InputError(f"the shard is cut off: byte {position} is not in it")
        if kind not in b"0\0" + b"5g" and (plain or kind not in b"7xLK" + _NO_DATA):
            raise InputError(
                f"the shard has a tar entry of type {kind.decode('latin-1')!r} at byte "
                f"{start - BLOCK}, which is not {'plain ustar' if plain else 'read'}"
            )
        if kind in b"xL":
            body = bytes(tar[start : start + min(length, _LONGEST)])
            long = body.rstrip(b"\0") if kind == b"L" else _pax_path(body, start)
            name = name if long is None else long.decode("utf-8", "replace")
        elif kind not in b"gK":
            short = name or _ustar_name(header)
            name = None
            if kind in b"0\x007" and not short.endswith("/"):  # a file
                yield short, start, length


def _check_end(tar: memoryview, position: int) -> None:
    # A lost part of a file may also read as zeros; at the end of a tar only zeros may follow.
    if len(tar) < position + 2 * BLOCK:
        raise InputError(f"the shard is cut off at byte {len(tar)}")
    if np.frombuffer(tar[position:], np.uint8).any():
        raise InputError(f"the shard is damaged at byte {position}")


def _ustar_name(header: bytes) -> str:
    name, prefix = (
        field.partition(b"\0")[0].decode("utf-8", "replace")
        for field in (header[:100], header[345:500])
    )
    # GNU's format stores times where ustar has the prefix.
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _pax_path(body: bytes, start: int) -> bytes | None:
    """The path in a pax header of records "length key=value"; None if it has none.

    The length counts the whole record, with itself and the newline.
    """
    path, position = None, 0
    while position < len(body):
        length = _PAX_LENGTH.match(body, position)
        end = position + int(length[1]) if length else 0
        if not length or end > len(body) or body[end - 1 : end] != b"\n":
            raise InputError(f"the shard is damaged at byte {start + position}")
        key, _, value = body[length.end() : end - 1].partition(b"=")
        if key == b"size" or key.startswith(b"GNU.sparse"):
            raise InputError(f"the shard has a sparse or huge file at byte {start}: not read")
        path = value if key == b"path" else path
        position = end
    return path
