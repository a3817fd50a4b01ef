"""Atomic writes: a file appears under its name complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from autotimm.files.shortage import name_file

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The error numbers for a full disk and for a user's exhausted quota."""


def read_file(path: Path) -> bytes:
    """Reads a regular file.

    Raises:
        OSError: the file cannot be read, or is not a regular file (reading a FIFO or a device may
            never end).
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_bytes()


@contextlib.contextmanager
def whole_file(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Opens a temporary file beside ``path`` and renames it to ``path`` when the block succeeds.

    The file is synced before it is renamed, so that a power failure cannot leave an empty file
    under the name; pass ``sync=False`` where an empty file does no harm. An error in the block
    removes the temporary file. The umask sets the permissions.

    Raises:
        OSError: some of the data could not be written; possibly only when the block ends.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    # Buffered, because an unbuffered write() may write only a part and merely return its length.
    file = temporary.open("xb")
    try:
        with file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        name_file(error, path)  # a failed write has no file name
        temporary.unlink(missing_ok=True)
        raise
