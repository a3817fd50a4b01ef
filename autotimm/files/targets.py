"""Ranges of files on servers, and the requests that ask for them (RFC 9110, 14)."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, replace

from autotimm.files import urls
from autotimm.files.answers import RefusedError


@dataclass(slots=True, eq=False)
class Range:
    """A range of a file on a server; each is asked for once, and equal to none but itself.

    Attributes:
        url: of the file; http or https.
        start: of its first byte.
        end: behind its last one.
        size: of the file.
    """

    url: str = field(repr=False)
    start: int
    end: int
    size: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection goes to; the port is 0 for the usual one."""

    scheme: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Target:
    """A URL as requests need it.

    Attributes:
        url: the same, without a user.
        origin: of the connection.
        head: of each request for it, up to the range.
        user: the header that names a user, if there is one.
    """

    url: str = field(repr=False)
    origin: Origin
    head: str = field(repr=False)
    user: str = field(default="", repr=False)

    @classmethod
    def of(cls, text: str, encoded: bool) -> Target:
        """The target of a URL.

        Args:
            text: the URL.
            encoded: whether it is sent as it is, rather than with odd characters replaced.

        Raises:
            RefusedError: it is no http(s) URL.
        """
        import yarl  # comes with aiohttp; both are slow to import
        from aiohttp.http import SERVER_SOFTWARE

        try:
            url = yarl.URL(text, encoded=encoded)
            port = url.port or 0
        except ValueError as error:
            raise RefusedError(f"the server names no address: {error}") from None
        if url.scheme not in ("http", "https") or not url.raw_host:
            raise RefusedError(f"{urls.shown(text)} is not an http(s) address")
        lines = [
            f"GET {url.raw_path_qs or '/'} HTTP/1.1",
            f"Host: {url.raw_host}{'' if url.is_default_port() else f':{port}'}",
            # As it is stored: a range of a content that the server compresses is another one.
            "Accept-Encoding: identity",
            "Accept: */*",
            f"User-Agent: {SERVER_SOFTWARE}",  # as for whole files: some servers refuse others
        ]
        header = ""
        if url.user is not None:
            user = f"{url.user}:{url.password or ''}".encode()
            header = f"Authorization: Basic {base64.b64encode(user).decode()}"
        bare = str(url.with_user(None)) if url.user is not None else str(url)
        head = "\r\n".join(lines)
        return cls(bare, Origin(url.scheme, url.raw_host, port), head, header)

    def with_user_of(self, before: Target) -> Target:
        """The target of a redirect, which gets the user of the one before on the same server."""
        if self.user or self.origin != before.origin:
            return self
        return replace(self, user=before.user)

    def request(self, wanted: Range) -> bytes:
        """The request for a range."""
        user = f"\r\n{self.user}" if self.user else ""
        asked = f"{self.head}{user}\r\nRange: bytes={wanted.start}-{wanted.end - 1}\r\n\r\n"
        return asked.encode("latin-1")
