"""What to do where memory or a disk is short: one line for whatever error a library raises.

The command line asks here about every error that reaches it, so no code that allocates or writes
needs to think of it. Errors of writing that lack a file name get one where files are opened
(``files/atomic.py``).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

# Patterns as text, which ``re`` compiles once there is an error: every start imports this module.
# With a question mark it is a guess about a killed worker, whose line says what to do.
_MEMORY = (
    r"(?i)can(?:no|')t allocate memory|cannot allocate memory|std::bad_alloc|out of memory(?!\?)"
    r"|failed to allocate|insufficient memory|unable to allocate|CUBLAS_STATUS_ALLOC_FAILED"
    r"|failed to map segment|can't start new thread|\bMemoryError\b"
)
_DEVICE = r"(?i)\b(?:CUDA|HIP|MPS|XPU|GPU|CUBLAS)"
_AMOUNT = r"(?i)tried to allocate ([\d.]+ [KMGT]i?B)|tried to allocate (\d+) bytes"
_SHARED = r"(?i)shared memory|/dev/shm|/torch_\d+_"
_TEXTS = (RuntimeError, OSError, ImportError)  # among whose texts to look; cv2.error is no subclass

_LOWER = {
    "predict": "lower --batch-size or --image-size, or give --tile",
    "evaluate": "lower --batch-size, --image-size or --num-workers, or give --tile",
    "shard": "give fewer --workers",
    "preview": "lower --image-size or --samples",
    "export": "export on a machine with more memory, or lower --image-size",
}
_OF_TRAINING = "lower --data.batch_size, --data.image_size or --data.num_workers"

_LIMITS = {
    errno.EMFILE: "raise ulimit -n, or use fewer workers",
    errno.ENFILE: "the machine has too many files open: use fewer workers, or end other programs",
    errno.EAGAIN: "no further process may start: raise ulimit -u or the container's limit of "
    "processes, or use fewer workers",
}
_DISK = {
    errno.ENOSPC: "free some room there, or choose another folder",
    errno.EDQUOT: "your quota is used up: free some room there, or choose another folder",
    errno.EFBIG: "its file system or ulimit -f allows no larger file: choose another folder",
    errno.EIO: "the disk or its connection fails: look at dmesg, or choose another folder",
    errno.EROFS: "it cannot be written to: choose another folder",
}


def shortage(error: BaseException, verb: str = "fit") -> str | None:
    """One line that says what is short and what to do about it; None for any other error.

    Args:
        error: that ends the command.
        verb: of the command, whose flags the line names.
    """
    for one in _chain(error):
        line = _memory(one, verb) or disk(one) or _limit(one)
        if line is not None:
            return line
    return None


def disk(error: BaseException) -> str | None:
    """The line for an OSError of a full, failing or read-only disk; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in _DISK:
        return None
    if error.filename is None:  # of print(), or a library's own writer
        what, way_out = error.strerror or str(error), _DISK[error.errno]
        return f"{what} for standard output, or a file that the system does not name: {way_out}"
    return f"{error.filename}: {reason(error)}"


def reason(error: OSError) -> str:
    """The system's message without the file's name, and the way out where a disk is short."""
    way_out = _DISK.get(error.errno or 0)
    return f"{error.strerror or error}{f': {way_out}' if way_out else ''}"


def _limit(error: BaseException) -> str | None:
    """The line for an OSError of a limit of the system's; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in _LIMITS:
        return None
    return f"{error.strerror or error}: {_LIMITS[error.errno]}"


def name_file(error: BaseException, path: object) -> None:
    """Gives the OSErrors behind an error, that lack a file name, that of the file being written."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno is not None and one.filename is None:
            one.filename = str(path)


def _memory(error: BaseException, verb: str) -> str | None:
    text = " ".join(str(error).split())
    kind = type(error).__name__
    exhausted = isinstance(error, MemoryError) or kind == "OutOfMemoryError"
    if not exhausted and not (isinstance(error, _TEXTS) or kind == "error"):
        return None
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOMEM):
        return None
    if not exhausted and re.search(_SHARED, text) and not isinstance(error, OSError):
        return "shared memory (/dev/shm) is full: use fewer workers, or give the container more"
    if not exhausted and not re.search(_MEMORY, text):
        return None
    on_device = kind == "OutOfMemoryError" or re.search(_DEVICE, text)
    found = re.search(_AMOUNT, text)
    amount = f" (it tried to allocate {found[1] or f'{int(found[2]):,} bytes'})" if found else ""
    where = "the device is out of memory" if on_device else "out of memory"
    return f"{where}{amount}: {_LOWER.get(verb, _OF_TRAINING)}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
