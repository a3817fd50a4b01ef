"""The Hugging Face hub, from which timm fetches weights: what its client logs, and how long it
tries."""

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
    """Has the hub's client take weights from its cache at once if the hub's name is not found.

    The client would try to reach it for most of a minute.

    Yields:
        What is wrong; "" if the name is found, if a proxy looks it up, or if the user has set the
        client offline.
    """
    host = urlsplit(constants.ENDPOINT).hostname or ""
    proxies = urllib.request.getproxies().keys() - {"no"}  # NO_PROXY alone is none
    if constants.HF_HUB_OFFLINE or proxies or not host or _is_found(host):
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
