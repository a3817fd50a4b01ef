"""The one filter through which words leave this process: it takes out the secrets of URLs.

Whatever is printed, logged, raised or written to a file of a run passes :func:`redacted`, so that
no message has to think of secrets. Two rules take them out:

1. *By form.* A URL loses its user, password, query (a signature) and fragment, wherever it comes
   from, a server's redirect included.
2. *By value.* :func:`learn` remembers the secrets of the command line, of the environment and of
   every URL that is parsed. What is telling (below) becomes ``***`` wherever it appears, also
   percent-encoded, decoded or escaped, as libraries quote pieces of URLs. The rest, such as the
   password "train", is taken out of URLs and of ``user:password`` alone, because it would also
   garble words that are no secret.

A secret is *telling* if it has at least 8 characters, or at least 5 of two kinds (letters of either
case, digits, others), and is no common word of this program.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, TypeVar
from urllib.parse import unquote

_T = TypeVar("_T")

MASK = "***"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>`]*")
_PUNCTUATION = re.compile(r"[\\).,:;\]}]*$")  # that ends a sentence about a URL, not the URL
_NAME = r"[\w.-]*(?:secret|token|passw|pwd|credential|signature|api_?key|access_?key)[\w.-]*"
_NAMED = re.compile(rf"(?i)(?:^|[\s,{{\"'-])({_NAME})[\"']?\s*[=:\s]\s*[\"']?([^\s\"',}}]+)")
_QUERY_NAME = re.compile(r"(?i)sig|token|key|secret|pass|pwd|cred|auth|code|session|policy")
_VARIABLE = re.compile(
    r"(?i)(?=.*(?:SECRET|TOKEN|PASSW|CREDENTIAL|_KEY|ACCESS_KEY_ID|_SAS))"
    r"(?!.*(?:_FILE|_PATH|_DIR|_SOCK|_CREDENTIALS|_URL|_URI)$)"
)
_COMMON = frozenset(
    (
        *("annotations", "autotimm", "categories", "category", "checkpoint", "checkpoints"),
        *("data_dir", "dataset", "datasets", "detection", "detections", "evaluation", "finished"),
        *("instance", "instances", "manifest", "password", "pictures", "segmentation", "settings"),
        *("tensorboard", "train2017", "training", "val2017", "validate", "validation", "versions"),
    )
)

_dropped: dict[str, None] = {}  # patterns of parts of URLs, which go without a trace
_masked: dict[str, None] = {}  # patterns of secrets, longest first once compiled
_compiled: list[re.Pattern[str] | None] | None = None
_guarding = False


def learn(text: str) -> None:
    """Remembers the secrets of all URLs in a text, and of settings such as ``api_key: ...``.

    Args:
        text: a URL, a word of a command line, or the content of a config.
    """
    for line in text.splitlines():
        for begin in _SCHEME.finditer(line):
            rest = line[begin.end() :]
            # A word of the command line may hold spaces and quotes; in a config, they end the URL.
            for url in {rest, rest.rstrip("'\",]} \t"), re.split(r"[\s'\"]", rest)[0]}:
                _learn_url(url, begin[0])
        _learn_named(line)


def guard_process() -> None:
    """Sends all that this process prints through the filter, and learns what it was started with.

    Warnings, tracebacks and log lines go through stdout and stderr, too. Programs call this first;
    a process that is forked later inherits it, and one that is spawned calls it again.
    """
    words = dict.fromkeys([*sys.orig_argv, *sys.argv])
    for word in words:
        learn(word)
        _learn_config(word.partition("=")[2] or word)
    _learn_named(" ".join(words))  # --token VALUE: a name and its value as two words
    for name, value in os.environ.items():
        learn(value)
        if _VARIABLE.match(name):
            _learn_value(value)
    global _guarding
    _guarding = True
    guard_streams()


def guard_streams() -> None:
    """In a process that :func:`guard_process` guards: puts the filter first again.

    A library that copies what is printed, as wandb does from its import on, puts itself before the
    filter, and would copy secrets.
    """
    for stream in (sys.stdout, sys.stderr):
        if _guarding and stream is not None and not _is_guarded(stream):
            _guard(stream)


@contextlib.contextmanager
def shown_to_library() -> Iterator[None]:
    """Runs code of a library that records what this process was started with and what it prints.

    The library finds ``sys.argv`` without secrets, and what it copies of the output passes the
    filter first.
    """
    words, shown = sys.argv, redacted(sys.argv)
    try:
        if shown != words:
            sys.argv = shown
        yield
    finally:
        if sys.argv is shown:
            sys.argv = words
        guard_streams()


def redacted(value: _T) -> _T:
    """A copy of a value in which no string holds a secret.

    Args:
        value: a string, a path, or a mapping, namespace, list or tuple of values; others stay as
            they are.
    """
    return _redacted(value)


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


def _bare(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    user = user_part(rest)
    rest = rest[len(user) + 1 :] if user else rest
    kept = re.split(r"[?#]", rest, maxsplit=1)[0]
    return f"{scheme}://{_by_form(kept) if '://' in kept else kept}"


def _by_form(text: str) -> str:
    def shown(found: re.Match[str]) -> str:
        end = _PUNCTUATION.search(found[0])
        url = found[0][: end.start()] if end else found[0]
        return bare(url) + found[0][len(url) :]

    return _URL.sub(shown, text)


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        content = {_redacted(key): _redacted(one) for key, one in value.items()}
        return content if type(value) is dict else _like(value, content)
    if isinstance(value, argparse.Namespace):
        return type(value)(**{key: _redacted(one) for key, one in vars(value).items()})
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(map(_redacted, value))
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(_redacted, value))
    if isinstance(value, PurePath) and (text := _text(str(value))) != str(value):
        return type(value)(text)
    return value


def _like(value: Mapping[Any, Any], content: dict[Any, Any]) -> Any:
    try:
        return type(value)(content)  # type: ignore[call-arg]
    except TypeError:
        return content


def _text(text: str) -> str:
    for pattern, mark in zip(_patterns(), ("", MASK), strict=True):
        if pattern is not None:
            text = pattern.sub(mark, text)
    return _by_form(text) if "://" in text else text


def _patterns() -> list[re.Pattern[str] | None]:
    global _compiled
    if _compiled is None:
        _compiled = [
            re.compile("|".join(sorted(known, key=len, reverse=True)), re.I) if known else None
            for known in (_dropped, _masked)
        ]
    return _compiled


# ---------------------------------------------------------------- what is remembered


def _learn_url(rest: str, scheme: str) -> None:
    user = user_part(rest)
    if user:
        name, colon, password = user.partition(":")
        _learn_value(base64.b64encode(unquote(user).encode()).decode())  # of HTTP's Authorization
        if colon:
            _remember(_dropped, f"{user}@", whole=True)
            _remember(_masked, user, whole=True)
            for piece in (password, *re.split(r"[/?#@:]", password)):  # libraries cut a URL there
                _learn_value(piece)
        if not colon or scheme.lower().startswith("s3"):
            _learn_value(name)  # a token, or the id of a key
        rest = rest[len(user) + 1 :]
    hidden = "".join(re.split(r"([?#])", rest, maxsplit=1)[1:])
    if len(hidden) > 4:
        _remember(_dropped, hidden)
    for one in re.split(r"[&;?#]", hidden):
        key, equals, value = one.partition("=")
        if not equals:
            key, value = "", one
        if _QUERY_NAME.search(key) or _looks_random(value):
            _learn_value(value)


def _learn_named(line: str) -> None:
    for named in _NAMED.finditer(line):
        _learn_value(named[2])


def _looks_random(value: str) -> bool:
    kinds = bool(re.search(r"[0-9]", value)) and bool(re.search(r"[A-Za-z]", value))
    return len(value) >= 16 or (len(value) >= 8 and kinds)


def _learn_value(secret: str) -> None:
    for form in {secret, unquote(secret)}:
        if _is_telling(form):
            _remember(_masked, form)


def _is_telling(secret: str) -> bool:
    if secret.lower() in _COMMON or not secret.strip("*"):
        return False
    kinds = sum(bool(re.search(one, secret)) for one in ("[a-z]", "[A-Z]", "[0-9]", r"[\W_]"))
    marked = re.search(r"[?#@%!$^&*]", secret) is not None
    least = 3 if marked else 5
    return len(secret) >= 8 or (len(secret) >= least and kinds > 1 and not _is_number(secret))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[\d.,:/-]*", text) is not None


def _remember(known: dict[str, None], secret: str, whole: bool = False) -> None:
    """Remembers a secret in all its forms; as ``whole`` only where no word goes on before it."""
    global _compiled
    for form in (secret, unquote(secret)):
        pattern = "".join(map(_any_form, form))
        if whole:
            after = "" if form.endswith("@") else r"(?!\w)"
            pattern = rf"(?<!\w){pattern}{after}"
        if pattern not in known:
            known[pattern] = None
            _compiled = None


def _any_form(letter: str) -> str:
    """A pattern of a letter as it is, percent-encoded once or twice, or escaped, in any case."""
    if letter.isascii() and letter.isalnum():
        return letter
    encoded = "".join(f"%(?:25)?{byte:02x}" for byte in letter.encode())
    forms = [re.escape(letter), encoded, rf"\\u{ord(letter):04x}"]
    if letter in "\\'\"/":
        forms.append(rf"\\{re.escape(letter)}")
    if letter == " ":
        forms.append(r"\+")
    names = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x?[0-9]+;"}
    return f"(?:{'|'.join([*forms, *filter(None, [names.get(letter)])])})"


def _learn_config(path: str) -> None:
    """Learns the secrets in a config that the command line names."""
    if not re.search(r"(?i)\.(ya?ml|json|toml)$", path):
        return
    for text in _lines(path):
        learn(text)


def _lines(path: str) -> Iterator[str]:
    try:
        # A pipe may never answer, and what it says can be read only once.
        if not Path(path).is_file():
            return
        # A longer file is no config; the parser reads it next and reports what is wrong.
        with Path(path).open(errors="replace") as file:
            yield file.read(1 << 20)
    except (OSError, ValueError):
        return


def _guard(stream: Any) -> None:
    write = stream.write

    def guarded(text: str) -> int:
        write(redacted(text))
        return len(text)

    guarded.filters = True  # type: ignore[attr-defined]
    stream.write = guarded


def _is_guarded(stream: Any) -> bool:
    return hasattr(getattr(stream, "write", None), "filters")
