"""Which ranks have died or hang, when the others hear nothing from them any more.

The errors of gloo and NCCL name an address at best. Those that are left meet once more, and who
does not come there is named, with its node. Where they cannot meet, each of them says what it
knows: no error goes unsaid.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from autotimm.distributed.rendezvous import Rendezvous, located

PATIENCE = timedelta(seconds=15)
"""How long those that are left wait for each other; torchrun gives them 30 seconds."""

_SAID = 200  # characters of the error that led here

_GLOO = re.compile(
    r"\[\S*gloo/transport/\S+\.cc:\d+\] "  # where it was raised, which gloo says first
    r"|Application timeout caused pair closure"  # what it says of every collective after that
)


class LostRanksError(RuntimeError):
    """Other ranks have ended or hang.

    Attributes:
        tells: whether this rank has to say so: no other one surely does.
    """

    def __init__(self, message: str, tells: bool) -> None:
        super().__init__(message)
        self.tells = tells


def is_of_another_rank(error: BaseException) -> bool:
    """Whether an error is that of a collective, in which another rank was not to be reached.

    Gloo raises a plain RuntimeError, as anybody may: it is told by its beginning.
    """
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and _GLOO.match(str(error)) is not None


def ranks_lost(
    rendezvous: Rendezvous, hosts: list[str], error: BaseException
) -> LostRanksError | None:
    """What to raise in place of ``error`` on a rank that is left; None where no rank is missing.

    Args:
        rendezvous: of the job.
        hosts: the node of every rank.
        error: that of a collective.
    """

    def compare(reports: list[Any]) -> list[int]:
        # A rank that has failed hands in what it says of it (``setup_check.tell``).
        return [rank for rank, report in enumerate(reports) if report != "here"]

    try:
        missing = rendezvous.exchange("here", compare, PATIENCE)
        tells = rendezvous.rank == 0
    except (OSError, RuntimeError):  # the first rank is not there, or its store went with it
        missing, tells = [0], True  # nobody hears whether another one has said so
    if not isinstance(missing, list):  # the first rank judges why it has failed itself
        missing, tells = [0], True
    if not missing:
        return None
    hangs = re.search(r"time(d |)out", str(error), re.IGNORECASE)
    how = "do not answer within the timeout: they hang, or wait" if hangs else "have ended"
    if len(missing) == 1:
        how = "does not answer within the timeout: it hangs, or waits" if hangs else "has ended"
    said = " ".join(str(error).split())[:_SAID]
    return LostRanksError(
        f"{located(missing, hosts)} {how}; see what was said there last. Started again, by hand "
        f"with ckpt_path=last, the run goes on from its last checkpoint (rank {rendezvous.rank} on "
        f"{hosts[rendezvous.rank]}: {said})",
        tells,
    )
