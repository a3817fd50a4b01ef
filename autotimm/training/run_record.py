"""``run.json``: what a run is, where it stands and how it ended, for scripts to read.

    status       "running", "finished", "preempted" or "failed"
    stage        "fit", "validate", "test" or "predict"
    step, epoch, total_steps, max_epochs
    metrics      the last value of each, by name; null for what is no number
    best, last   checkpoints: path, and of the best one its metric and value
    error        of a failed run, one line
    started, updated    UTC, ISO 8601
    from         the checkpoint that the latest start began from; null for none
    starts       how often training was started: again where it was preempted or restarted
    launch_id    of SLURM's job, which finds its run by it when started again, or of torchrun
    agents, worker       processes: the torchruns of all nodes, and what the first one started
    command, versions, environment, git, machine, settings      of the latest start
    logger_ids   under which W&B and MLflow know the run

Invariants: the file is replaced whole, so a reader never sees half of it; a disk that does not take
it ends no run. A status of "running" that was not updated for long is that of a run that was
killed. The first rank alone writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from autotimm.checkpoints.callback import Checkpoints
from autotimm.distributed.launcher import find_launch
from autotimm.files import urls
from autotimm.files.atomic import whole_file
from autotimm.outputs import provenance
from autotimm.outputs.loggers import go_on, one_line, run_folder, run_ids
from autotimm.training.preemption import Stopped
from autotimm.training.throughput import is_logged

RECORD = "run.json"
SECONDS = 10.0
"""Between two updates in training, at least."""


def read_record(folder: Path) -> dict[str, Any]:
    """What ``run.json`` in ``folder`` says; empty where there is none that can be read."""
    try:
        content = orjson.loads((folder / RECORD).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def write_record(folder: Path, content: dict[str, Any]) -> None:
    """Replaces ``run.json`` in ``folder``, which is made; OSError where that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / RECORD) as file:
        file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


class RunRecord(Callback):
    """Keeps ``run.json`` in the run's folder."""

    def __init__(self) -> None:
        self._folder = Path()
        self._content: dict[str, Any] = {}
        self._written = 0.0
        self._warned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        before, launch = read_record(self._folder), find_launch()
        self._content = before | {
            "status": "running",
            "stage": stage,
            "error": None,
            "from": urls.all_shown(getattr(trainer, "begun_from", None)),
            "started": before.get("started", _now()),
            "starts": before.get("starts", 0) + (stage == "fit"),
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
        if self._content:
            total = trainer.estimated_stepping_batches
            self._content["total_steps"] = total if math.isfinite(total) and total >= 0 else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Metrics lie on the device; at a step that is logged they are waited for anyway.
        if is_logged(trainer) and time.monotonic() - self._written >= SECONDS:
            self._write(trainer, trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # By all ranks: reading may be what has Lightning reduce a value over them.
        self._write(trainer, trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write(trainer, trainer.callback_metrics)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._content:
            self._content["status"] = "finished"
        self._write(trainer, trainer.callback_metrics)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        stopped = isinstance(exception, Stopped)
        status, error = ("preempted", None) if stopped else ("failed", one_line(exception))
        if self._content:  # else there is no folder yet
            self._content |= {"status": status, "error": error}
        self._write(trainer)  # a device that has failed gives no metrics any more

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
            write_record(self._folder, self._content)
        except OSError as error:
            if not self._warned:
                self._warned = True
                path = self._folder / RECORD
                rank_zero_warn(f"{path} cannot be written, and the run goes on ({one_line(error)})")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _progress(trainer: Trainer) -> dict[str, Any]:
    """Where a run stands."""
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
                "value": float(saver.best_model_score),
            }
    return content
