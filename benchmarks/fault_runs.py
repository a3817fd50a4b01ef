"""Runs for ``faults.py``: a model of one number, its processes, and what its checkpoints hold.

A life is one start of a run, as one process or as ranks of torchrun's agent. Processes are forks of
this one, which has imported everything and started no thread: a start takes a second or two.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from autotimm import AutoTrainer, InstanceSegmentationDataModule
from autotimm.cli.main import _exit_code_and_line
from autotimm.outputs.loggers import make_loggers
from autotimm.training.preemption import Stopped

SAMPLE = Path(__file__).parents[1] / "shards/sample"
STEPS = "steps.log"
NOTHING: Callable[[], object] = lambda: None  # noqa: E731

fork = multiprocessing.get_context("fork")


class Model(LightningModule):
    """Learns one number; its losses depend on images, random numbers, momentum and schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = (self.weight - batch["image"].mean() - torch.rand(())) ** 2
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Tell(Callback):
    """Adds a line to ``steps.log`` for each step: rank, step, image ids, the exact loss."""

    def __init__(self, root: Path, pause: float = 0.0) -> None:
        self.root, self.pause = root, pause

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ids = ",".join(map(str, batch["image_id"].tolist()))
        loss = outputs["loss"].item().hex()
        line = f"{trainer.global_rank} {trainer.global_step} {ids} {loss}\n"
        with (self.root / STEPS).open("ab", buffering=0) as file:
            file.write(line.encode())
        time.sleep(self.pause)


def train(
    root: Path, log: Path, pause: float = 0.0, data: str | Path = SAMPLE, **options: Any
) -> None:
    """Trains in this process: 32 optimizer steps for two ranks, with a checkpoint at each."""
    workers = options.pop("num_workers", 0)
    extra = options.pop("data_options", {})
    if version := options.pop("version", None):  # goes on in its own folder
        options["logger"] = make_loggers("csv", root, version)
    given: dict[str, Any] = {"image_size": 64, "batch_size": 1, "num_workers": workers} | extra
    module = InstanceSegmentationDataModule(data, **given)
    torch.manual_seed(0)
    ckpt_path, model = options.pop("ckpt_path", "last"), options.pop("model", Model)
    callbacks = [Tell(log, pause), *options.pop("callbacks", [])]
    defaults: dict[str, Any] = {
        "max_epochs": 8,
        "save_every_n_steps": 1,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
        "logger": "csv",
        "timeout_minutes": 1,
    }
    trainer = AutoTrainer(
        accelerator="cpu",
        default_root_dir=root,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **(defaults | options),
    )
    trainer.fit(model(), datamodule=module, ckpt_path=ckpt_path)


def _guarded(run: Callable[[], None]) -> int:
    """What the command line makes of an error: an exit code, and one line on stderr."""
    try:
        run()
    except Stopped as stopped:
        return int(stopped.code or 0)
    except Exception as error:
        known = _exit_code_and_line(error, "fit")
        if known is None:
            raise
        print(f"autotimm fit: {known[1]}", file=sys.stderr, flush=True)
        return known[0]
    return 0


def _process(out: Path, before: Callable[[], object], run: Callable[[], None]) -> None:
    os.setpgid(0, 0)
    stream = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]
    warnings.simplefilter("always")
    before()
    code = _guarded(run)
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            file.flush()
    os._exit(code)


@dataclass
class Life:
    """A started run.

    Attributes:
        process: of the only rank, or torchrun's agent; it leads a process group.
        log: the folder of ``steps.log``.
        out: the file with what it prints.
        begin: the bytes that ``steps.log`` had at its start.
    """

    process: Any
    log: Path
    out: Path
    begin: int

    def steps(self, rank: int = 0) -> list[int]:
        """The optimizer steps that a rank has taken in this life."""
        return [step for who, step, _ in told(self.log, self.begin) if who == rank]

    def said(self) -> str:
        return self.out.read_text(errors="replace")

    def line(self) -> str:
        """The line of its error."""
        lines = [line for line in self.said().splitlines() if line.startswith("autotimm fit: ")]
        return lines[-1] if lines else ""

    def wait(self, timeout: float = 240) -> int | None:
        """Its exit code; None if it was still there after the timeout, and was killed."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.kill()
            return None
        return self.process.exitcode

    def kill(self) -> None:
        """SIGKILL to the launcher and all ranks at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.join()

    def until(self, steps: int, timeout: float = 120) -> bool:
        """Waits until the first rank has taken so many steps."""
        end = time.monotonic() + timeout
        while self.process.is_alive() and time.monotonic() < end:
            if len(self.steps()) >= steps:
                return True
            time.sleep(0.01)
        return len(self.steps()) >= steps


def told(root: Path, begin: int = 0) -> list[tuple[int, int, str]]:
    """Rank, step, and what else a step has told, for each whole line of ``steps.log``."""
    path = root / STEPS
    if not path.exists():
        return []
    text = path.read_bytes()[begin:].decode()
    lines = [line.split(" ", 2) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [(int(rank), int(step), rest) for rank, step, rest in lines]


def start(
    root: Path,
    ranks: int = 1,
    before: Callable[[], object] = NOTHING,
    restarts: int = 0,
    log: Path | None = None,
    **more: Any,
) -> Life:
    """Starts a life: one process, or torchrun's agent with its ranks.

    Args:
        root: the folder of the runs.
        ranks: the number of processes; above 1, torchrun's agent starts them.
        before: called in the process, and in every rank.
        restarts: how often the agent may start the ranks again.
        log: the folder for what it prints and for ``steps.log``; by default ``root``.
        **more: of :func:`train`.
    """
    root.mkdir(parents=True, exist_ok=True)
    log = log or root
    out = log / f"out-{time.monotonic_ns()}.log"
    begin = (log / STEPS).stat().st_size if (log / STEPS).exists() else 0

    def alone() -> None:
        train(root, log, **more)

    def rank() -> None:
        before()
        code = _guarded(alone)
        if code:
            sys.stderr.flush()
            os._exit(code)

    def agent() -> None:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            run_id=f"faults-{time.monotonic_ns()}",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            max_restarts=restarts,
            monitor_interval=0.1,
            start_method="fork",
            local_addr="127.0.0.1",
        )
        elastic_launch(config, rank)()

    one = (out, before, alone) if ranks == 1 else (out, NOTHING, agent)
    process = fork.Process(target=_process, args=one)
    process.start()
    return Life(process, log, out, begin)


# ------------------------------------------------------------------ what is on the disk


def checkpoints(root: Path) -> list[tuple[int, Path]]:
    """The whole checkpoints below a folder, by step; zipfile alone decides what is whole."""
    found = []
    for path in root.glob("**/checkpoints/step_*.ckpt"):
        with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            if archive.testzip() is None:
                found.append((int(path.stem.removeprefix("step_")), path))
    return sorted(found)


def last_step(root: Path) -> int:
    return max((step for step, _ in checkpoints(root)), default=0)


def final(root: Path) -> dict[str, Any]:
    """The state of the newest checkpoint that must be equal bit for bit."""
    content = torch.load(checkpoints(root)[-1][1], weights_only=True)
    return {key: content[key] for key in ("state_dict", "optimizer_states", "global_step")}


def same(one: Any, two: Any) -> bool:
    """Whether two states are equal bit for bit."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else bool(one == two)


@contextlib.contextmanager
def room(folder: Path, name: str) -> Iterator[Path]:
    """A folder for one trial, removed afterwards."""
    path = folder / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
