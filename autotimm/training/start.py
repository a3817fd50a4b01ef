"""The start of a run: from new weights, from a requested checkpoint, or where it was stopped.

A new run starts from its model's own weights, or from another model's (``start_weights.py``).

Invariants: a restarted launch resumes its own run, whatever its flags say and even if only one rank
knows of the restart; all ranks begin from the checkpoint that the first one chose; a new run loads
only the checkpoint that the user names.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from autotimm.checkpoints import zero_files
from autotimm.checkpoints.resume import damage_of, newest
from autotimm.checkpoints.storage import COMPLETE
from autotimm.distributed.launcher import find_launch
from autotimm.distributed.parent import still_runs
from autotimm.distributed.rendezvous import PATIENCE, JointError, Rendezvous, host_name
from autotimm.files import urls
from autotimm.lightning_private import CheckpointConnector
from autotimm.outputs import provenance
from autotimm.setup.check import compare_reports, rendezvous_of
from autotimm.setup.report import Report
from autotimm.structures import InputError
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.training import earlier_runs
from autotimm.training.earlier_runs import LAST
from autotimm.training.early_stopping import stop_of
from autotimm.training.newest_link import resolve_link
from autotimm.training.run_folder import find_run
from autotimm.training.run_name import check_free
from autotimm.training.run_record import read_record


class NamedCheckpoints(CheckpointConnector):
    """Restores only the checkpoint that is named, and all of its optimizers and schedules."""

    def select(self, ckpt_path: Any, by_lightning: Callable[[], Any]) -> Any:
        if ckpt_path == "hpc":
            raise InputError("ckpt_path='hpc' is not used here: give a path, or 'last'")
        if ckpt_path == "":
            raise InputError("ckpt_path is empty: give a path, or 'last'")
        if ckpt_path == LAST:  # Lightning would only look at this trainer's run
            return ckpt_path
        try:
            return by_lightning()
        except ValueError as error:
            if ckpt_path != "best":
                raise
            raise InputError(
                "ckpt_path='best' needs an earlier fit of the same trainer: give the path of a "
                "run's best.ckpt, or 'last'"
            ) from error

    def restore_optimizers_and_schedulers(self) -> None:
        saved, trainer = self.loaded, self.trainer
        if saved and trainer.training:  # not when the batch size finder restores its checkpoint
            counts = {"lr_schedulers": len(trainer.lr_scheduler_configs)}
            if trainer.strategy.lightning_restore_optimizer:
                counts["optimizer_states"] = len(trainer.strategy.optimizers)
            for key, count in counts.items():
                # Lightning would silently restore only as many as both have.
                if len(saved.get(key, ())) != count:
                    raise InputError(
                        f"the checkpoint to resume from has {len(saved.get(key, ()))} {key}, but "
                        f"this run has {count}: give one that a run of this model saved, or begin "
                        f"a new one from its weights"
                    )
        super().restore_optimizers_and_schedulers()


class Beginning(NamedTuple):
    """What all ranks have agreed on before a run begins.

    Attributes:
        checkpoint: the path to begin from; None for a new run.
        rendezvous: of the ranks; None for one process.
        hosts: the node of every rank.
        agents: the torchrun process of every node; empty without torchrun.
        finished: how far the run of the checkpoint got, if a fit has no step left.
        weights: what an earlier start of this launch took its weights from; None if there was none.
    """

    checkpoint: Any
    rendezvous: Rendezvous | None
    hosts: list[str]
    agents: list[str]
    finished: str
    weights: str | None


def begin(trainer: Trainer, model: LightningModule, requested: Any) -> Beginning:
    """Let the first rank choose the checkpoint to begin from. All ranks call it together.

    Args:
        trainer: of the run.
        model: of the run.
        requested: the checkpoint that the user names.

    Raises:
        InputError: on all ranks, if the checkpoint does not exist, another run has the name of this
            one, or a rank has failed.
    """
    launch = find_launch()
    name = getattr(trainer, "new_name", None)
    if name is not None:
        trainer.new_name = None  # type: ignore[attr-defined]

    rendezvous = rendezvous_of(trainer) if trainer.world_size > 1 else None
    patience = PATIENCE if rendezvous is None else rendezvous.patience

    def choose(reports: list[Any]) -> dict[str, Any]:
        """The first rank's answer to all ranks."""
        agents = sorted({agent for one in reports if one and (agent := one.get("agent"))})
        answer = {
            "problems": compare_reports(reports, patience)["problems"],
            "hosts": [report and report["host"] for report in reports],
            "agents": agents,
        }
        if answer["problems"]:
            return answer
        try:
            earlier = None if launch is None else find_run(trainer.default_root_dir, launch, agents)
            if name is not None and earlier is None:
                check_free(trainer.default_root_dir, name)
            return answer | _chosen(trainer, model, requested, earlier)
        except (InputError, OSError) as error:  # to raise it on all ranks
            return answer | {"problems": [str(error)]}

    report = Report(host=host_name(), agent=launch.agent if launch else "")
    answer = choose([report]) if rendezvous is None else rendezvous.exchange(report, choose)
    if answer["problems"]:
        raise JointError("; ".join(answer["problems"]))
    if answer["message"]:
        rank_zero_info(answer["message"])
    chosen = answer["checkpoint"], rendezvous, answer["hosts"], answer["agents"]
    return Beginning(*chosen, answer["finished"], answer["weights"])


