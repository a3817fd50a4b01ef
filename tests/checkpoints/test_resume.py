"""Stopped and resumed runs with the real model, and runs with damaged data, on two ranks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger  # noqa: F401  for the processes

from autotimm import AutoTrainer, InstanceSegmentationDataModule, InstanceSegmentor
from autotimm.checkpoints.resume import newest

IMAGES = 13
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Record(Callback):
    """Records image ids, canvas and exact loss of every step."""

    def __init__(self) -> None:
        self.steps: list[tuple[list[int], tuple[int, int], float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        canvas = tuple(batch["image"].shape[2:])
        self.steps.append((batch["image_id"].tolist(), canvas, outputs["loss"].item()))


def fit(folder: Path, out: Path, **options: Any) -> Record:
    keys = ("aspect_buckets", "num_workers", "batch_size", "image_size")
    data = {key: options.pop(key) for key in keys if key in options}
    ckpt_path = options.pop("ckpt_path", None)
    module = InstanceSegmentationDataModule(
        folder, **({"image_size": 96, "batch_size": 2, "num_workers": 2} | data)
    )
    torch.manual_seed(1)
    model = InstanceSegmentor(
        "test_resnet",
        pretrained=False,
        fpn_channels=16,
        head_convs=1,
        mask_size=12,
        mask_rois=2,  # fewer than candidates, so the choice is random
        num_classes=4,
        compile_model=False,
    )
    record = Record()
    trainer = AutoTrainer(
        accelerator="cpu",
        default_root_dir=out,
        callbacks=[record, *options.pop("callbacks", [])],
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        **({"max_epochs": 2, "logger": False} | options),
    )
    trainer.fit(model, datamodule=module, ckpt_path=ckpt_path)
    return record


@pytest.mark.slow
@pytest.mark.parametrize(("aspect_buckets", "stops"), [(False, (1, 7, 10)), (True, (4, 9))])
def test_stopped_anywhere_the_losses_are_bit_for_bit_the_same(
    aspect_buckets: bool, stops: tuple[int, ...], mixed_shards: Path, tmp_path: Path
) -> None:
    options = {"aspect_buckets": aspect_buckets}
    # At every save, two workers have prepared batches ahead.
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    truth = fit(mixed_shards, tmp_path, callbacks=[saving], **options).steps
    assert len(truth) == 14
    canvases = {(96, 96), (64, 96), (96, 64)} if aspect_buckets else {(96, 96)}
    assert {canvas for _, canvas, _ in truth} == canvases
    for stop in stops:
        checkpoint = tmp_path / f"step={stop}.ckpt"
        rest = fit(
            mixed_shards, tmp_path, ckpt_path=checkpoint, num_workers=2 * (stop % 2), **options
        )
        assert rest.steps == truth[stop:], stop


class Tell(Callback):
    """Prints the exact loss of each step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        print("step", trainer.global_step, outputs["loss"].item().hex(), flush=True)


def process(folder: Path, root: Path, **options: Any) -> forked.Program:
    """A process that trains and prints each step. It resumes from the newest whole checkpoint in
    the same folder."""
    found = newest(root / "run")
    options |= {"image_size": 64, "ckpt_path": str(found) if found else None}
    logger = "CSVLogger(sys.argv[2], name='', version='run')"
    code = f"fit(*map(Path, sys.argv[1:]), callbacks=[Tell()], logger={logger}, **{options})"
    here = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return forked.start(
        *("-c", f"import sys; from test_resume import *; {code}", folder, root),
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(here)},
    )


def printed(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The numbers and losses of the steps that a process prints."""
    for line in lines:
        if line.startswith("step "):
            _, step, loss = line.split()
            yield int(step), loss


@pytest.mark.slow
def test_killed_at_any_moment_no_step_is_lost_or_changed(
    mixed_shards: Path, tmp_path: Path
) -> None:
    """With kill -9 and a save at every step, which takes most of a step's time."""
    whole = process(mixed_shards, tmp_path / "truth")
    truth = dict(printed(whole.lines()))
    assert whole.wait().returncode == 0
    assert [*truth] == [*range(1, 15)]
    saving = {"save_every_n_steps": 1, "keep_last": 1, "ema_decay": 0.9}
    next_step = 1
    for kills in range(30):
        running = process(mixed_shards, tmp_path, **saving)
        steps: list[int] = []
        for step, loss in printed(running.lines()):
            assert truth[step] == loss
            steps.append(step)
            if len(steps) == 5:
                time.sleep(0.03 * kills)
                os.kill(running.pid, signal.SIGKILL)
        # The checkpoint of a printed step is being written, and that of the step before is whole.
        if steps:
            assert next_step - 1 <= steps[0] <= next_step
            next_step = steps[-1] + 1
        else:  # the kill came between the last step and the end
            assert next_step == len(truth) + 1
        if running.wait().returncode == 0:
            break
    assert next_step == len(truth) + 1
    assert kills >= 2
    names = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "step_14.ckpt"}
