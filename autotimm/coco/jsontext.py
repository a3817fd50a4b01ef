"""A JSON file of hundreds of megabytes, read piece by piece: where its objects lie, not what they
hold, so that neither its text nor its objects stay in memory.

Invariants: every byte goes through a JSON parser before anything is returned for good; what is
accepted is what ``json.loads`` accepts, and means the same. The text is that of the moment it was
opened: a file that is written to afterwards is refused, never misread. (It is read by ``os.pread``:
a memory map of a file that is cut short kills the process.)
"""

from __future__ import annotations

import json
import os
import re
import stat
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from autotimm.coco import packed
from autotimm.structures import InputError

__all__ = ["Array", "NotJSONError", "Text", "parse", "scan"]

# Bytes scanned and parsed at a time: what is made of them stays in the CPU's cache.
_SCANNED = 2**18
_PARSED = 2**15


class Text:
    """The UTF-8 bytes of a JSON file, read where they are asked for.

    It may be forked and pickled; a copy opens the file anew and sees that it is the same.

    Attributes:
        path: of the file.
        begin: offset of the text in bytes, behind a byte order mark.
        end: offset behind its last byte.
        packed: "gzip" or "zip" where the file is packed; None where it is plain JSON.

    Raises:
        InputError: the file cannot be read, or is no text; names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.begin, self.end = 0, 0
        self._stamp: tuple[int, int] | None = None  # size and time of the file
        self._fd: int | None = None
        # The text itself, where the file is packed or has another encoding.
        self._held: bytes | None = None
        try:
            fd = self._open()
            head = os.pread(fd, 8, 0)
            self.packed = packed.kind(head)
            if self.packed:
                self._held = packed.unpacked(_whole(fd), self.packed, self.path)
                head = self._held[:4]
            encoding = json.detect_encoding(head[:4])
            if encoding not in ("utf-8", "utf-8-sig"):  # Windows' tools
                data = _whole(fd) if self._held is None else self._held
                self._held = data.decode(encoding).encode("utf-8", "surrogatepass")
                head = b""
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not a JSON file: {error}") from None
        self.begin = 3 if head.startswith(b"\xef\xbb\xbf") else 0
        self.end = os.fstat(fd).st_size if self._held is None else len(self._held)

    def read(self, offset: int, length: int) -> bytes:
        """Returns ``length`` bytes from ``offset`` on.

        Raises:
            InputError: the file cannot be read, or is no longer what it was.
        """
        return self.read_all([offset], [length])[0]

    def read_all(self, offsets: list[int], lengths: list[int]) -> list[bytes]:
        """Returns the bytes of several ranges, of which at least one; offsets rise."""
        first, last = offsets[0], offsets[-1] + lengths[-1]
        near = last - first <= 2 * sum(lengths)  # one call of the system instead of many
        try:
            if self._held is not None:
                span, near = self._held[first:last], True
            else:
                fd = self._open() if self._fd is None else self._fd
                if near:
                    span = _pread(fd, last - first, first)
                else:
                    pieces = [_pread(fd, n, o) for o, n in zip(offsets, lengths, strict=True)]
                if _stamp(fd) != self._stamp:
                    raise self._changed()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None
        if near:
            pieces = [
                span[o - first : o - first + n] for o, n in zip(offsets, lengths, strict=True)
            ]
        return pieces

    def fault(self) -> InputError:
        """Returns the refusal of a text that is not JSON: what it is, or the line that is wrong."""
        from autotimm.coco import not_json

        reason = not_json.reason(self.read(self.begin, self.end - self.begin))
        return InputError(f"{self.path}: not a JSON file: {reason}") if reason else self._changed()

    def _changed(self) -> InputError:
        return InputError(f"{self.path}: it changed while it was in use; start again")

    def _open(self) -> int:
        # Without O_NONBLOCK, a pipe that nobody writes to would be waited for.
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        weakref.finalize(self, os.close, fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InputError(
                f"{self.path}: is no plain file (a folder, pipe or device); it is read more than "
                "once: write it to a file first"
            )
        stamp = _stamp(fd)
        if self._stamp not in (None, stamp):
            raise self._changed()
        self._fd, self._stamp = fd, stamp
        return fd

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_fd": None}


class NotJSONError(ValueError):
    """A text is not JSON; ``Text.fault`` says where."""


class Array(NamedTuple):
    """An array that is a value of a file's outermost object, and where its objects lie.

    Attributes:
        begin: offset behind its opening bracket.
        end: offset of its closing one.
        starts: [n] int64, offsets of the objects in it.
        lengths: [n] int64, in bytes.
    """

    begin: int
    end: int
    starts: np.ndarray
    lengths: np.ndarray

    def values(self, text: Text, piece: int = _PARSED, exact: bool = False) -> Iterator[list[Any]]:
        """Yields everything in the array in order, some at a time, parsed (see ``parse``).

        Raises:
            NotJSONError: it is not JSON.
        """
        ends = self.starts + self.lengths
        at = self.begin
        while at < self.end:
            next_ = int(np.searchsorted(ends, at + piece))
            end = int(ends[next_]) if next_ < len(ends) else self.end
            # All but the first piece begin with a comma, which wants something before it.
            opening = b"[" if at == self.begin else b"[null"
            values = parse(opening + text.read(at, end - at) + b"]", exact)
            yield values[at > self.begin :]
            at = end


def parse(data: bytes, exact: bool = False) -> Any:
    """Parses JSON, with the NaN that Python itself writes.

    Args:
        data: UTF-8.
        exact: keep whole numbers of more than 64 bits, which otherwise become floats: slower.
            Which parser reads them makes no difference.

    Raises:
        NotJSONError: it is not JSON.
    """
    if exact:
        return _parsed_slowly(data, int)
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return _parsed_slowly(data, _of_64_bits)


def _parsed_slowly(data: bytes, parse_int: Callable[[str], int | float]) -> Any:
    """Parses JSON by Python's own parser, which takes more."""
    try:
        return json.loads(data, parse_int=parse_int)
    except (ValueError, RecursionError) as error:
        raise NotJSONError(str(error)) from None


