"""URLs without what may be secret in them, by their form alone."""

from __future__ import annotations

import re

_URL = r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>`]*"
_PUNCTUATION = r"[\\).,:;\]}]*$"  # that ends a sentence about a URL, not the URL


def bare(url: str) -> str:
    """A URL, or a chain of them (``::``), without users, passwords, queries and fragments.

    A password may hold unescaped ``/``, ``?``, ``#`` and ``@``. Where the text has two readings,
    such as ``https://me:a@b/c@host``, the one that shows less is taken.
    """
    chain = re.split(r"::(?=[A-Za-z][A-Za-z0-9+.-]*://)", url)
    return "::".join(_bare(link) for link in chain)


def user_part(rest: str) -> str:
    """The user and password of a URL's ``rest`` behind ``://``; "" if there is none."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    end = rest.rfind("@")
    _, colon, port = authority.rpartition(":")
    # Without an @, what follows a colon is a port, or the beginning of a password.
    hidden = "@" in authority or (colon and not port.isdigit() and not authority.startswith("["))
    return rest[:end] if end >= 0 and hidden else ""


def with_bare_urls(text: str) -> str:
    """A text in which every URL is as from :func:`bare`."""

    def shown(found: re.Match[str]) -> str:
        end = re.search(_PUNCTUATION, found[0])
        url = found[0][: end.start()] if end else found[0]
        return bare(url) + found[0][len(url) :]

    return re.sub(_URL, shown, text)


def _bare(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    user = user_part(rest)
    rest = rest[len(user) + 1 :] if user else rest
    kept = re.split(r"[?#]", rest, maxsplit=1)[0]
    return f"{scheme}://{with_bare_urls(kept) if '://' in kept else kept}"
