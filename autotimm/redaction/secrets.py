"""The secrets that this process knows, and the patterns of all their forms."""

from __future__ import annotations

import re
from urllib.parse import unquote

from autotimm.redaction.urls import user_part

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NAME = r"[\w.-]*(?:secret|token|passw|pwd|credential|signature|api_?key|access_?key)[\w.-]*"
_NAMED = re.compile(rf"(?i)(?:^|[\s,{{\"'-])({_NAME})[\"']?\s*[=:\s]\s*[\"']?([^\s\"',}}]+)")
_QUERY_NAME = r"(?i)sig|token|key|secret|pass|pwd|cred|auth|code|session|policy"
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
        learn_named(line)


def learn_named(line: str) -> None:
    """Remembers the values in a line whose names say that they are secrets, ``--token VALUE``."""
    for named in _NAMED.finditer(line):
        learn_value(named[2])


def learn_value(secret: str) -> None:
    """Remembers a secret, if it is telling."""
    for form in {secret, unquote(secret)}:
        if _is_telling(form):
            _remember(_masked, form)


def patterns() -> list[re.Pattern[str] | None]:
    """Two patterns, None for none: of what goes without a trace, and of what is masked."""
    global _compiled
    if _compiled is None:
        _compiled = [
            re.compile("|".join(sorted(known, key=len, reverse=True)), re.I) if known else None
            for known in (_dropped, _masked)
        ]
    return _compiled


def _learn_url(rest: str, scheme: str) -> None:
    user = user_part(rest)
    if user:
        import base64  # few commands have a URL with a password

        name, colon, password = user.partition(":")
        learn_value(base64.b64encode(unquote(user).encode()).decode())  # of HTTP's Authorization
        if colon:
            _remember(_dropped, f"{user}@", whole=True)
            _remember(_masked, user, whole=True)
            for piece in (password, *re.split(r"[/?#@:]", password)):  # libraries cut a URL there
                learn_value(piece)
        if not colon or scheme.lower().startswith("s3"):
            learn_value(name)  # a token, or the id of a key
        rest = rest[len(user) + 1 :]
    hidden = "".join(re.split(r"([?#])", rest, maxsplit=1)[1:])
    if len(hidden) > 4:
        _remember(_dropped, hidden)
    for one in re.split(r"[&;?#]", hidden):
        key, equals, value = one.partition("=")
        if not equals:
            key, value = "", one
        if re.search(_QUERY_NAME, key) or _looks_random(value):
            learn_value(value)


def _looks_random(value: str) -> bool:
    kinds = bool(re.search(r"[0-9]", value)) and bool(re.search(r"[A-Za-z]", value))
    return len(value) >= 16 or (len(value) >= 8 and kinds)


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
    """Remembers a secret in all its forms; as ``whole`` only from the beginning of a word on."""
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
