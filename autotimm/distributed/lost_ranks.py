"""Find the ranks that have died or hang, after a collective has failed.

The errors of gloo and NCCL name an address at best. So the remaining ranks meet once more, and the
message names the ranks that do not come, with their nodes. If they cannot meet, each of them
reports what it knows, so that no error is lost.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from autotimm.distributed.rendezvous import Rendezvous, located

PATIENCE = timedelta(seconds=15)
"""How long the remaining ranks wait for each other; torchrun gives them 30 seconds."""

_ERROR_CHARACTERS = 200  # of the original error in the message

_GLOO = re.compile(
    r"\[\S*gloo/transport/\S+\.cc:\d+\] "  # the source line, with which gloo's messages begin
    r"|Application timeout caused pair closure"  # the message of every later collective
)


class LostRanksError(RuntimeError):
    """Other ranks have ended or hang.

    Attributes:
        reports: whether this rank has to print the message, because no other rank surely does.
    """

    def __init__(self, message: str, reports: bool) -> None:
        super().__init__(message)
        self.reports = reports


def is_of_another_rank(error: BaseException) -> bool:
    """Whether an error comes from a collective in which another rank could not be reached.

    Gloo raises plain RuntimeErrors, which are recognised by the start of the message.
    """
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and _GLOO.match(str(error)) is not None


def ranks_lost(
    rendezvous: Rendezvous, hosts: list[str], error: BaseException
) -> LostRanksError | None:
    """The error to raise instead of ``error`` on a remaining rank; None if no rank is missing.

    Args:
        rendezvous: of the job.
        hosts: the node of every rank.
        error: the error of a collective.
    """

    def compare(reports: list[Any]) -> list[int]:
        # A rank with an error of its own sends a report instead (``setup.check.report_error``).
        return [rank for rank, report in enumerate(reports) if report != "here"]

    try:
        missing = rendezvous.exchange("here", compare, PATIENCE)
        reports_it = rendezvous.rank == 0
    except (OSError, RuntimeError):  # the first rank does not answer, or its store is gone
        missing, reports_it = [0], True  # no rank knows whether another one reports it
    if not isinstance(missing, list):  # the first rank has an error of its own and compares reports
        missing, reports_it = [0], True
    if not missing:
        return None
    hangs = re.search(r"time(d |)out", str(error), re.IGNORECASE)
    how = "do not answer within the timeout: they hang, or wait" if hangs else "have ended"
    if len(missing) == 1:
        how = "does not answer within the timeout: it hangs, or waits" if hangs else "has ended"
    cause = " ".join(str(error).split())[:_ERROR_CHARACTERS]
    return LostRanksError(
        f"{located(missing, hosts)} {how}; see the last messages there. Started again, by hand "
        f"with --ckpt_path last, the run goes on from its last checkpoint (rank {rendezvous.rank} "
        f"on {hosts[rendezvous.rank]}: {cause})",
        reports_it,
    )
