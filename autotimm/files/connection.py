"""One kept-alive connection that is asked for ranges of files, without blocking (RFC 9110, 14).

It holds nothing but a socket: no thread, no lock and no event loop, so a process that is forked may
simply drop what it inherits and make its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import ssl
from collections.abc import Mapping
from typing import Any

import numpy as np

from autotimm.files import answers
from autotimm.files.answers import RefusedError
from autotimm.files.targets import Origin, Range

READ, WRITE = 1, 2  # as selectors.EVENT_READ and EVENT_WRITE
_MOST_HEADERS = 1 << 16  # bytes
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2}) ?([^\r\n]*)")
_RANGE = re.compile(r"bytes ([0-9]+)-([0-9]+)/([0-9]+|\*)")
_HEADER = re.compile(  # of those that matter; one pass costs less than all in a dictionary
    rb"^(content-(?:length|range|encoding)|connection|transfer-encoding|location|retry-after|date)"
    rb"[ \t]*:[ \t]*([^\r\n]*)",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBER = re.compile("[0-9]{1,18}", re.ASCII)
_WANTS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class NoRangesError(RefusedError):
    """A server sends whole files where it is asked for a range."""


class OtherFileError(OSError):
    """The file on the server is another one than before."""


class DroppedError(OSError):
    """A server closed a kept-alive connection before it answered: the request is sent again."""


class RedirectError(Exception):
    """A server names another address."""


class Connection:
    """A connection, with at most one request at a time.

    Args:
        origin: where it goes to.
        address: family and address of a socket.
        context: of TLS.

    Attributes:
        sock: the socket.
        descriptor: of the socket.
        connected: whether the server has accepted the connection.
        waits_for: READ, WRITE, or 0 without a request.
        came: bytes of the present answer so far.
        headed: whether all of its headers are there.
    """

    def __init__(
        self, origin: Origin, address: tuple[int, Any], context: ssl.SSLContext | None
    ) -> None:
        self.origin, self.address, self._context = origin, address, context
        self.sock = socket.socket(address[0], socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.descriptor = self.sock.fileno()  # stays that of the socket when TLS wraps it
        self.connected = self._shaken = self._used = False
        self.waits_for = WRITE
        self._out = memoryview(b"")
        code = self.sock.connect_ex(address[1])
        if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
            self.sock.close()
            raise OSError(code, f"cannot connect to {origin.host}: {os.strerror(code)}")
        self._begin(b"", Range("", 0, 0, 0))

    def ask(self, request: bytes, wanted: Range) -> None:
        """Begins a request; on a kept connection it is sent at once."""
        self._begin(request, wanted)
        self.waits_for = WRITE
        if self._shaken:
            with contextlib.suppress(OSError):  # which go_on gets again
                self._out = self._out[self.sock.send(self._out) :]
            self.waits_for = READ if not self._out else WRITE

    def _begin(self, request: bytes, wanted: Range) -> None:
        self._out, self._wanted = memoryview(request), wanted
        self._head = bytearray()
        self._body = memoryview(b"")
        self._status, self._reason = 0, ""
        self._headers: Mapping[str, str] = {}
        self.came, self.headed, self._keeps, self._chunked = 0, False, True, False

    @property
    def keeps(self) -> bool:
        """Whether the connection can be used for another request."""
        return self._keeps

    def close(self) -> None:
        """Closes the socket."""
        self.sock.close()

    def go_on(self) -> memoryview | None:
        """Does what can be done without waiting.

        Returns:
            The bytes of the range once they are there, else None.

        Raises:
            NoRangesError: the server sends something else than ranges.
            RedirectError: the address that it names instead.
            DroppedError: the connection was closed before there was an answer.
            Exception: as ``remote.chunks`` raises for other answers and broken connections.
        """
        try:
            return self._go_on()
        except ssl.SSLCertVerificationError:
            raise  # final, in contrast to other errors of TLS
        except ssl.SSLError as error:
            raise ConnectionError(f"TLS: {error.reason or error}") from None

    def _go_on(self) -> memoryview | None:
        try:
            if not self._shaken:
                self._connect()
            while self._out:
                self._out = self._out[self.sock.send(self._out) :]
            self.waits_for = READ
            while not self.headed:
                self._receive_headers()
            return self._receive_body()
        except _WANTS as error:
            if isinstance(error, ssl.SSLWantReadError):
                self.waits_for = READ
            elif isinstance(error, ssl.SSLWantWriteError):
                self.waits_for = WRITE
            return None
        except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            if self._used and not self.came:
                raise DroppedError from None
            raise

    def _connect(self) -> None:
        if not self.connected:
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                where = f"{self.origin.host}:{self.address[1][1]}"
                raise OSError(code, f"cannot connect to {where}: {os.strerror(code)}")
            try:
                self.sock.getpeername()
            except OSError:
                raise BlockingIOError from None
            self.connected = True
            if self._context is not None:
                self.sock = self._context.wrap_socket(
                    self.sock, server_hostname=self.origin.host, do_handshake_on_connect=False
                )
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.do_handshake()
        self._shaken = True

    def _receive_headers(self) -> None:
        while (end := self._head.find(b"\r\n\r\n")) < 0:
            piece = self.sock.recv(1 << 12)
            if not piece:
                if self._used and not self.came:
                    raise DroppedError
                raise ConnectionError("the server closed the connection before its answer")
            self.came += len(piece)
            self._head += piece
            if self.came > _MOST_HEADERS:
                raise RefusedError("the server's headers have no end")
        head, rest = bytes(self._head[:end]), self._head[end + 4 :]
        line, _, fields = head.partition(b"\r\n")
        found = _STATUS.fullmatch(line)
        if found is None:
            raise RefusedError("the server does not answer by HTTP")
        self._status, self._reason = int(found[2]), found[3].decode("latin-1")
        if self._status < 200:  # 100 Continue
            self._head = rest
            return
        self._headers = {
            name.decode().lower(): value.decode("latin-1").strip()
            for name, value in _HEADER.findall(fields)
        }
        kept = self._headers.get("connection", "").lower()
        self._keeps = kept == "keep-alive" or (found[1] == b"1" and kept != "close")
        self.headed = True
        self._begin_body(rest)

    def _begin_body(self, rest: bytearray) -> None:
        length = self._length()
        if self._status == 206:
            self._check_range(length)
        elif 200 <= self._status < 300:
            raise NoRangesError(f"{self._status}: it sends whole files")
        elif 300 <= self._status < 400 and "location" in self._headers:
            raise RedirectError(self._headers["location"])
        else:
            length = min(answers.HEAD, answers.HEAD if length is None else length)
            self._keeps = False
            self._chunked = "chunked" in self._headers.get("transfer-encoding", "")
        self._filled = min(len(rest), length or 0)
        self._body = np.empty(length or 0, np.uint8).data  # not filled with zeros first
        self._body[: self._filled] = rest[: self._filled]
        if len(rest) > self._filled:
            self._keeps = False  # more than was asked for

    def _length(self) -> int | None:
        text = self._headers.get("content-length", "")
        return int(text) if _NUMBER.fullmatch(text) else None

    def _check_range(self, length: int | None) -> None:
        wanted, given = self._wanted, _RANGE.fullmatch(self._headers.get("content-range", ""))
        coded = self._headers.keys() & {"content-encoding", "transfer-encoding"}
        if given is None or length is None or coded:
            raise NoRangesError("206, but not one range with a length")
        if given[3] != "*" and int(given[3]) != wanted.size:
            size = int(given[3])
            raise OtherFileError(f"the file has {size:,} bytes, the manifest says {wanted.size:,}")
        if (int(given[1]), int(given[2]) + 1, length) != (
            *(wanted.start, wanted.end),
            wanted.end - wanted.start,
        ):
            raise NoRangesError("206, but with another range than it was asked for")

    def _receive_body(self) -> memoryview | None:
        while self._filled < len(self._body) and not self._ended():
            count = self.sock.recv_into(self._body[self._filled :])
            if not count and self._status != 206:
                break
            if not count:
                left = len(self._body) - self._filled
                raise ConnectionError(f"the connection was closed {left:,} bytes before its end")
            self._filled += count
            self.came += count
        if self._status != 206:
            raise answers.error_of(
                self._status, self._reason, self._headers, bytes(self._body[: self._filled])
            )
        self.waits_for, self._used = 0, True
        return self._body.toreadonly()

    def _ended(self) -> bool:
        """Whether the body of an error, whose length is not known, has ended."""
        return self._chunked and bytes(self._body[: self._filled]).endswith(b"0\r\n\r\n")
