"""The check of a job's set-up before its processes join: do all ranks have the same run?

Every rank sends a report (``setup/report.py``), the first rank compares the reports, and all get
the same verdict. Invariants: the check needs no process group, so it finds problems that would make
the creation of one hang; if one rank fails, all ranks end with a message that names it; a line that
concerns all ranks is printed once.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypedDict

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from autotimm.distributed.error_file import write_error
from autotimm.distributed.launcher import rank_and_size
from autotimm.distributed.rendezvous import (
    PATIENCE,
    JointError,
    Rendezvous,
    UnreachableError,
    host_name,
    launcher_rendezvous,
    located,
    rendezvous_at,
)
from autotimm.setup.report import Report, check_shared_folders, make_report
from autotimm.structures import InputError

_ANSWER = timedelta(seconds=5)  # to wait for the reports of ranks that fail at the same time
_START = timedelta(minutes=1)  # the same before the first exchange
_REMEDIES = {
    "packages": "install the same on every node",
    "settings": "give every process the same flags and config file",
    "data": "give every node the same shards, manifest.json included",
    "checkpoint": "keep it where every node sees the same file",
}


class Verdict(TypedDict):
    """The result of the comparison, which all ranks get.

    Attributes:
        problems: lines that describe why the run cannot begin.
        warnings: lines to print.
        probes: files that every rank has to look for.
    """

    problems: list[str]
    warnings: list[str]
    probes: list[str]


def check_setup(
    trainer: Trainer,
    model: LightningModule,
    ckpt_path: Any = None,
    prepare: Callable[[], object] | None = None,
) -> None:
    """Check the set-up of all ranks, which call it together.

    Args:
        trainer: which is about to start.
        model: of the run.
        ckpt_path: the checkpoint to resume from, or None.
        prepare: changes the model first; its errors count as those of the set-up.

    Raises:
        InputError: on all ranks, with the same message, if the set-up of any rank is wrong.
    """
    with contextlib.ExitStack() as stack:
        report, error = make_report(trainer, model, ckpt_path, stack, prepare)
        if trainer.world_size == 1:
            if error is not None:
                raise error
            return
        rendezvous = rendezvous_of(trainer)
        compare = partial(compare_reports, patience=rendezvous.patience)
        verdict = rendezvous.exchange(report, compare)
        if verdict["probes"]:
            second = rendezvous.exchange(check_shared_folders(trainer, verdict["probes"]), compare)
            second["warnings"] += verdict["warnings"]
            verdict = second
    for warning in verdict["warnings"]:
        rank_zero_warn(warning)
    if error is not None and not isinstance(error, InputError | OSError):
        raise error  # a bug, which needs its traceback
    if verdict["problems"]:
        raise JointError("; ".join(verdict["problems"])) from error


def report_error(error: BaseException, message: str) -> None:
    """Print the line of an error that ends this rank.

    If all ranks have the same error, only the first one prints it. The error of a single rank is
    printed with its rank and node. Under torchrun, the report that torchrun prints last has the
    line, too.

    Args:
        error: the exception.
        message: the line.
    """
    rendezvous, line = _agreed(error, message)
    write_error(f"error: {' '.join((line or message).split())}")
    if line is not None:
        print(f"error: {' '.join(line.split())}", file=sys.stderr, flush=True)
    if rendezvous is not None:
        rendezvous.part()


def _agreed(error: BaseException, message: str) -> tuple[Rendezvous | None, str | None]:
    """Let the ranks agree on the message of an error.

    Returns:
        The rendezvous, or None if they could not agree, and the line for this rank to print, or
        None if another rank prints it.
    """
    if isinstance(error, UnreachableError):  # it would be looked for in vain once more
        return None, message
    try:
        own = f"rank {rank_and_size()[0]} on {host_name()}: {message}"
    except InputError:  # the error itself reports the same problem
        return None, message
    try:
        rendezvous = launcher_rendezvous(_START)
        if rendezvous is None:
            return None, message
        if not isinstance(error, JointError):
            patience = _ANSWER if rendezvous.exchanges else _START
            verdict = rendezvous.exchange(
                Report(host=host_name(), problem=message), compare_reports, patience
            )
            if "problems" not in verdict:  # the others are looking for lost ranks
                return None, own
            message = "; ".join(verdict["problems"])
        return rendezvous, None if rendezvous.rank else message
    except (OSError, RuntimeError, InputError):  # the other ranks cannot be reached
        return None, own


def compare_reports(reports: Sequence[Report | None], patience: timedelta = PATIENCE) -> Verdict:
    """Compare the reports of all ranks.

    Args:
        reports: by rank; None for a rank that did not come. A rank that is looking for lost ranks
            (``distributed/lost_ranks.py``) sends a text, which counts as None.
        patience: how long the first rank has waited for them.
    """
    reports = [report if isinstance(report, dict) else None for report in reports]
    hosts = [report["host"] if report else "an unknown node" for report in reports]
    there = {rank: report for rank, report in enumerate(reports) if report}
    missing = [rank for rank, report in enumerate(reports) if report is None]
    problems = _lines({r: report.get("problem", "") for r, report in there.items()}, hosts)
    warnings = _lines({r: report.get("warning", "") for r, report in there.items()}, hosts)
    # A rank that did not come is late, or has ended because of a problem that another rank reports.
    if missing and not problems:
        problems = [
            f"{located(missing, hosts)} did not come within {patience}: see whether they were "
            "started and what they wait for, or raise timeout_minutes"
        ]
    if problems:
        return Verdict(problems=problems, warnings=[], probes=[])
    given = list(there.values())
    for kind, remedy in _REMEDIES.items():
        values = [report.get("same", {}).get(kind, {}) for report in given]
        for name in dict.fromkeys(name for value in values for name in value):
            differing = _differing(_groups(value.get(name, "none") for value in values), hosts)
            problems += [f"{name} differs: {differing}: {remedy}"] if differing else []
    used = _groups(report.get("gpu", "") for report in given)
    problems += [
        f"{located(ranks, hosts)} have the same GPU: let every process see all GPUs of its node "
        "(--gpus-per-node, not --gpus-per-task), and set no CUDA_VISIBLE_DEVICES of its own"
        for gpu, ranks in used.items()
        if gpu and len(ranks) > 1
    ]
    kinds = _differing(_groups(report.get("gpu_name", "") for report in given), hosts)
    warnings += [f"the GPUs differ, and the slowest sets the pace: {kinds}"] if kinds else []
    probes = given[0].get("probes", []) if len(set(hosts)) > 1 else []
    return Verdict(problems=problems, warnings=warnings, probes=[] if problems else probes)


def _lines(texts: dict[int, str], hosts: Sequence[str]) -> list[str]:
    """The texts, each with its ranks unless all ranks have it."""
    return [
        text if len(ranks) == len(hosts) else f"{located(ranks, hosts)}: {text}"
        for text, ranks in _groups(texts.values(), texts).items()
        if text
    ]


def _differing(groups: dict[str, list[int]], hosts: Sequence[str]) -> str:
    """The values with their ranks; "" if all ranks have the same value."""
    if len(groups) == 1:
        return ""
    return ", ".join(f"{value} on {located(ranks, hosts)}" for value, ranks in groups.items())


def _groups(values: Iterable[str], ranks: Iterable[int] | None = None) -> dict[str, list[int]]:
    """The ranks that have each value.

    Args:
        values: by rank.
        ranks: the rank of each value; by default 0, 1, 2, ...
    """
    pairs = enumerate(values) if ranks is None else zip(ranks, values, strict=True)
    groups: dict[str, list[int]] = {}
    for rank, value in pairs:
        groups.setdefault(value, []).append(rank)
    return groups


def rendezvous_of(trainer: Trainer) -> Rendezvous:
    """The rendezvous of a trainer's ranks, of which there must be more than one.

    They wait for each other as long as the trainer's ``timeout_minutes`` says.
    """
    environment: Any = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
    address, port = environment.main_address, environment.main_port
    patience = getattr(trainer, "timeout", PATIENCE)
    return rendezvous_at(address, port, trainer.global_rank, trainer.world_size, patience)
