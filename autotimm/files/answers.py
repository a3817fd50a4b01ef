"""What a server says when it refuses a file: its reason, whether to try again, and when."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from autotimm.files.atomic import FULL
from autotimm.structures import InputError

HEAD = 4096
"""Bytes of an answer's body that may say why."""
_PASSING = frozenset((408, 425, 429))  # timeout, too early, too many requests
_WAYS = {
    "RequestTimeTooSkewed": "set the clock of this machine",
    "SignatureDoesNotMatch": "check the secret key, or make a new signed URL",
    "ExpiredToken": "get new keys",
    "AccessDenied": "check the keys or the signature, and that it has not expired",
    401: "give the URL's user and password, or a signed URL",
    403: "check the keys or the signature, and that it has not expired",
    429: "fewer processes ask less often",
}
_FINAL_BY_NAME = frozenset(
    (
        *("ClientConnectorCertificateError", "ClientConnectorSSLError", "TooManyRedirects"),
        *("SSLError", "NoCredentialsError", "PartialCredentialsError", "ParamValidationError"),
        *("ProfileNotFound", "InvalidURL", "NonHttpUrlClientError"),
    )
)  # of aiohttp and botocore, which are slow to import


class RefusedError(Exception):
    """An error that a retry will not cure."""


class AnswerError(Exception):
    """A server answered a request with something else than the file.

    Attributes:
        status: of HTTP.
        wait: seconds that the server asks to wait before the next try.
        code: the name that a store gives to its reason; mostly empty.
    """

    def __init__(self, status: int, text: str, wait: float = 0.0, code: str = "") -> None:
        super().__init__(text)
        self.status, self.wait, self.code = status, wait, code


async def check(response: Any) -> None:
    """Checks the status of aiohttp's response, for ``ClientSession(raise_for_status=)``.

    Raises:
        FileNotFoundError: the server has no such file.
        AnswerError: any other status than 200 to 299, with the reason that the body states.
    """
    if not 200 <= response.status < 300:
        body = b"" if response.status < 400 else await response.content.read(HEAD)
        raise error_of(response.status, response.reason or "", response.headers, body)


def error_of(status: int, said: str, headers: Mapping[str, str], body: bytes) -> Exception:
    """The error of an answer with another status than 200 to 299.

    Args:
        status: of HTTP.
        said: beside the status, such as "Forbidden".
        headers: of the answer.
        body: the first ``HEAD`` bytes of it.

    Returns:
        A FileNotFoundError, or an AnswerError with the reason that the body states.
    """
    if status in (404, 410):
        return FileNotFoundError(status)
    text = f"{status} {said}".strip()
    if 300 <= status < 400:  # those that name an address have been followed
        return AnswerError(status, f"{text}: a redirect that names no address")
    code, message = _reason(body)
    more = ", ".join(one for one in (code, message) if one and one not in text)
    way = _WAYS.get(code) or _WAYS.get(status)
    line = _printable(f"{text}{f' ({more})' if more else ''}{f': {way}' if way else ''}")
    return AnswerError(status, line, asked_wait(headers), code)


def asked_wait(headers: Mapping[str, str]) -> float:
    """The seconds that ``Retry-After`` (RFC 9110, 10.2.3) asks to wait: a number, or a date."""
    value = {name.lower(): text for name, text in headers.items()}
    after = value.get("retry-after", "").strip()
    if after.isascii() and after.isdigit():
        return float(after)
    # Each odd date is another error of Python's.
    with contextlib.suppress(ValueError, TypeError, OverflowError, IndexError):
        # By the server's own clock, which need not be that of this machine.
        now = _date(value["date"]) if "date" in value else datetime.now(UTC)
        return max(0.0, (_date(after) - now).total_seconds())
    return 0.0


def _date(text: str) -> datetime:
    date = parsedate_to_datetime(text)
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _reason(body: bytes) -> tuple[str, str]:
    """The code and the message in the body of an error: XML as S3's, or JSON."""
    text = body.decode("utf-8", "replace")
    found = []
    for name in ("code", "message"):
        xml = re.search(rf"(?is)<{name}>(.{{1,200}}?)</{name}>", text)
        json = re.search(rf'(?i)"{name}"\s*:\s*"([^"]{{1,200}})"', text)
        found.append((xml or json or ("", ""))[1])
    return found[0], found[1]


def _printable(text: str) -> str:
    """One line that moves no terminal's cursor."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def of_store(error: Exception) -> Exception:
    """An error of s3fs as an :class:`AnswerError`, if the store gave an answer; else itself."""
    answer = getattr(error.__cause__ or error, "response", None)
    if isinstance(error, FileNotFoundError) or not isinstance(answer, dict):
        return error
    said, told = answer.get("Error") or {}, answer.get("ResponseMetadata") or {}
    code, message = str(said.get("Code", "")), str(said.get("Message", ""))
    status = told.get("HTTPStatusCode")
    if not isinstance(status, int):
        return error
    way = _WAYS.get(code) or _WAYS.get(status)
    line = f"{status} ({', '.join(filter(None, (code, message)))}){f': {way}' if way else ''}"
    wait = asked_wait(told.get("HTTPHeaders") or {})
    return AnswerError(status, _printable(line), wait, code)


def is_final(error: Exception) -> bool:
    """Whether a retry cannot cure an error of a request: what this machine or the URL lacks."""
    # An InputError is about this machine, for example a full disk.
    if isinstance(error, InputError | FileNotFoundError | PermissionError | RefusedError):
        return True
    if isinstance(error, AnswerError):
        return 300 <= error.status < 500 and error.status not in _PASSING
    if any(kind.__name__ in _FINAL_BY_NAME for kind in type(error).__mro__):
        return True
    cause = getattr(error, "os_error", error)  # of aiohttp's connector
    if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME:
        return True  # no such host; a name server that fails is another error
    return isinstance(error, OSError) and error.errno in FULL


def wait_after(error: Exception) -> float:
    """The seconds that the server asks to wait after an error."""
    return error.wait if isinstance(error, AnswerError) else 0.0
