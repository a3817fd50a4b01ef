"""``run.json``: the origin, progress and outcome of a run, for scripts to read.

    status       "running", "finished", "preempted", "failed" or "killed"
    stage        "fit", "validate", "test" or "predict"
    step, epoch, total_steps, max_epochs
    metrics      the last value of each, by name; null if it is not finite
    best, last   checkpoints: the path, and for the best one its metric, mode and value
    error        of a failed run, one line
    started, updated    UTC, ISO 8601
    data         a hash of the samples to train on; null if their source has none
    number       of the run, higher than those of the runs before it in ``default_root_dir``
    from         the checkpoint that the latest start began from; null for none
    continues    the checkpoint of another run that this run goes on from; null for none
    weights      what a new run's weights were taken from (``--weights``); null for nothing
    starts       the number of starts of the training, with those after preemptions and crashes
    launch_id    of the SLURM job, which finds its run by it after a restart, or of torchrun
    process      the first rank's: host, boot of the machine, pid, and the ticks of its start
    agents, worker       the torchrun processes of all nodes, and the first process they started
    command, versions, environment, git, machine, settings      of the latest start
    logger_ids   the ids of the run at W&B and MLflow
    first_step   of the latest start that compiled: the seconds that its first step took

Invariants: the file is replaced whole, so a reader never sees half of it; a failure to write it
does not end the run; only the first rank writes it. A run that was killed cannot say so: the next
reader on its machine finds its process gone, and the next run there writes it into the file. On
another machine, a file that says "running" and is old is that of a killed run.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from autotimm.checkpoints.callback import Checkpoints
from autotimm.distributed.launcher import find_launch
from autotimm.distributed.parent import identity, is_gone
from autotimm.files.atomic import whole_file
from autotimm.outputs import provenance
from autotimm.outputs.loggers import go_on, one_line, run_folder, run_ids
from autotimm.redaction import redacted
from autotimm.training.newest_link import is_link_to_newest, link_newest
from autotimm.training.next_commands import after_fit
from autotimm.training.preemption import Stopped
from autotimm.training.throughput import is_logged

RECORD = "run.json"
_KILLED = "ended without a word: killed, or the machine was switched off"
_KINDS = {"starts": int, "number": int, "started": str, "agents": list, "logger_ids": dict}
SECONDS = 10.0
"""The minimum time between two updates during training."""


def read_record(folder: Path) -> dict[str, Any]:
    """The content of ``run.json`` in ``folder``; empty if there is none or it cannot be read.

    Entries that a resumed run reads are left out if their type is wrong.
    """
    try:
        content = orjson.loads((folder / RECORD).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    if not isinstance(content, dict):
        return {}
    for key, kind in _KINDS.items():
        if not isinstance(content.get(key, kind()), kind):
            del content[key]
    if content.get("status") == "running" and is_gone(content.get("process")):
        content |= {"status": "killed", "error": _KILLED}
    return content


def write_record(folder: Path, content: dict[str, Any]) -> None:
    """Replace ``run.json`` in ``folder``, without secrets, and create the folder if necessary.

    Raises:
        OSError: the file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / RECORD) as file:
        file.write(
            orjson.dumps(redacted(content), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        )


def order_of(folder: Path) -> tuple[int, int, int, list[int], str]:
    """The place of a run among those of the same root: the greatest is the newest.

    It is the run's number, which follows from the runs that were there when it began, so that it
    does not depend on clocks. For a run without one it is the first number in the folder's name.
    A copy of a run's folder has the number of the run: the one with more steps is newer, and of
    equal ones that with the shorter name, so that a run does not resume in a backup of its folder.
    """
    in_name = [int(digits) for digits in re.findall(r"\d+", folder.name)]
    number = read_record(folder).get("number")
    if not isinstance(number, int):
        number = next(iter(in_name), -1)
    saved = (path.name for path in folder.glob("checkpoints/step_*.ckpt"))
    steps = [int(found[1]) for name in saved if (found := re.fullmatch(r"step_(\d+)\.ckpt", name))]
    return number, max(steps, default=-1), -len(folder.name), in_name, folder.name


def next_number(root: Path, folder: Path) -> int:
    """The number for a new run in ``folder``: its name's, or a higher one if a run has that."""
    patterns = ("*", "*/*")  # loggers may put runs into a folder of their name
    found = {one for pattern in patterns for one in root.glob(pattern) if _is_run(one)}
    others = {one for one in found if not is_link_to_newest(root, one)} - {folder}
    highest = max((order_of(one)[0] for one in others), default=-1)
    return max(order_of(folder)[0], highest + 1)


def _is_run(folder: Path) -> bool:
    return (folder / RECORD).exists() or (folder / "checkpoints").is_dir()


class RunRecord(Callback):
    """Writes ``run.json`` into the run's folder and updates it.

    Attributes:
        folder: the run's folder, known from the set-up on.
    """

    def __init__(self) -> None:
        self.folder = Path()
        self._content: dict[str, Any] = {}
        self._written = 0.0
        self._warned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        _mark_killed(self.folder.parent)
        before, launch = read_record(self.folder), find_launch()
        root = Path(trainer.default_root_dir)
        fits = stage == "fit"
        datamodule = getattr(trainer, "datamodule", None)
        weights = getattr(trainer, "start_weights", None)
        begun_from = getattr(trainer, "begun_from", None)
        other = _of_another_run(begun_from, self.folder) if fits else None
        self._content = before | {
            "status": "running",
            "stage": stage,
            "error": None,
            "data": provenance.fingerprint(datamodule) if fits else before.get("data"),
            "from": begun_from,
            "continues": other or before.get("continues"),
            "weights": weights and redacted(weights.source),
            "started": before.get("started", _now()),
            "number": before.get("number", next_number(root, self.folder)),
            "starts": before.get("starts", 0) + fits,
            "process": identity(),
            "launch_id": launch and launch.id,
            "agents": getattr(trainer, "agents", []),
            "worker": launch and launch.worker,
            "command": provenance.command_line(),
            "versions": provenance.versions(),
            "environment": provenance.environment(),
            "git": provenance.git_states(),
            "machine": provenance.machine(trainer),
            "settings": provenance.settings(trainer, pl_module),
            "logger_ids": before.get("logger_ids", {}) | run_ids(trainer.loggers),
        }
        self._write(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        go_on(trainer.loggers, trainer.global_step)
        if trainer.is_global_zero:  # no earlier: the checkpoint to load may be behind the link
            link_newest(trainer.default_root_dir, self.folder)
        if self._content:
            total = trainer.estimated_stepping_batches
            self._content["total_steps"] = total if math.isfinite(total) and total >= 0 else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Metrics are on the device, and at a logged step the host waits for them anyway.
        if is_logged(trainer) and time.monotonic() - self._written >= SECONDS:
            self._write(trainer, trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # All ranks read the metrics, because Lightning may reduce them over ranks.
        self._write(trainer, trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write(trainer, trainer.callback_metrics)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._content:
            self._write(trainer)
            checkpoint = (self._content.get("best") or {}).get("checkpoint")
            data = provenance.location(getattr(trainer, "datamodule", None))
            checkpoint = checkpoint or self._content.get("last")
            rank_zero_info(after_fit(self.folder, checkpoint, data))

    def note(self, trainer: Trainer, name: str, value: Any) -> None:
        """Write an entry of another part of the program into the record."""
        if self._content:
            self._content[name] = value
            self._write(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._content:
            self._content["status"] = "finished"
        self._write(trainer, trainer.callback_metrics)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        stopped = isinstance(exception, Stopped)
        status, error = ("preempted", None) if stopped else ("failed", one_line(exception))
        if self._content:  # otherwise there is no folder yet
            self._content |= {"status": status, "error": error}
        self._write(trainer)  # without metrics, which a failed device cannot return

    def _write(self, trainer: Trainer, metrics: Mapping[str, Any] | None = None) -> None:
        if not trainer.is_global_zero or not self._content:
            return
        self._content |= {"updated": _now(), **_progress(trainer)}
        if metrics is not None:
            self._content["metrics"] = {
                name: number if math.isfinite(number := float(value)) else None
                for name, value in sorted(metrics.items())
            }
        self._written = time.monotonic()
        try:
            write_record(self.folder, self._content)
        except OSError as error:
            if not self._warned:
                self._warned = True
                path = self.folder / RECORD
                rank_zero_warn(f"{path} cannot be written, and the run goes on ({one_line(error)})")


def _mark_killed(root: Path) -> None:
    """Writes into the records of runs beside this one that they were killed, if they were."""
    for path in root.glob(f"*/{RECORD}"):
        if is_link_to_newest(root, path):
            continue  # it may lead to another run when the record is written
        content = read_record(path.parent)
        if content.get("status") == "killed":
            with contextlib.suppress(OSError):  # another user's run
                write_record(path.parent, content)


def _of_another_run(checkpoint: str | None, folder: Path) -> str | None:
    """A checkpoint, if the run in ``folder`` goes on from it and has not saved it; else None."""
    if checkpoint is None or Path(checkpoint).parent.parent.resolve() == folder.resolve():
        return None
    return checkpoint


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _progress(trainer: Trainer) -> dict[str, Any]:
    """The progress of a fit, and its checkpoints."""
    if trainer.state.fn != "fit":
        return {}
    content: dict[str, Any] = {
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "max_epochs": trainer.max_epochs,
    }
    for saver in trainer.checkpoint_callbacks:
        if not isinstance(saver, ModelCheckpoint | Checkpoints):
            continue
        if saver.last_model_path:
            content["last"] = saver.last_model_path
        if saver.monitor and saver.best_model_path and saver.best_model_score is not None:
            content["best"] = {
                "checkpoint": saver.best_model_path,
                "metric": saver.monitor,
                "mode": saver.mode,
                "value": float(saver.best_model_score),
            }
    return content
