"""The start of a run: from new weights, from a requested checkpoint, or where it was stopped.

Invariants: a restarted launch resumes its own run, whatever its flags say and even if only one rank
knows of the restart; all ranks begin from the checkpoint that the first one chose; a new run loads
only the checkpoint that the user names.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from autotimm.checkpoints import zero_files
from autotimm.checkpoints.resume import damage_of, newest
from autotimm.checkpoints.storage import COMPLETE
from autotimm.distributed.launcher import find_launch
from autotimm.distributed.rendezvous import PATIENCE, JointError, Rendezvous, host_name
from autotimm.files import urls
from autotimm.lightning_private import CheckpointConnector
from autotimm.setup.check import compare_reports, rendezvous_of
from autotimm.setup.report import Report
from autotimm.structures import InputError
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.training.run_folder import find_run
from autotimm.training.run_record import order_of, read_record

LAST = "last"
"""The checkpoint path that stands for the newest checkpoint of the newest run."""


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
    """

    checkpoint: Any
    rendezvous: Rendezvous | None
    hosts: list[str]
    agents: list[str]


def begin(trainer: Trainer, requested: Any) -> Beginning:
    """Let the first rank choose the checkpoint to begin from. All ranks call it together.

    Args:
        trainer: of the run.
        requested: the checkpoint that the user names.

    Raises:
        InputError: on all ranks, if the checkpoint does not exist or one of them has failed.
    """
    launch = find_launch()
    fits = trainer.state.fn == TrainerFn.FITTING

    rendezvous = rendezvous_of(trainer) if trainer.world_size > 1 else None
    patience = PATIENCE if rendezvous is None else rendezvous.patience

    def choose(reports: list[Any]) -> dict[str, Any]:
        """The first rank's answer to all ranks."""
        problems = compare_reports(reports, patience)["problems"]
        checkpoint, message = requested, None
        agents = sorted({agent for one in reports if one and (agent := one.get("agent"))})
        if not problems:
            try:
                root, own = trainer.default_root_dir, None
                if launch is not None and fits:
                    own = find_run(root, launch, agents)
                checkpoint, message = starting_point(root, requested, own)
            except (InputError, OSError) as error:  # to raise it on all ranks
                problems = [str(error)]
        hosts = [report and report["host"] for report in reports]
        checkpoint = checkpoint and str(checkpoint)
        if checkpoint and not message:
            what = "goes on from" if fits else "weights:"
            message = f"{what} {urls.shown(checkpoint)}"
        answer = {"problems": problems, "checkpoint": checkpoint, "message": message}
        return answer | {"hosts": hosts, "agents": agents}

    report = Report(host=host_name(), agent=launch.agent if launch else "")
    answer = choose([report]) if rendezvous is None else rendezvous.exchange(report, choose)
    if answer["problems"]:
        raise JointError("; ".join(answer["problems"]))
    if answer["message"]:
        rank_zero_info(answer["message"])
    return Beginning(answer["checkpoint"], rendezvous, answer["hosts"], answer["agents"])


def starting_point(
    root: str | Path, requested: Any, own: Path | None = None
) -> tuple[Any, str | None]:
    """The checkpoint that a run begins from.

    Args:
        root: the folder that contains the runs.
        requested: the path that the user names, ``LAST`` or None.
        own: the folder of the run of a restarted launch; None for a first start.

    Returns:
        The path, or None for a new run; and a line to print if it is not the requested path.
    """
    if own is not None:
        again = f"started again ({read_record(own).get('launch_id')})"
        path = newest(own)
        if path is not None:
            return str(path), f"{again}: goes on from {path}"
        if requested != LAST:
            begins = f"from {requested}" if requested else "anew"
            return requested, f"{again}: {own} has no checkpoint, begins {begins}"
    if requested != LAST:
        if requested and not urls.kind(str(requested)):
            _check_whole(Path(requested))
        return requested, None
    path = newest_below(root)
    if path is None:
        return None, f"ckpt_path=last: there is no checkpoint below {root}"
    return str(path), f"ckpt_path=last: {path}"


def _check_whole(path: Path) -> None:
    """Raise InputError for a folder that is not a checkpoint, and for a file with changed bytes.

    The readers on all ranks find the latter too; here all ranks stop together.
    """
    if path.is_dir() and not ((path / COMPLETE).exists() or (path / zero_files.TAG).is_dir()):
        inside = newest(path)
        what = f"give {inside}" if inside else "and none is in it"
        raise InputError(f"{path} is a folder, but no checkpoint: {what}")
    if path.is_file() and not zipfile.is_zipfile(path):
        read_checkpoint(path)  # a file of another kind is refused before the run has a folder
    elif path.is_file() and (damage := damage_of(path)):
        raise InputError(f"the checkpoint {path} is damaged ({damage}): give another one")


def newest_below(root: str | Path) -> Path | None:
    """The newest whole checkpoint of the newest run below ``root`` that has any; None if none has.

    The newest run is the one of the highest number: no clock counts.
    """
    runs = {path.parents[1] for path in Path(root).glob("**/checkpoints/*.ckpt")}
    found = (newest(run / "checkpoints") for run in sorted(runs, key=order_of, reverse=True))
    return next((path for path in found if path is not None), None)