def _chosen(
    trainer: Trainer, model: LightningModule, requested: Any, earlier: Path | None
) -> dict[str, Any]:
    """What the first rank chooses for all: ``Beginning``'s entries, and a line to print.

    Args:
        trainer: of the run.
        model: of the run.
        requested: the checkpoint that the user names.
        earlier: the folder of the run that an earlier start of this launch began.

    Raises:
        InputError: the checkpoint does not exist.
    """
    fits = trainer.state.fn == TrainerFn.FITTING
    own = earlier if fits else None
    wanted = _wanted(trainer, model) if requested == LAST else None
    checkpoint, message = starting_point(trainer.default_root_dir, requested, own, wanted)
    finished = ""
    if fits and checkpoint and not urls.kind(str(checkpoint)):
        limits = trainer.max_epochs, trainer.max_steps
        finished = earlier_runs.finished(Path(checkpoint), *limits, stop_of(trainer))
    checkpoint = checkpoint and str(checkpoint)
    if checkpoint and not message:
        what = "goes on from" if fits else "weights:"
        message = f"{what} {urls.shown(checkpoint)}"
    return {
        "checkpoint": checkpoint,
        "message": message,
        "finished": finished,
        "weights": None if own is None else read_record(own).get("weights"),
    }


def _wanted(trainer: Trainer, model: LightningModule) -> dict[str, Any]:
    """What ``run.json`` has to say of the run that ``LAST`` means."""
    fits = trainer.state.fn == TrainerFn.FITTING  # a model may be evaluated on any data
    data = provenance.fingerprint(getattr(trainer, "datamodule", None)) if fits else None
    return earlier_runs.identity(model, data)


def starting_point(
    root: str | Path,
    requested: Any,
    own: Path | None = None,
    wanted: Mapping[str, Any] | None = None,
) -> tuple[Any, str | None]:
    """The checkpoint that a run begins from.

    Args:
        root: the folder that contains the runs.
        requested: the path that the user names, ``LAST`` or None.
        own: the folder of the run of a restarted launch; None for a first start.
        wanted: as in :func:`autotimm.training.earlier_runs.newest_below`.

    Returns:
        The path, or None for a new run; and a line to print if it is not the requested path.
    """
    if own is not None:
        again = f"started again ({read_record(own).get('launch_id')})"
        path = newest(own)
        if path is not None:
            return str(path), f"{again}: goes on from {path}{_while_it_trains(own)}"
        if requested != LAST:
            if requested and resolve_link(requested) != Path(requested):
                # The link leads to this run now, and its record has where it led before.
                requested = read_record(own).get("from") or requested
            begins = f"from {requested}" if requested else "anew"
            return requested, f"{again}: {own} has no checkpoint, begins {begins}"
    if requested != LAST:
        if requested:
            _check_whole(str(requested))
            if not urls.kind(str(requested)) and resolve_link(requested) != Path(requested):
                return str(resolve_link(requested)), None
        return requested, None
    path, others = earlier_runs.newest_below(root, wanted)
    passed = f"; passed over: {', '.join(others)}" if others else ""
    if path is None:
        return None, f"ckpt_path=last: there is no checkpoint below {root} to go on from{passed}"
    return str(path), f"ckpt_path=last: {path}{_while_it_trains(path.parents[1])}{passed}"


def _while_it_trains(run: Path) -> str:
    """What to add to the line of a run that another process still trains; else nothing."""
    known = read_record(run)
    if known.get("status") != "running" or not still_runs(known.get("process")):
        return ""
    pid = known["process"]["pid"]
    return (
        f" (process {pid} still trains this run, and may remove the checkpoint: stop one of both)"
    )


def _check_whole(requested: str) -> None:
    """Raise InputError for what is not there, is no checkpoint, or has changed bytes.

    The readers on all ranks find that too; here all ranks stop together, before the run has a
    folder. For a URL that is one more download, by the first rank.
    """
    path = Path(requested)
    if urls.kind(requested) or not path.exists() or _is_other_file(path):
        read_checkpoint(requested)
    elif path.is_file():
        if damage := damage_of(path):
            raise InputError(f"the checkpoint {path} is damaged ({damage}): give another one")
    elif not ((path / COMPLETE).exists() or (path / zero_files.TAG).is_dir()):
        inside = newest(path)
        what = f"give {inside}" if inside else "and none is in it"
        raise InputError(f"{path} is a folder, but no checkpoint: {what}")


def _is_other_file(path: Path) -> bool:
    """Whether this is a file, but none that torch has written."""
    return path.is_file() and not zipfile.is_zipfile(path)
