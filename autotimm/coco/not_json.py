"""Why a text is not JSON: what it is instead, or where it is wrong, with the way out."""

from __future__ import annotations

import json
import re

from autotimm.images.kinds import HEAD, kind_of

_NOT_STRICT = re.compile(rb"^[ \t]*(//|/\*|#)|,\s*[}\]]", re.MULTILINE)


def reason(data: bytes) -> str | None:
    """Returns why bytes are not JSON, in short; None where they are."""
    try:
        json.loads(data)
    except (ValueError, RecursionError) as error:
        kind = kind_of(data[:HEAD])
        if kind.name not in ("JSON", "text", "unknown kind"):
            return f"{kind.name}{kind.way and f': {kind.way}'}"
        if isinstance(error, UnicodeDecodeError):
            if b"\0" in data[:HEAD]:
                return "no text"
            return f"not UTF-8 at byte {error.start:,}: save it as UTF-8"
        return f"{error}{_way_out(data)}"
    return None


def _way_out(data: bytes) -> str:
    lines = [line.strip() for line in data.split(b"\n", 3)[:2]]
    if len(lines) == 2 and all(line[:1] + line[-1:] == b"{}" for line in lines):
        return "; it is JSON Lines, an object a line, which is not read"
    if _NOT_STRICT.search(data):
        return "; JSON has neither comments nor commas behind the last value"
    return ""
