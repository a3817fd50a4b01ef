"""Checksums within files, so that a reader finds every byte that changed or is missing.

A checksum is the XXH3-64 of a whole file, written into the file itself as 16 hexadecimal digits:

- a zip, as torch writes it, ends in the comment ``autotimm xxh3 <digits>``, and the checksum is of
  all bytes before the digits;
- a JSON text, also the header of a safetensors file, has the entry ``"xxh3":"<digits>"``, and the
  checksum is of the file with zeros instead of the digits.

A zip without such a comment is compared with the CRC-32 of each of its members.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import BinaryIO

import xxhash

KEY = "xxh3"
"""The name of the entry in a JSON text."""
UNSEALED = "0" * 16
"""The value of that entry before :func:`sealed` replaces it."""

_COMMENT = b"autotimm xxh3 "
_ENTRY = f'"{KEY}":"'.encode()
_CHUNK = 1 << 18  # bytes, which fit into a core's cache
_SMALL = 1 << 14  # bytes; smaller pieces are put together
_LENGTH = 8  # bytes at the beginning of a safetensors file, which hold the length of its header
_LONGEST = 100_000_000  # bytes of JSON, the most that safetensors accepts


class DamagedError(ValueError):
    """A file's bytes are not those that were written. The message says which, without its name."""


class SealedZip:
    """A file to write a zip to, whose checksum :meth:`seal` adds as the zip's comment.

    Args:
        file: open for writing. Nothing else may write to it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = xxhash.xxh3_64()
        self._held = bytearray()  # small pieces, and the last two bytes: the comment's length

    def write(self, data: bytes | memoryview) -> int:
        """Writes bytes, or a view of bytes; torch does so some five times a tensor."""
        count = len(data)
        if count < _SMALL:
            self._held += data
            if len(self._held) > _CHUNK:
                self._put(self._held[:-2])
                del self._held[:-2]
            return count
        self._put(self._held)
        view, end = memoryview(data), count - 2
        # In chunks, so that the system copies from the core's cache what was just read to hash it.
        for at in range(0, end, _CHUNK):
            self._put(view[at : min(at + _CHUNK, end)])
        self._held = bytearray(view[end:])
        return count

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> None:
        """Ends the file; ValueError if what was written is not a zip without a comment."""
        if self._held[-2:] != bytes(2):
            raise ValueError("not a zip without a comment")
        self._put(self._held[:-2])
        self._put((len(_COMMENT) + len(UNSEALED)).to_bytes(2, "little") + _COMMENT)
        self._file.write(self._hash.hexdigest().encode())

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        self._hash.update(data)
        self._file.write(data)


class SealedReader:
    """A file to read a sealed zip from, which computes the checksum of what passes.

    What is read in the order of the file, as :func:`torch.load` reads the tensors, is hashed while
    it is in the core's cache; :meth:`compare` reads what is left.

    Args:
        file: open for reading, seekable, with a checksum: see :func:`is_sealed`.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = file.seek(0, 2) - len(UNSEALED)
        self._hash = xxhash.xxh3_64()
        self._hashed = 0  # bytes from the beginning of the file
        self.seek, self.tell, self.read = file.seek, file.tell, file.read
        file.seek(0)

    def readinto(self, buffer: memoryview) -> int:
        if len(buffer) < _SMALL:
            return self._file.readinto(buffer)  # type: ignore[attr-defined]
        at, count = self._file.tell(), 0
        in_order = self._hashed <= at <= min(self._hashed + _CHUNK, self._end - len(buffer))
        if in_order:  # small pieces lie between this one and the one before
            _hash_of(self._file, self._hashed, at, self._hash)
            self._hashed = at
        while got := self._file.readinto(buffer[count : count + _CHUNK]):  # type: ignore[attr-defined]
            if in_order:
                self._hash.update(buffer[count : count + got])
            count += got
        if in_order:
            self._hashed += count
        return count

    def compare(self) -> None:
        """DamagedError if the file's bytes, read or not, differ from those that were written."""
        total = _hash_of(self._file, self._hashed, self._end, self._hash)
        self._file.seek(self._end)
        _compare(total.hexdigest(), self._file.read())


