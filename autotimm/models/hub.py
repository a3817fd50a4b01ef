"""The Hugging Face hub, from which timm fetches weights: what it writes, and how long it tries."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

from huggingface_hub import constants

_PAUSE = 1.0  # seconds until a name that was not found is looked up again


@contextlib.contextmanager
def told_once(name: str) -> Iterator[None]:
    """Makes one line of the two that the hub's client writes for each of its tries."""
    told = False

    def passes(record: logging.LogRecord) -> bool:
        nonlocal told
        text = record.getMessage()
        if "thrown while requesting" in text and not told:
            told = True
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
    """Has the hub's client use what it has fetched before, at once, where the hub is out of reach.

    It would try for most of a minute to reach a name that is not found.

    Yields:
        What is wrong, or "" where the hub's name is found, or a proxy would look it up.
    """
    host = urlsplit(constants.ENDPOINT).hostname or ""
    if constants.HF_HUB_OFFLINE or urllib.request.getproxies() or _is_found(host):
        yield ""
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield f"there is no network: the name {host} is not found"
    finally:
        constants.HF_HUB_OFFLINE = False


def _is_found(host: str) -> bool:
    for tried in range(2):
        if tried:
            time.sleep(_PAUSE)
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            continue
        return True
    return False
