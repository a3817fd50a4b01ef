"""Where a run begins: anew, from the checkpoint that was asked for, or where it was stopped.

Invariants: a launch that is started again, be it on the word of one rank, goes on from its own run,
whatever its flags say; all ranks begin from the checkpoint that the first one chose; nothing is
loaded that nobody named.
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
from autotimm.distributed.rendezvous import JointError, Rendezvous, host_name
from autotimm.files import urls
from autotimm.lightning_private import CheckpointConnector
from autotimm.setup.check import compare_reports, rendezvous_of
from autotimm.setup.report import Report
from autotimm.structures import InputError
from autotimm.training.run_folder import find_run
from autotimm.training.run_record import read_record

LAST = "last"
"""As a checkpoint's path: the newest one of the newest run."""


class NamedCheckpoints(CheckpointConnector):
    """Restores the checkpoint that was named and no other, and all that it has."""

    def select(self, ckpt_path: Any, by_lightning: Callable[[], Any]) -> Any:
        if ckpt_path == "hpc":
            raise InputError("ckpt_path='hpc' is not used here: give a path, or 'last'")
        if ckpt_path == "":
            raise InputError("ckpt_path is empty: give a path, or 'last'")
        if ckpt_path == LAST:  # Lightning knows of this trainer's own run only
            return ckpt_path
        try:
            return by_lightning()
        except ValueError as error:
            if ckpt_path != "best":
                raise
            raise InputError(
                "ckpt_path='best' is of a fit of the same trainer, and there was none: give the "
                "path of a run's best.ckpt, or 'last'"
            ) from error

    def restore_optimizers_and_schedulers(self) -> None:
        saved, trainer = self.loaded, self.trainer
        if saved and trainer.training:  # not what a finder puts back
            counts = {"lr_schedulers": len(trainer.lr_scheduler_configs)}
            if trainer.strategy.lightning_restore_optimizer:
                counts["optimizer_states"] = len(trainer.strategy.optimizers)
            for key, count in counts.items():
                # Lightning would restore as many as there are, and begin the others anew.
                if len(saved.get(key, ())) != count:
                    raise InputError(
                        f"the checkpoint to go on from has {len(saved.get(key, ()))} {key}, where "
                        f"this run has {count}: give one that a run of this model saved, or begin "
                        f"a new one from its weights"
                    )
        super().restore_optimizers_and_schedulers()


class Beginning(NamedTuple):
    """What all ranks know before a run begins.

    Attributes:
        checkpoint: to begin from; None to begin anew.
        rendezvous: where the ranks meet; None for one process.
        hosts: the node of every rank.
        agents: the torchrun of every node; none under srun or by hand.
    """

    checkpoint: Any
    rendezvous: Rendezvous | None
    hosts: list[str]
    agents: list[str]


def begin(trainer: Trainer, wanted: Any) -> Beginning:
    """Has the first rank choose the checkpoint to begin from. Called by all ranks at once.

    Args:
        trainer: whose run it is.
        wanted: the checkpoint that was asked for.

    Raises:
        InputError: on all ranks, where there is none, or one of them has failed.
    """
    launch = find_launch()
    fits = trainer.state.fn == TrainerFn.FITTING

    def choose(reports: list[Any]) -> dict[str, Any]:
        """What all ranks are told."""
        problems = compare_reports(reports)["problems"]
        checkpoint, said = wanted, None
        agents = sorted({agent for one in reports if one and (agent := one.get("agent"))})
        if not problems:
            try:
                root, own = trainer.default_root_dir, None
                if launch is not None and fits:
                    own = find_run(root, launch, agents)
                checkpoint, said = starting_point(root, wanted, own)
            except (InputError, OSError) as error:  # for all ranks, not for the first one alone
                problems = [str(error)]
        hosts = [report and report["host"] for report in reports]
        checkpoint = checkpoint and str(checkpoint)
        if checkpoint and not said:
            what = "goes on from" if fits else "weights:"
            said = f"{what} {urls.shown(checkpoint)}"
        told = {"problems": problems, "checkpoint": checkpoint, "said": said}
        return told | {"hosts": hosts, "agents": agents}

    report = Report(host=host_name(), agent=launch.agent if launch else "")
    rendezvous = rendezvous_of(trainer) if trainer.world_size > 1 else None
    told = choose([report]) if rendezvous is None else rendezvous.exchange(report, choose)
    if told["problems"]:
        raise JointError("; ".join(told["problems"]))
    if told["said"]:
        rank_zero_info(told["said"])
    return Beginning(told["checkpoint"], rendezvous, told["hosts"], told["agents"])


def starting_point(
    root: str | Path, wanted: Any, own: Path | None = None
) -> tuple[Any, str | None]:
    """The checkpoint that a run begins from.

    Args:
        root: folder below which the runs lie.
        wanted: the path that was asked for, ``LAST`` or None.
        own: the folder of the run of a launch that is started again.

    Returns:
        Its path, or None to begin anew; and a line to say, if it is not what was asked for.
    """
    if own is not None:
        again = f"started again ({read_record(own).get('launch_id')})"
        found = newest(own)
        if found is not None:
            return str(found), f"{again}: goes on from {found}"
        if wanted != LAST:
            begins = f"from {wanted}" if wanted else "anew"
            return wanted, f"{again}: {own} has no checkpoint, begins {begins}"
    if wanted != LAST:
        if wanted and not urls.kind(str(wanted)):
            _check_whole(Path(wanted))
        return wanted, None
    found = newest_below(root)
    if found is None:
        return None, f"ckpt_path=last: there is no checkpoint below {root}"
    return str(found), f"ckpt_path=last: {found}"


def _check_whole(path: Path) -> None:
    """Raises InputError for a folder that is no checkpoint, and a file whose bytes have changed,
    which torch would load. A file that is none at all is told of where it is read."""
    if path.is_dir() and not ((path / COMPLETE).exists() or (path / zero_files.TAG).is_dir()):
        found = newest(path)
        what = f"give {found}" if found else "and none is in it"
        raise InputError(f"{path} is a folder, but no checkpoint: {what}")
    if path.is_file() and zipfile.is_zipfile(path) and (damage := damage_of(path)):
        raise InputError(f"the checkpoint {path} is damaged ({damage}): give another one")


def newest_below(root: str | Path) -> Path | None:
    """The newest whole checkpoint of the run below ``root`` that saved last; None if none has."""
    paths = sorted(Path(root).glob("**/checkpoints/*.ckpt"), key=lambda path: path.lstat().st_mtime)
    folders = dict.fromkeys(path.parent for path in reversed(paths))
    return next((path for folder in folders if (path := newest(folder)) is not None), None)
