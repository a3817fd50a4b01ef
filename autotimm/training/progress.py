"""The progress bar: one line, which never makes a GPU wait."""

from __future__ import annotations

import logging
import math
import sys
import time
from functools import partial
from importlib.util import find_spec
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as LightningBar
from rich import get_console
from rich.console import Console
from rich.live import Live
from rich.text import Text
from torch import Tensor

from autotimm.training.first_step import FirstStep, first_step_of
from autotimm.training.progress_line import can_redraw, epochs_of, line, steps_left
from autotimm.training.throughput import gpu_memory, is_logged, throughput_of


class ProgressBar(LightningBar):
    """One line of a terminal, whatever its width, or nothing if the output goes to a file.

    It shows the epoch, counted from 1, and of how many; the batches, the remaining time, the loss,
    after a validation its metrics, images per second, the share of time spent waiting for data, GPU
    memory and the parts of the loss: as much of this as fits, in this order. While the first step
    is compiled it says so, and how long that took last time.

    During training on a GPU the numbers are from the last logged step (``log_every_n_steps``). To
    read a number, the host waits until the device has computed it, and the device then waits for
    new work from the host. At a logged step this happens anyway.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._shown: dict[str, Any] | None = None
        self._live: Live | None = None
        self._streams: tuple[Any, Any] = (None, None)  # stderr without the line, and with it
        self._title, self._done, self._total = "", 0, math.inf
        self._epoch = ("", math.inf)  # title and batches of the epoch that runs
        self._pace = ""
        self._since, self._from = 0.0, 0  # when and with which batch counting began
        self._first_step: FirstStep | None = None

    # ------------------------------------------------------------ what Lightning asks of a bar

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    @property
    def is_shown(self) -> bool:
        """Whether the line is on the screen."""
        return self._live is not None

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._live is None:
            super().print(*args, **kwargs)
        else:
            self._live.console.print(*args, markup=False, highlight=False, soft_wrap=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not _is_visible():
            self.disable()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close()

    # ------------------------------------------------------------ training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_step = first_step_of(trainer)
        # Lightning calls no other hook in an epoch that is resumed.
        self._begin_epoch(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_epoch(trainer, 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._enabled:
            self.get_metrics(trainer, pl_module)
            self._show(*self._epoch, batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shown = None  # to show the result of the validation
        # All ranks read them, even without a bar, because Lightning may reduce them over ranks.
        _ = trainer.progress_bar_metrics
        if self._enabled:
            self.get_metrics(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()  # what is printed at the end of a fit comes below the line

    def _begin_epoch(self, trainer: Trainer, begun: int) -> None:
        """Count the batches of an epoch, of which ``begun`` were read before a resume."""
        batches = float(trainer.num_training_batches)
        last = epochs_of(trainer, batches - begun)
        title = f"epoch {trainer.current_epoch + 1}" + (f" of {last}" if last else "")
        end = begun + steps_left(trainer) * trainer.accumulate_grad_batches
        self._epoch = (title, min(batches, end))
        self._since, self._from = time.monotonic(), begun
        self._show(*self._epoch, begun)

    # ------------------------------------------------------------ validation, test and prediction

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        name, batches = "validation", trainer.num_val_batches
        if trainer.sanity_checking:
            name, batches = "check of the validation", trainer.num_sanity_val_batches
        elif trainer.state.fn == "fit":
            name = f"{self._epoch[0]}, validation"
        self._count(name, batch_idx, dataloader_idx, batches)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reset_dataloader_idx_tracker()
        if self._enabled and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._shown = None
            self.get_metrics(trainer, pl_module)
            done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            self._since, self._from = time.monotonic(), done
            self._show(*self._epoch, done)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count("test", batch_idx, dataloader_idx, trainer.num_test_batches)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reset_dataloader_idx_tracker()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count("predict", batch_idx, dataloader_idx, trainer.num_predict_batches)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reset_dataloader_idx_tracker()

    def _count(self, name: str, batch_idx: int, loader: int, totals: Any) -> None:
        """Show the batches of one of several loaders; ``totals`` has the number of each."""
        if not self._enabled:
            return
        if self.has_dataloader_changed(loader):
            self._since, self._from = time.monotonic(), batch_idx + 1  # this batch is over
        total = totals[loader] if isinstance(totals, list) else totals
        self._show(name, float(total), batch_idx + 1)

    # ------------------------------------------------------------ numbers

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        due = self._shown is None or is_logged(trainer)
        if due or not (trainer.training and _waits(pl_module)):
            self._shown = self._read(trainer, pl_module)
        assert self._shown is not None
        return self._shown

    def _read(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        found: dict[str, Any] = super().get_metrics(trainer, pl_module)
        chosen = {k: float(v) if isinstance(v, Tensor) else v for k, v in found.items()}
        chosen.pop("v_num", None)  # a line at the end names the run's folder
        shown: dict[str, Any] = {}
        speed = throughput_of(trainer)
        left = speed.remaining(trainer) if speed and trainer.training else None
        if left is not None:
            shown["ETA"] = str(left)
        shown |= {name.removeprefix("train/"): value for name, value in chosen.items()}
        if speed and speed.recent:
            shown["images/s"] = f"{speed.recent[0]:.4g}"
            shown["data wait"] = f"{speed.recent[1]:.0%}"
        memory = gpu_memory(pl_module)
        if memory is not None:
            shown["memory"] = f"{memory:.1f} GiB"
        for name, value in trainer.callback_metrics.items():
            if name.startswith("train/") and name.endswith("_loss"):
                shown[name.removeprefix("train/").removesuffix("_loss")] = float(value)
        return shown

    # ------------------------------------------------------------ the line

    def _show(self, title: str, total: float, done: int) -> None:
        """Show this from now on; the line is drawn again four times a second."""
        self._title, self._total, self._done = title, total, done
        counted = done - self._from
        pace = counted / max(time.monotonic() - self._since, 1e-9)
        self._pace = f"{pace:.3g} it/s" if counted > 0 else ""
        if self._enabled and self._live is None:
            # A console of its own: that of other parts of the program may be in use.
            console = Console()
            render = partial(self._render, console)
            self._live = Live(console=console, get_renderable=render, refresh_per_second=4)
            before = sys.stderr
            self._live.start()
            self._streams = (before, sys.stderr)  # rich writes above the line what the second gets
            _redirect_messages(*self._streams)

    def _close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()
            _redirect_messages(*reversed(self._streams))

    def _render(self, console: Console) -> Text:
        marks = ("#", "-") if console.options.ascii_only else ("━", "━")
        waiting = self._first_step.waiting() if self._first_step else []
        parts = waiting or self._parts()
        return line(
            console.width, self._title, self._done, self._total, parts, marks, bar=not waiting
        )

    def _parts(self) -> list[str]:
        shown = (self._shown or {}) if self._title == self._epoch[0] else {}
        parts = [_formatted(name, value) for name, value in shown.items()]
        return [*parts, self._pace] if self._pace and "images/s" not in shown else parts


def _redirect_messages(here: Any, there: Any) -> None:
    """Have Lightning's messages written to ``there``; its logger keeps the first stderr it sees."""
    for handler in logging.getLogger("lightning.pytorch").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is here:
            handler.setStream(there)


def _formatted(name: str, value: Any) -> str:
    """Formats a metric for the line: its name and its value."""
    if name == "images/s":
        return f"{value} {name}"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{name.removeprefix('val/')} {text}"


def _is_visible() -> bool:
    """Whether the output shows the line. In a file, it would only repeat ``EpochLines``."""
    # In a notebook rich draws it by ipywidgets, and without them warns at every frame.
    return can_redraw() or (get_console().is_jupyter and find_spec("ipywidgets") is not None)


def _waits(pl_module: LightningModule) -> bool:
    return pl_module.device.type != "cpu"
