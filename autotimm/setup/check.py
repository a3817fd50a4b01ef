"""The check of a job's set-up before its processes join: is it the run that was meant, everywhere?

Every rank hands in a report of what it has (``setup_report.py``); the first one compares them, and
all hear the same verdict. Invariants: no process group is needed, so what would hang its making is
found before; a rank that fails alone ends all ranks with the message that names it; a line that
concerns all ranks is printed once.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, TypedDict

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from autotimm.distributed.launcher import rank_and_size
from autotimm.distributed.rendezvous import (
    PATIENCE,
    JointError,
    Rendezvous,
    host_name,
    launcher_rendezvous,
    located,
    rendezvous_at,
)
from autotimm.setup.report import Report, check_shared_folders, make_report
from autotimm.structures import InputError

_ANSWER = timedelta(seconds=5)  # for ranks that fail at once to hear of each other
_START = timedelta(minutes=1)  # the same before they have met
_REMEDIES = {
    "packages": "install the same on every node",
    "settings": "give every process the same flags and config file",
    "data": "give every node the same shards, manifest.json included",
    "checkpoint": "keep it where every node sees the same file",
}


class Verdict(TypedDict):
    """What all ranks are told.

    Attributes:
        problems: lines for which the run cannot begin.
        warnings: lines to be told.
        probes: files that every rank is to look for.
    """

    problems: list[str]
    warnings: list[str]
    probes: list[str]


def check_setup(trainer: Trainer, model: LightningModule, ckpt_path: Any = None) -> None:
    """Ends the run on all ranks where the set-up of one is wrong. Called by all ranks at once.

    Raises:
        InputError: what is wrong; the same on all ranks, which it names.
    """
    with contextlib.ExitStack() as stack:
        report, error = make_report(trainer, model, ckpt_path, stack)
        if trainer.world_size == 1:
            if error is not None:
                raise error
            return
        rendezvous = rendezvous_of(trainer)
        verdict = rendezvous.exchange(report, compare_reports)
        if verdict["probes"]:
            told = rendezvous.exchange(
                check_shared_folders(trainer, verdict["probes"]), compare_reports
            )
            told["warnings"] += verdict["warnings"]
            verdict = told
    for warning in verdict["warnings"]:
        rank_zero_warn(warning)
    if error is not None and not isinstance(error, InputError | OSError):
        raise error  # a fault of the program, which needs its traceback
    if verdict["problems"]:
        raise JointError("; ".join(verdict["problems"])) from error


def report_error(error: BaseException, message: str) -> None:
    """Prints the line of an error that ends this rank: what all ranks have in common once, what is
    one rank's own with its name.

    Args:
        error: what ends it.
        message: the line.
    """
    rendezvous, line = _agreed(error, message)
    if line is not None:
        print(f"error: {' '.join(line.split())}", file=sys.stderr, flush=True)
    if rendezvous is not None:
        rendezvous.part()


def _agreed(error: BaseException, message: str) -> tuple[Rendezvous | None, str | None]:
    """Where the ranks have agreed on what to say, and what this one has to say of it."""
    try:
        own = f"rank {rank_and_size()[0]} on {host_name()}: {message}"
    except InputError:  # which this error tells
        return None, message
    try:
        rendezvous = launcher_rendezvous(_START)
        if rendezvous is None:
            return None, message
        if not isinstance(error, JointError):
            patience = _ANSWER if rendezvous.held else _START
            verdict = rendezvous.exchange(
                Report(host=host_name(), problem=message), compare_reports, patience
            )
            if "problems" not in verdict:  # the others look for who is lost
                return None, own
            message = "; ".join(verdict["problems"])
        return rendezvous, None if rendezvous.rank else message
    except (OSError, RuntimeError, InputError):  # nobody is there to agree with
        return None, own


def compare_reports(reports: Sequence[Report | None]) -> Verdict:
    """What there is to say of the reports.

    Args:
        reports: by rank; None for one that did not come. A rank that looks for who is lost
            (``lost.py``) has none.
    """
    reports = [report if isinstance(report, dict) else None for report in reports]
    hosts = [report["host"] if report else "an unknown node" for report in reports]
    there = {rank: report for rank, report in enumerate(reports) if report}
    missing = [rank for rank, report in enumerate(reports) if report is None]
    problems = _lines({r: report.get("problem", "") for r, report in there.items()}, hosts)
    warnings = _lines({r: report.get("warning", "") for r, report in there.items()}, hosts)
    # Who did not come is late, or has ended for the same reason, where there is one.
    if missing and not problems:
        problems = [
            f"{located(missing, hosts)} did not come within {PATIENCE}: see whether they were "
            "started, and what they wait for"
        ]
    if problems:
        return Verdict(problems=problems, warnings=[], probes=[])
    given = list(there.values())
    for kind, remedy in _REMEDIES.items():
        values = [report.get("same", {}).get(kind, {}) for report in given]
        for name in dict.fromkeys(name for value in values for name in value):
            told = _told(_groups(value.get(name, "none") for value in values), hosts)
            problems += [f"{name} differs: {told}: {remedy}"] if told else []
    used = _groups(report.get("gpu", "") for report in given)
    problems += [
        f"{located(ranks, hosts)} have the same GPU: let every process see all GPUs of its node "
        "(--gpus-per-node, not --gpus-per-task), and set no CUDA_VISIBLE_DEVICES of its own"
        for gpu, ranks in used.items()
        if gpu and len(ranks) > 1
    ]
    kinds = _told(_groups(report.get("gpu_name", "") for report in given), hosts)
    warnings += [f"the GPUs differ, and the slowest sets the pace: {kinds}"] if kinds else []
    probes = given[0].get("probes", []) if len(set(hosts)) > 1 else []
    return Verdict(problems=problems, warnings=warnings, probes=[] if problems else probes)


def _lines(texts: dict[int, str], hosts: Sequence[str]) -> list[str]:
    """Each text with the ranks that have it, unless all have."""
    return [
        text if len(ranks) == len(hosts) else f"{located(ranks, hosts)}: {text}"
        for text, ranks in _groups(texts.values(), texts).items()
        if text
    ]


def _told(groups: dict[str, list[int]], hosts: Sequence[str]) -> str:
    """The values that ranks have, where they have different ones; "" where they have not."""
    if len(groups) == 1:
        return ""
    return ", ".join(f"{value} on {located(ranks, hosts)}" for value, ranks in groups.items())


def _groups(values: Iterable[str], ranks: Iterable[int] | None = None) -> dict[str, list[int]]:
    """The ranks that have each value, given by rank; all ranks where none are named."""
    pairs = enumerate(values) if ranks is None else zip(ranks, values, strict=True)
    groups: dict[str, list[int]] = {}
    for rank, value in pairs:
        groups.setdefault(value, []).append(rank)
    return groups


def rendezvous_of(trainer: Trainer) -> Rendezvous:
    """The rendezvous of a trainer's ranks, of which there are several."""
    environment: Any = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
    address, port = environment.main_address, environment.main_port
    return rendezvous_at(address, port, trainer.global_rank, trainer.world_size)
