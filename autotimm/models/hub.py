"""The Hugging Face hub, from which timm fetches weights: what its client logs, and how long it
tries."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub.utils
from huggingface_hub import constants

_PAUSE = 1.0  # seconds until a name that was not found is looked up again
_CONNECT = 4.0  # seconds to wait for a connection to an address
_NO_ROUTE = {
    *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN),
    *(errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT),  # this machine has no IPv6, say
}


@contextlib.contextmanager
def warned_once(name: str) -> Iterator[None]:
    """Has the log hold one line for all tries of the hub's client, which writes two for each."""
    warned = False

    def passes(record: logging.LogRecord) -> bool:
        nonlocal warned
        text = record.getMessage()
        if "thrown while requesting" in text and not warned:
            warned = True
            logging.getLogger("autotimm").warning(
                "timm's weights of %s: %s: trying again for up to a minute",
                name,
                text.partition(" thrown while requesting")[0].strip("'"),
            )
        return not ("thrown while requesting" in text or text.startswith("Retrying in "))

    handlers = logging.getLogger("huggingface_hub").handlers
    for handler in handlers:  # a filter of the logger would not see what its children write
        handler.addFilter(passes)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(passes)


@contextlib.contextmanager
def without_network() -> Iterator[str]:
    """Has the hub's client take weights from its cache at once if the hub cannot be reached.

    The client would try for most of a minute.

    Yields:
        What is wrong; "" if the hub can be reached, if a proxy reaches it, or if the user has set
        the client offline.
    """
    place = None if constants.HF_HUB_OFFLINE else _place()
    lacking = "" if place is None else _lacking(*place)
    if not lacking:
        yield ""
        return
    _set_offline(True)
    try:
        yield f"there is no network: {lacking}"
    finally:
        _set_offline(False)


def out_of_reach(seconds: float) -> str:
    """Why the hub cannot be reached; "" if nothing is known to be in the way.

    Args:
        seconds: how long to wait at most.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if (place := _place()) is None:
        return ""
    found: list[str] = []
    # Looking up a name has no limit of its own: a thread that takes longer is left to itself.
    trial = threading.Thread(target=lambda: found.append(_lacking(*place, tries=1)), daemon=True)
    trial.start()
    trial.join(seconds)
    return found[0] if found else f"{place[0]} does not answer within {seconds:g} s"


def fetched_before() -> list[str]:
    """The timm models whose weights the client has in its cache, with their tags."""
    prefix = "models--timm--"
    files = Path(constants.HF_HUB_CACHE).glob(f"{prefix}*/snapshots/*/*")
    weights = (file for file in files if file.suffix in (".safetensors", ".bin"))
    return sorted({file.parents[2].name.removeprefix(prefix) for file in weights})


def _place() -> tuple[str, int] | None:
    """The hub's host and port; None if its address has no host, or a proxy reaches it."""
    place = urlsplit(constants.ENDPOINT)
    proxies = urllib.request.getproxies().keys() - {"no"}  # NO_PROXY alone is none
    if proxies or not place.hostname:
        return None
    return place.hostname, place.port or {"http": 80}.get(place.scheme, 443)


def _set_offline(offline: bool) -> None:
    constants.HF_HUB_OFFLINE = offline
    # A client before 1.0 asks for it only when it makes a session, which it keeps.
    reset = getattr(huggingface_hub.utils, "reset_sessions", None)
    if reset is not None:
        reset()


def _lacking(host: str, port: int, tries: int = 2) -> str:
    """Why no connection to the hub can be made; "" if nothing is known to be in the way."""
    addresses = _addresses(host, port, tries)
    if not addresses:
        return f"the name {host} is not found"
    for family, address in addresses.items():
        try:
            with socket.socket(family, socket.SOCK_STREAM) as connection:
                connection.settimeout(_CONNECT)
                connection.connect(address)
        except OSError as error:
            if isinstance(error, TimeoutError) or error.errno in _NO_ROUTE:
                continue
            # Another error, such as a refusal, may pass: the client tries again.
        return ""
    return f"{host} does not answer on port {port}"


def _addresses(host: str, port: int, tries: int) -> dict[socket.AddressFamily, Any]:
    """The first address of each kind, IPv4 and IPv6; none if the name is not found."""
    for tried in range(tries):
        if tried:
            time.sleep(_PAUSE)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            continue
        return {family: address for family, *_, address in reversed(found)}
    return {}
