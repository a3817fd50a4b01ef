"""The addresses of hosts, and which of them can be reached."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from autotimm.files.targets import Origin

Address = tuple[int, Any]
"""Family and address of a socket."""

_KNOWN = 60.0  # seconds for which the addresses of a host are kept
_UNKNOWN = 2.0  # and for which it is not looked up again after that has failed: it may take long


@dataclass(slots=True)
class _Host:
    until: float = 0.0
    found: list[Address] = field(default_factory=list)
    error: OSError | UnicodeError | None = None


class Addresses:
    """Looks hosts up."""

    def __init__(self) -> None:
        self._hosts: dict[Origin, _Host] = {}

    def best(self, origin: Origin) -> Address:
        """The first address that has not failed.

        Raises:
            OSError, UnicodeError: the host has no address.
        """
        host = self._hosts.setdefault(origin, _Host())
        if host.until < time.monotonic():
            self._look_up(origin, host)
        if host.error is not None:
            raise host.error
        return host.found[0]

    def have_another(self, origin: Origin, failed: Address) -> bool:
        """Whether a host has an address that was not tried yet, instead of one that failed."""
        host = self._hosts[origin]
        if host.found[:1] == [failed]:
            if len(host.found) == 1:
                return False
            del host.found[0]
        return bool(host.found)

    def _look_up(self, origin: Origin, host: _Host) -> None:
        port = origin.port or (443 if origin.scheme == "https" else 80)
        worked, host.error = host.found[:1], None
        try:
            known = socket.getaddrinfo(origin.host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            host.until, host.error = time.monotonic() + _UNKNOWN, error
            return
        host.until, host.found = time.monotonic() + _KNOWN, [(one[0], one[4]) for one in known]
        with contextlib.suppress(ValueError, IndexError):  # what worked stays the first
            host.found.insert(0, host.found.pop(host.found.index(worked[0])))
