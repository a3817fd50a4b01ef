"""The first step of a fit, in which torch.compile makes the code, and how long it takes.

``run.json`` keeps the seconds as ``first_step``. A later run in the same folder of runs shows them
if the compiler has the same to do: the same network, canvas, batch, precision, device and
torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from autotimm.tasks.structure import LOSSES, STRUCTURE
from autotimm.training.newest_link import is_link_to_newest
from autotimm.training.progress_line import clock
from autotimm.training.run_record import RECORD, RunRecord, order_of, read_record

FIRST_STEP = "first_step"
_DECIDING = {
    ("settings", "model"): (*STRUCTURE, *LOSSES, "num_classes", "mask_rois", "compile_kwargs"),
    ("settings", "data"): ("image_size", "batch_size"),
    ("settings", "trainer"): ("precision", "strategy"),
    ("machine",): ("host", "device"),
    ("versions",): ("torch",),
}
"""The entries of ``run.json`` that say what the compiler has to do."""


class FirstStep(Callback):
    """Measures the first step of a fit whose network is compiled, and prints how long it took."""

    def __init__(self) -> None:
        self._compiles = False
        self._before: tuple[float, Path] | None = None
        self._since: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._compiles = bool(pl_module.hparams.get("compile_model"))
        self._since = None
        self._before, record = None, _record_of(trainer)
        # The record knows the folder: trainer.log_dir would wait for the other ranks.
        if self._compiles and trainer.is_global_zero and record is not None:
            self._before = last_time(Path(trainer.default_root_dir), record.folder)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._compiles or self._since is not None:
            return
        self._since = time.monotonic()
        bar: Any = trainer.progress_bar_callback
        if trainer.is_global_zero and (bar is None or not getattr(bar, "is_shown", False)):
            before = self._before
            took = f" (it took {clock(before[0])} last time, in {before[1]})" if before else ""
            print(f"compiling the first step{took}", flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._compiles or self._since is None:
            return
        seconds, self._compiles = time.monotonic() - self._since, False
        if trainer.is_global_zero:
            print(f"the first step was compiled and took {clock(seconds)}", flush=True)
        record = _record_of(trainer)
        if record is not None:
            record.note(trainer, FIRST_STEP, {"seconds": round(seconds, 1)})

    def waiting(self) -> list[str]:
        """Texts to show while the first step is compiled, the most important first; else none."""
        if not self._compiles or self._since is None:
            return []
        parts = [f"compiling the first step {clock(time.monotonic() - self._since)}"]
        return parts + ([f"{clock(self._before[0])} last time"] if self._before else [])


def first_step_of(trainer: Any) -> FirstStep | None:
    """The trainer's FirstStep callback, if it has one."""
    return next((one for one in trainer.callbacks if isinstance(one, FirstStep)), None)


def last_time(root: Path, own: Path) -> tuple[float, Path] | None:
    """The seconds of the first step of the newest run that compiled the same, and its folder.

    Args:
        root: the folder of the runs.
        own: the folder of this run; an earlier start of it counts before all others.
    """
    wanted = _deciding(read_record(own))
    runs = {path.parent for path in root.glob(f"*/{RECORD}") if not is_link_to_newest(root, path)}
    others = sorted(runs - {own}, key=order_of, reverse=True)
    for run in (own, *others):
        record = read_record(run)
        first = record.get(FIRST_STEP)
        seconds = first.get("seconds") if isinstance(first, dict) else None
        if isinstance(seconds, int | float) and _deciding(record) == wanted:
            return float(seconds), run
    return None


def _deciding(record: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    found = {}
    for path, names in _DECIDING.items():
        part: Any = record
        for key in path:
            part = part.get(key) if isinstance(part, dict) else None
        for name in names:
            found[(*path, name)] = part.get(name) if isinstance(part, dict) else None
    return found


def _record_of(trainer: Any) -> RunRecord | None:
    return next((one for one in trainer.callbacks if isinstance(one, RunRecord)), None)
