"""What servers say: when to ask again, and why not."""

from __future__ import annotations

import math

from documents import mutated
from hypothesis import strategies as st
from properties import fuzzed, outcome

from autotimm.files import answers

DATES = ("Mon, 30 Nov 2026 10:00:00 GMT", "Mon, 30 Nov 2026 10:00:00 +0230", "30 Nov 26 10:00")
times = st.one_of(
    st.sampled_from(("0", "7", "9" * 400, "-1", "1.5", "", "\u0663", *DATES)),
    st.from_regex(r"(Mon, )?[0-9]{1,20} Nov [0-9]{1,20} [0-9:]{1,20} (GMT|[+-][0-9]{1,20})?"),
    st.text(max_size=20),
)


@fuzzed(times, times, st.sampled_from(("Retry-After", "retry-after", "RETRY-AFTER")), examples=120)
def test_retry_after(after: str, date: str, name: str) -> None:
    wait = outcome(lambda: answers.asked_wait({name: after, "Date": date}))
    assert wait >= 0
    assert not math.isnan(wait)


bodies = st.builds(
    lambda code, message, xml: (
        f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        if xml
        else f'{{"code": "{code}", "message": "{message}"}}'
    ).encode("utf-8", "replace"),
    st.text(max_size=20),
    st.text(max_size=250),
    st.booleans(),
)


@fuzzed(bodies | st.binary(max_size=200), examples=60)
def test_reasons(body: bytes) -> None:
    code, message = outcome(lambda: answers._reason(body))
    assert len(code) <= 200 >= len(message)
    assert answers._printable(code + message).isprintable()


STORE = {
    "Error": {"Code": "AccessDenied", "Message": "no"},
    "ResponseMetadata": {"HTTPStatusCode": 403, "HTTPHeaders": {"retry-after": "3"}},
}


@fuzzed(mutated(st.just({**STORE})), examples=60)
def test_stores(answer: object) -> None:
    """botocore makes these; what it lacks is no fault of the request."""
    error = OSError("x")
    error.response = answer if isinstance(answer, dict) else STORE  # type: ignore[attr-defined]
    if all(
        isinstance(error.response.get(key) or {}, dict)  # type: ignore[attr-defined]
        for key in ("Error", "ResponseMetadata")
    ):
        headers = (error.response.get("ResponseMetadata") or {}).get("HTTPHeaders")  # type: ignore[attr-defined]
        if headers is None or (
            isinstance(headers, dict) and all(isinstance(one, str) for one in headers.values())
        ):
            assert str(outcome(lambda: answers.of_store(error))).isprintable()
