"""Whether a run can have pretrained weights: from the hub, or from what was fetched before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotimm.doctor.machine import Finding

_SECONDS = 4.0  # to wait for the hub
_NAME = "pretrained weights"
_REMEDY = (
    "--model.pretrained false begins with random weights, and --model.pretrained FILE takes a file "
    'of weights ("Without a hub" in docs/adding-a-backbone.md)'
)


def weights(model: Mapping[str, Any] | None = None) -> list[Finding]:
    """Looks whether the hub can be reached, for at most four seconds. Downloads nothing.

    Args:
        model: the arguments of a config's model; None without a config.

    Returns:
        Nothing for a model that needs no weights from the hub.
    """
    if model is not None and model.get("pretrained", True) is not True:
        return []
    from autotimm.models import hub  # its client takes a while to import

    lacking = hub.out_of_reach(_SECONDS)
    if not lacking:
        return [Finding("ok", _NAME, "the hub can be reached")]
    known = hub.fetched_before()
    if model is None:
        kept = f"only these were fetched before: {', '.join(known)}" if known else "none is here"
        return [Finding("warn", _NAME, f"{lacking}; {kept}", _REMEDY)]
    wanted = str(model.get("backbone"))
    if any(wanted in (name, name.partition(".")[0]) for name in known):
        return [Finding("ok", _NAME, f"{lacking}, but those of {wanted} were fetched before")]
    return [Finding("fail", _NAME, f"{lacking}, and those of {wanted} are not here", _REMEDY)]