def _of_64_bits(digits: str) -> int | float:
    """A whole number as orjson reads it."""
    if len(digits) < 19:
        return int(digits)
    number = int(digits) if len(digits) <= 20 else 2**64
    return number if -(2**63) <= number < 2**64 else float(digits)


def scan(text: Text, piece: int = _SCANNED) -> tuple[Any, list[Array]]:
    """Finds the arrays in a file's outermost object, and the objects in these.

    Returns:
        The parsed file with ``[k]`` in the place of each such array; the arrays, of which this is
        number ``k``. What is in them is not parsed yet: ``Array.values`` does.

    Raises:
        NotJSONError: it is not JSON.
    """
    none = np.zeros(0, np.int64)
    found = [(none, none, none, none), *_brackets(text, piece)]
    opened, closed, starts, ends = (np.concatenate(part) for part in zip(*found, strict=True))
    if not (_take_turns(opened, closed) and _take_turns(starts, ends)):
        raise NotJSONError("brackets do not match")
    arrays: list[Array] = []
    frame, at = [], text.begin
    for begin, end in zip((opened + 1).tolist(), closed.tolist(), strict=True):
        inside = slice(*np.searchsorted(starts, [begin, end]).tolist())
        frame += [text.read(at, begin - at), b"%d" % len(arrays)]
        arrays.append(Array(begin, end, starts[inside], ends[inside] + 1 - starts[inside]))
        at = end
    frame.append(text.read(at, text.end - at))
    return parse(b"".join(frame)), arrays


def _brackets(text: Text, piece: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields offsets, piece by piece: of ``[`` and ``]`` of the arrays that are values of the
    outermost object, of ``{`` and ``}`` of the objects one level further in."""
    depth = quoted = 0
    at = text.begin
    while at < text.end:
        data = text.read(at, min(piece, text.end - at))
        if b"\\" in data:
            while (blank := _ESCAPE.sub(b"__", data)).endswith(b"\\") and at + len(data) < text.end:
                data += text.read(at + len(data), 1)  # an escape is not cut in two
            data = blank
        codes = np.frombuffer(data, np.uint8)
        # The four brackets are 0x5B, 0x5D, 0x7B, 0x7D; a few letters pass as well.
        found = (codes | 0x20) & 0xF9 == 0x79
        found |= codes == _QUOTE
        where = np.flatnonzero(found)
        codes = codes[where]
        quotes = np.cumsum(codes == _QUOTE) + quoted
        change = np.where(quotes & 1, 0, _CHANGE[codes])
        after = np.cumsum(change) + depth
        where += at
        yield (
            where[(change == 1) & (after == 2) & (codes == ord("["))],
            where[(change == -1) & (after == 1) & (codes == ord("]"))],
            where[(change == 1) & (after == 3) & (codes == ord("{"))],
            where[(change == -1) & (after == 2) & (codes == ord("}"))],
        )
        if where.size:
            quoted, depth = int(quotes[-1]) & 1, int(after[-1])
        at += len(data)


_QUOTE = ord('"')
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_CHANGE = np.zeros(256, np.int8)
_CHANGE[[ord("["), ord("{")]] = 1
_CHANGE[[ord("]"), ord("}")]] = -1


def _take_turns(first: np.ndarray, second: np.ndarray) -> bool:
    if len(first) != len(second):
        return False
    return bool((np.diff(np.stack([first, second], axis=1).ravel()) > 0).all())


def _whole(fd: int) -> bytes:
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


def _pread(fd: int, length: int, offset: int) -> bytes:
    data = os.pread(fd, length, offset)
    while len(data) < length:  # the system gives 2 GiB at a time
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            return data  # shorter than it was, which its stamp shows
        data += more
    return data


def _stamp(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns
