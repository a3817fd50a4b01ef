"""Ranges of files on servers, many at a time, over connections that are kept.

A :class:`Ranges` works only while :meth:`Ranges.wait` is called: what comes in between waits in the
kernel. So it needs neither a thread nor an event loop, and a forked process has nothing of its
parent's to be careful with but sockets, which it closes.

Each range is asked for once; whoever waits for it decides about further tries, by ``retried``.
"""

from __future__ import annotations

import functools
import selectors
import ssl
import time
from collections import deque
from dataclasses import dataclass
from urllib.parse import urljoin

from autotimm.files.addresses import Addresses
from autotimm.files.answers import RefusedError
from autotimm.files.connection import (
    READ,
    Connection,
    DroppedError,
    RedirectError,
)
from autotimm.files.remote import TRICKLE
from autotimm.files.targets import Origin, Range, Target

Done = tuple[Range, memoryview | Exception]
"""A range and its bytes, or why it could not be had."""

_HOPS = 10  # redirects of one request
_ADDRESSES = 4  # of a host that are tried for one request
_KEPT = 15.0  # seconds: routers forget a connection that is idle for minutes, and tell nobody


@dataclass(slots=True)
class _Asked:
    """A range on its way, from another address than its own after a redirect."""

    range: Range
    target: Target
    hops: int = 0
    unreached: int = 0  # addresses


@dataclass(slots=True)
class _Busy:
    """A connection's request, and what had come of the answer at a moment of the clock."""

    asked: _Asked
    since: float
    came: int = 0


class Ranges:
    """Fetches ranges of files over http and https.

    Args:
        most: requests at a time.
        stall: seconds without progress after which a request counts as failed.
    """

    def __init__(self, most: int, stall: float) -> None:
        self._most, self._stall = most, stall
        self._waiting: deque[_Asked] = deque()
        self._busy: dict[Connection, _Busy] = {}
        self._idle: dict[Origin, list[tuple[float, Connection]]] = {}  # and since when
        self._watched: dict[Connection, int] = {}  # for what event, by the selector
        self._failed: list[Done] = []
        self._selector = selectors.DefaultSelector()
        self._addresses = Addresses()
        self._context: ssl.SSLContext | None = None
        # Seconds that were waited for servers: what this process does meanwhile is not their fault.
        self._clock = self._next_look = 0.0

    def __del__(self) -> None:
        self.close()

    @property
    def free(self) -> int:
        """How many more requests can be sent at once."""
        return max(0, self._most - len(self._busy) - len(self._waiting))

    def ask(self, wanted: Range, first: bool = False) -> None:
        """Asks for a range, before those that wait for a connection if it is to be the first.

        Raises:
            RefusedError: it has no http(s) URL.
        """
        one = _Asked(wanted, _target(wanted.url))
        (self._waiting.appendleft if first else self._waiting.append)(one)
        self._send()

    def wait(self, seconds: float) -> list[Done]:
        """Sends and receives; waits up to so many seconds if there is nothing to do.

        Returns:
            The ranges that have come or failed since the last call.
        """
        done, self._failed = self._failed, []
        begun = time.monotonic()
        events = self._selector.select(0 if done else seconds)
        self._clock += time.monotonic() - begun
        for key, _ in events:
            if key.data in self._busy:
                self._go_on(key.data, done)
            else:  # idle, and closed by the server
                self._drop_idle(key.data.origin, key.data)
        if self._clock >= self._next_look:
            self._next_look = self._clock + self._stall / 8
            self._find_stalled(done)
        self._send()
        return done

    def close(self) -> None:
        """Closes all connections, those of a parent too, which keeps its own end of them."""
        for one in self._watched:
            one.close()
        self._watched.clear()
        self._busy.clear()
        self._idle.clear()
        self._selector.close()

    def _go_on(self, connection: Connection, done: list[Done]) -> None:
        asked = self._busy[connection].asked
        try:
            body = connection.go_on()
        except DroppedError:
            self._end(connection, keep=False)
            self._waiting.appendleft(asked)
        except RedirectError as error:
            self._end(connection, keep=False)
            self._redirect(asked, str(error), done)
        # The errors of an answer, of the system and of TLS have no base class in common.
        except Exception as error:
            self._end(connection, keep=False)
            if self._has_another_address(connection, asked):
                self._waiting.appendleft(asked)
            else:
                done.append((asked.range, error))
        else:
            if body is not None:
                self._end(connection, keep=connection.keeps)
                done.append((asked.range, body))
            else:
                self._watch(connection, connection.waits_for)

    def _has_another_address(self, failed: Connection, asked: _Asked) -> bool:
        """Whether a host that could not be reached has an address that was not tried yet."""
        if failed.connected or asked.unreached == _ADDRESSES:
            return False
        asked.unreached += 1
        return self._addresses.have_another(failed.origin, failed.address)

    def _redirect(self, asked: _Asked, location: str, done: list[Done]) -> None:
        asked.hops += 1
        try:
            if asked.hops > _HOPS:
                raise RefusedError("the server redirects without an end")
            given = urljoin(asked.target.url, location)
            target = Target.of(given, encoded=_is_encoded(given))
            asked.target = target.with_user_of(asked.target)
        except (RefusedError, ValueError) as error:
            done.append((asked.range, RefusedError(str(error))))
        else:
            self._waiting.appendleft(asked)

    def _end(self, connection: Connection, keep: bool) -> None:
        del self._busy[connection]
        if keep:
            now = time.monotonic()
            self._idle.setdefault(connection.origin, []).append((now, connection))
            self._watch(connection, READ)
        else:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._watched.pop(connection)
        self._selector.unregister(connection.descriptor)
        connection.close()

    def _drop_idle(self, origin: Origin, only: Connection | None = None) -> None:
        unused = self._idle.pop(origin, [])
        for since, one in unused:
            if only is None or one is only:
                self._drop(one)
            else:
                self._idle.setdefault(origin, []).append((since, one))

    def _watch(self, connection: Connection, event: int) -> None:
        """Has the selector wait for what a connection waits for; idle ones, for their end."""
        before = self._watched.get(connection)
        if before is None:
            self._selector.register(connection.descriptor, event, connection)
        elif before != event:
            self._selector.modify(connection.descriptor, event, connection)
        self._watched[connection] = event

    def _find_stalled(self, done: list[Done]) -> None:
        for connection, busy in [*self._busy.items()]:
            seconds, count = self._clock - busy.since, connection.came - busy.came
            if seconds > self._stall / 8 and self._has_another_address(connection, busy.asked):
                self._end(connection, keep=False)
                self._waiting.appendleft(busy.asked)
                continue
            if seconds <= self._stall:
                continue
            if connection.headed and count >= TRICKLE * seconds:
                busy.since, busy.came = self._clock, connection.came
                continue
            text = f"nothing came for {self._stall:g} seconds"
            if connection.headed and count:
                text = f"only {count:,} bytes came in {seconds:.1f} seconds"
            self._end(connection, keep=False)
            self._drop_idle(connection.origin)  # which may be as dead
            done.append((busy.asked.range, OSError(text)))

    def _send(self) -> None:
        while self._waiting and len(self._busy) < self._most:
            asked = self._waiting.popleft()
            try:
                connection = self._connection(asked.target.origin)
            except (OSError, UnicodeError) as error:
                self._failed.append((asked.range, error))
                continue
            connection.ask(asked.target.request(asked.range), asked.range)
            self._busy[connection] = _Busy(asked, self._clock)
            self._watch(connection, connection.waits_for)

    def _connection(self, origin: Origin) -> Connection:
        oldest = time.monotonic() - _KEPT
        while idle := self._idle.get(origin):
            since, kept = idle.pop()
            if since >= oldest:
                return kept
            self._drop(kept)
        if len(self._busy) + sum(map(len, self._idle.values())) >= self._most:
            for other in [*self._idle]:
                self._drop_idle(other)
        if origin.scheme == "https" and self._context is None:
            self._context = ssl.create_default_context()
        context = self._context if origin.scheme == "https" else None
        while True:
            address = self._addresses.best(origin)
            try:
                return Connection(origin, address, context)
            except OSError:  # there is no way to this network
                if not self._addresses.have_another(origin, address):
                    raise


@functools.lru_cache(256)
def _target(url: str) -> Target:
    signed = "X-Amz-Signature=" in url  # which has to stay as it is
    return Target.of(url, encoded=signed and _is_encoded(url))


def _is_encoded(url: str) -> bool:
    return url.isascii() and url.isprintable() and " " not in url