class InMemory(io.BytesIO):
    """A file's bytes to :func:`check`, which are hashed where they are instead of being copied."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.content = memoryview(content)


def sealed(content: bytes) -> bytes:
    """A JSON text or safetensors file, with its checksum in place of ``UNSEALED``."""
    at = content.index(_ENTRY + UNSEALED.encode()) + len(_ENTRY)
    digits = xxhash.xxh3_64_hexdigest(content).encode()
    return b"".join((content[:at], digits, content[at + len(digits) :]))


def check(file: BinaryIO) -> bool:
    """Compare the bytes of a file with its checksum, or with the CRCs of a zip.

    Args:
        file: open for reading, seekable; afterwards it is at its beginning.

    Returns:
        Whether the file has a checksum or CRCs.

    Raises:
        DamagedError: they differ, or the file is cut off.
    """
    try:
        return _check(file)
    finally:
        file.seek(0)


def is_sealed(file: BinaryIO) -> bool:
    """Whether a file ends in a checksum, as :class:`SealedZip` writes it."""
    size = file.seek(0, 2)
    file.seek(max(0, size - len(_COMMENT) - len(UNSEALED)))
    return file.read().startswith(_COMMENT)


def _check(file: BinaryIO) -> bool:
    if is_sealed(file):
        SealedReader(file).compare()
        return True
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(_LENGTH + 1)
    if head.startswith(b"PK"):
        _check_members(file)
        return True
    start = 0 if head.startswith(b"{") else _LENGTH
    if head[start : start + 1] != b"{":
        return False
    length = size if start == 0 else int.from_bytes(head[:_LENGTH], "little")
    file.seek(start)
    found = file.read(min(length, _LONGEST)).find(_ENTRY)
    if found < 0:
        return False
    at = start + found + len(_ENTRY)
    file.seek(at)
    digits = file.read(len(UNSEALED))
    total = _hash_of(file, 0, at)
    total.update(UNSEALED.encode())
    _compare(_hash_of(file, at + len(UNSEALED), size, total).hexdigest(), digits)
    return True


def checksum(path: Path) -> str:
    """The checksum of a file's bytes, apart from the digits at the end of a sealed zip."""
    with path.open("rb") as file:
        return _hash_of(file, 0, _body(file)).hexdigest()


def stated(path: Path) -> str:
    """As :func:`checksum`, but a sealed zip is not read: its comment states the checksum."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if (body := _body(file)) < size:
            file.seek(body)
            return file.read().decode("ascii", "replace")
        return _hash_of(file, 0, size).hexdigest()


def _body(file: BinaryIO) -> int:
    """The number of bytes that a checksum covers: all, or those before a sealed zip's digits."""
    sealed = is_sealed(file)
    return file.seek(0, 2) - (len(UNSEALED) if sealed else 0)


def _hash_of(
    file: BinaryIO, begin: int, end: int, total: xxhash.xxh3_64 | None = None
) -> xxhash.xxh3_64:
    """Add the bytes of a file from ``begin`` to ``end`` to ``total``, a new checksum by default."""
    total = total or xxhash.xxh3_64()
    if isinstance(file, InMemory):
        total.update(file.content[begin:end])
        return total
    buffer = memoryview(bytearray(max(0, min(_CHUNK, end - begin))))
    file.seek(begin)
    while (left := end - begin) > 0:
        count = file.readinto(buffer[: min(left, _CHUNK)])  # type: ignore[attr-defined]
        if not count:
            break  # the file has become shorter, which changes the checksum
        total.update(buffer[:count])
        begin += count
    return total


def _compare(found: str, digits: bytes) -> None:
    if found.encode() != digits:
        raise DamagedError("its content is not what was written")


def _check_members(file: BinaryIO) -> None:
    """Compare the members of a zip with their CRCs, which torch does not do."""
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            comment, bad = len(archive.comment), archive.testzip()
            # For torch, a member with this bit is a folder, and its bytes are zeros.
            folders = [one.filename for one in archive.infolist() if one.external_attr & 0x10]
    except OSError:  # the disk
        raise
    # zipfile raises a different exception for each kind of damage.
    except Exception as error:
        raise DamagedError(next(iter(str(error).splitlines()), type(error).__name__)) from error
    if bad or folders:
        raise DamagedError(f"{(bad or folders[0])[:100]!r} in it is not what was written")
    file.seek(-comment - 2, 2)
    if int.from_bytes(file.read(2), "little") != comment:
        raise DamagedError("its end is missing")
