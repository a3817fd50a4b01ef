"""Processes take turns with large images, so that few of these are in memory at a time.

A picture of 500 kB may unfold into 500 MB, and every data worker may hold one. So the processes of
a program decode images above ``LARGE`` one at a time, each until it is cut out or made smaller; up
to that many pixels a worker holds at most 200 MB of one, and nobody waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import threading
from collections.abc import Iterator

LARGE = 2**26
"""Pixels from which on an image takes its turn, and pixels that are read ahead: 200 MB as RGB, and
up to three times that while they are decoded."""


def _unnamed_file() -> int | None:
    """A file without a name, for the life of the process; a file object would warn at its end."""
    if hasattr(os, "memfd_create"):  # Linux
        with contextlib.suppress(OSError):
            return os.memfd_create("autotimm-turns")
    import tempfile  # takes longer to import than this module

    with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
    return None  # nowhere to write: then threads alone take turns


_within = threading.Lock()  # one thread of this process; the file's lock knows processes only
_file = _unnamed_file()  # forks inherit it; the system unlocks it when a process dies


def in_turn(pixels: int) -> contextlib.AbstractContextManager[None]:
    """Waits until no other thread, forked process or process that has joined holds a large image.

    Not to be nested.

    Args:
        pixels: of the image; nobody waits for one of ``LARGE`` or fewer.
    """
    return _AT_ONCE if pixels <= LARGE else _turn()


_AT_ONCE = contextlib.nullcontext()  # asked for several times an image: not made anew


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    with _within:
        if _file is not None:
            fcntl.lockf(_file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            return_memory()
            if _file is not None:
                fcntl.lockf(_file, fcntl.LOCK_UN)


def return_memory() -> None:
    """Returns freed memory to the system after a large image.

    PIL frees an image in blocks, which glibc keeps for the thread that had them: with several
    threads, several times the image.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def share() -> str:
    """The path with which a process that is spawned, not forked, joins the turns of this one."""
    return f"/proc/{os.getpid()}/fd/{_file}" if _file is not None else os.devnull


def join(path: str) -> None:
    """Takes turns with the process that shared this path; without ``/proc`` with forks alone."""
    global _file
    with contextlib.suppress(OSError):
        _file = os.open(path, os.O_RDWR)  # the own one stays open: another thread may hold it


def _unlock_in_child() -> None:
    global _within
    _within = threading.Lock()  # a thread of the parent may have held it


os.register_at_fork(after_in_child=_unlock_in_child)
