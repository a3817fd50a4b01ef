"""Files that appear under their own name whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where there is no room on a disk, or no more of it for this user."""


def read_file(path: Path) -> bytes:
    """The content of a file that should be a plain one.

    Raises:
        OSError: it cannot be read, or is something else, of which some never come to an end.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return path.read_bytes()


@contextlib.contextmanager
def whole_file(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Opens a temporary file beside ``path`` that takes its name when the block ends well.

    The data is on the disk before the name is (fsync, then rename; ``sync=False`` where a file that
    a power failure empties does no harm); after an error nothing is left. Who may read it is for
    the umask to say. What is written is written whole, or OSError raised: at the latest at the end.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # With a buffer: without one, write() may write less than it is given, and only return how much.
    file = temporary.open("xb")
    try:
        with file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
