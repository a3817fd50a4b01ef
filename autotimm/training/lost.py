"""Which ranks have died or hang, when the others hear nothing from them any more.

The errors of gloo and NCCL name an address at best. Those that are left meet once more, and who
does not come there is named, with its node.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist

from autotimm.training.meeting import Meeting, located

PATIENCE = timedelta(seconds=15)
"""How long those that are left wait for each other; torchrun gives them 30 seconds."""

_SIGNS = ("gloo/transport", "Connection closed", "Connection reset", "timed out", "Timed out")


class LostRanksError(RuntimeError):
    """Other ranks have ended or hang.

    Attributes:
        tells: whether this rank is the one to say so.
    """

    def __init__(self, message: str, tells: bool) -> None:
        super().__init__(message)
        self.tells = tells


def is_of_another_rank(error: BaseException) -> bool:
    """Whether an error says that another rank was not to be reached."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def ranks_lost(meeting: Meeting, hosts: list[str], error: BaseException) -> LostRanksError | None:
    """What to raise in place of ``error`` on a rank that is left; None where no rank is missing.

    Args:
        meeting: of the job.
        hosts: the node of every rank.
        error: that of a collective.
    """

    def judge(reports: list[Any]) -> list[int]:
        # A rank that has failed hands in what it says of it (``setup_check.tell``).
        return [rank for rank, report in enumerate(reports) if report != "here"]

    try:
        missing = meeting.meet("here", judge, PATIENCE)
        tells = meeting.rank == 0
    except (OSError, RuntimeError):  # the first rank is not there, or its store went with it
        # Nor are perhaps the others of its node: a line a node, as nobody hears of the others.
        missing, tells = [0], meeting.rank in (1, hosts.index(hosts[meeting.rank]))
    if not missing:
        return None
    hangs = "imed out" in str(error)
    how = "do not answer within the timeout: they hang, or wait" if hangs else "have ended"
    if len(missing) == 1:
        how = "does not answer within the timeout: it hangs, or waits" if hangs else "has ended"
    return LostRanksError(
        f"{located(missing, hosts)} {how}; see what was said there last. Started again, by hand "
        "with ckpt_path=last, the run goes on from its last checkpoint",
        tells,
    )
