"""Write and read torch files: sealed with a checksum, and of tensors and plain values alone.

Invariants: what is written can be read again, because its structure is tried first; a file with a
changed or missing byte is not read; no code from a file runs.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor, nn

from autotimm.files.checksums import SealedReader, SealedZip, check, is_sealed
from autotimm.structures import InputError

_LEAVES = frozenset({type(None), bool, int, float, str, Tensor, nn.Parameter, torch.Size})
_SEQUENCES = frozenset({list, tuple})
_MAPPINGS = frozenset({dict, OrderedDict})


def write_archive(content: Any, file: BinaryIO) -> None:
    """Write ``content`` as :func:`torch.save` does, and the file's checksum behind it.

    Raises:
        InputError: the content could not be read again; the message names the entry. Nothing was
            written.
    """
    check_readable(content)
    zip_file = SealedZip(file)
    torch.save(content, cast("IO[bytes]", zip_file))  # it needs no more than these two methods
    zip_file.seal()


def read_archive(file: BinaryIO, map_location: Any = "cpu") -> tuple[Any, bool]:
    """Read a file of torch's whose bytes are those that were written.

    Args:
        file: open for reading, seekable.
        map_location: as in ``torch.load``.

    Returns:
        The content, and whether the file has a checksum or CRCs.

    Raises:
        DamagedError: the bytes differ from those that were written.
        Exception: one of torch's, different for each kind of unreadable file.
    """
    if not is_sealed(file):
        checked = check(file)
        return _load(file, map_location), checked
    reader = SealedReader(file)
    try:
        content = _load(cast(BinaryIO, reader), map_location)
    except Exception:  # torch's, for which a changed byte may be the reason
        reader.compare()
        raise
    reader.compare()
    return content, True


def _load(file: BinaryIO, map_location: Any) -> Any:
    # Explicitly, because an environment variable can change torch's default.
    return torch.load(file, map_location=map_location, weights_only=True)


def check_readable(content: Any, name: str = "") -> None:
    """Raise InputError if :func:`read_archive` would refuse an entry of ``content``.

    Only values that are not of the commonest types are tried with torch, and no tensor's data are
    read, so it takes milliseconds.

    Args:
        content: containers, tensors and plain values.
        name: of ``content`` in the message.
    """
    for path, value in _uncommon(content, name, set()):
        buffer = io.BytesIO()
        try:
            torch.save(value, buffer)
            buffer.seek(0)
            torch.load(buffer, map_location="cpu", weights_only=True)
        # Whatever the value's own code or torch raises, the value cannot be saved.
        except Exception as error:
            kind = type(value)
            raise InputError(
                f"{path or 'the content'} is a {kind.__module__}.{kind.__qualname__}, which no "
                f"checkpoint can hold: make it a number, a text, a tensor, or a list or dict of "
                f"them"
            ) from error


def _uncommon(value: Any, path: str, around: set[int]) -> Iterator[tuple[str, Any]]:
    """The values in ``value`` that may be unreadable, with their paths, such as ``a.b[2]``."""
    kind = type(value)
    if kind in _LEAVES or id(value) in around:
        return
    inner = around | {id(value)}
    if kind in _MAPPINGS:
        for key, one in value.items():
            where = f"{path}.{key}" if path else str(key)
            if type(key) not in _LEAVES:
                yield from _uncommon(key, f"the key {where}", inner)
            if type(one) not in _LEAVES:
                yield from _uncommon(one, where, inner)
    elif kind in _SEQUENCES:
        for i, one in enumerate(value):
            if type(one) not in _LEAVES:
                yield from _uncommon(one, f"{path}[{i}]", inner)
    else:
        yield path, value
