"""Runs that a signal stops at any time and on any rank, compared with an uninterrupted run."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import small
from lightning.pytorch import Callback, LightningModule
from line import quiet
from ranks import on_nodes, on_ranks

from autotimm import InstanceSegmentationDataModule
from autotimm.distributed import signals
from autotimm.outputs.pictures import SavePictures
from autotimm.training.preemption import CODE

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Record(Callback):
    """Records events, and sends a signal at a given one.

    ``done`` has the losses and validations, which must not repeat. Other events may.
    """

    def __init__(self, at: str = "", number: int = signal.SIGTERM) -> None:
        self.at, self.number = at, number
        self.done: list[Any] = []

    def _see(self, what: str) -> None:
        if what == self.at:
            os.kill(os.getpid(), self.number)

    def setup(self, trainer, pl_module, stage) -> None:
        self._see("setup")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._see(f"batch {trainer.current_epoch}.{batch_idx}")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        ids, loss = batch["image_id"].tolist(), outputs["loss"].item()
        self.done.append((trainer.current_epoch, batch_idx, trainer.global_step, ids, loss))

    def on_validation_batch_start(self, trainer, *arguments) -> None:
        what = "sanity" if trainer.sanity_checking else f"validation {trainer.global_step}"
        self._see(f"{what}.{arguments[2]}")

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            self.done.append(("validated", trainer.current_epoch, trainer.global_step))

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self._see(f"epoch end {trainer.current_epoch}")
        self.done.append(("epoch", trainer.current_epoch, trainer.global_step))


class Model(LightningModule):
    """Learns one number from images and random numbers, with a momentum and a schedule, so that its
    losses depend on all the state that a checkpoint must restore."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return (self.weight - batch["image"].mean() - torch.rand(())) ** 2

    def validation_step(self, batch, batch_idx):
        return [{} for _ in batch["image"]]

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def segmentor() -> LightningModule:
    return small(num_classes=4, mask_size=12, mask_rois=2, scheduler="cosine", warmup_steps=3)


def fit(
    folder: Path,
    root: Path,
    record: Record,
    ckpt_path: Any = None,
    num_workers: int = 0,
    val_batch_size: int | None = None,
    model: Callable[[], LightningModule] = Model,
    **options: Any,
) -> None:
    data: dict[str, Any] = {"image_size": 64, "batch_size": 2, "num_workers": num_workers}
    module = InstanceSegmentationDataModule(folder, val_batch_size=val_batch_size, **data)
    torch.manual_seed(0)
    trainer = quiet(
        root,
        callbacks=[record, SavePictures(0)],
        **({"max_epochs": 2, "timeout_minutes": 5} | options),
    )
    trainer.fit(model(), datamodule=module, ckpt_path=ckpt_path)


EVERY = {}
STEPS = {"val_check_interval": 3}
SUMS = {"accumulate_grad_batches": 2, "limit_val_batches": 0}
AVERAGE = {"ema_decay": 0.9}


def check(places: list[str], folder: Path, root: Path, **options: Any) -> None:
    """Stops a run at each place and resumes it: both parts together equal the uninterrupted run."""
    truth = Record()
    fit(folder, root / "truth", truth, **options)
    for number, place in enumerate(places):
        first, second = Record(place), Record()
        with pytest.raises(SystemExit) as left:
            fit(folder, root / str(number), first, **options)
        assert left.value.code == CODE
        fit(folder, root / str(number), second, ckpt_path="last", **options)
        assert first.done + second.done == truth.done, place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "places"),
    [
        (AVERAGE, ["batch 0.2", "validation 7.1"]),
        (EVERY, ["setup", "sanity.0", "batch 0.0", "batch 0.2", "batch 0.6", "validation 7.1"]),
        (EVERY, ["epoch end 0", "batch 1.0", "batch 1.6", "validation 14.0"]),
        (STEPS, ["batch 0.2", "validation 3.0", "validation 6.1", "batch 0.6"]),
        (SUMS, ["batch 0.0", "batch 0.1", "batch 0.4", "batch 0.6", "batch 1.0"]),
    ],
    ids=["average", "first epoch", "second epoch", "validation in an epoch", "accumulation"],
)
def test_what_was_stopped_goes_on_as_if_it_had_not_been(
    options: dict[str, Any], places: list[str], mixed_shards: Path, tmp_path: Path
) -> None:
    check(places, mixed_shards, tmp_path, **options)


@pytest.mark.slow
def test_a_segmentor_goes_on_as_if_it_had_not_been_stopped(
    mixed_shards: Path, tmp_path: Path
) -> None:
    check(["batch 0.2"], mixed_shards, tmp_path, model=segmentor, **AVERAGE)


class ToAll(Record):
    """Signals the data workers too, as a terminal or SLURM does, but not their parent."""

    def _see(self, what: str) -> None:
        if what == self.at:
            every = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
            assert len(every) >= 3
            words = ["kill", f"-{int(self.number)}", *map(str, every)]
            subprocess.run(words, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", signals.STOPS)
def test_a_signal_to_the_data_workers_does_not_end_them(
    number: int, mixed_shards: Path, tmp_path: Path
) -> None:
    truth, first, second = Record(), ToAll("batch 0.1", number), Record()
    options: dict[str, Any] = {"max_epochs": 1, "limit_val_batches": 0, "num_workers": 2}
    fit(mixed_shards, tmp_path / "truth", truth, **options)
    with pytest.raises(SystemExit) as left:
        fit(mixed_shards, tmp_path, first, **options)
    assert left.value.code == CODE
    fit(mixed_shards, tmp_path, second, ckpt_path="last", **options)
    assert first.done[-1][2] == 2
    assert first.done + second.done == truth.done


NAMES = """
import os, signal, sys, time
import torch
from pathlib import Path
from test_preemption import Record, fit, segmentor
folder, root = map(Path, sys.argv[1:])
rank = int(os.environ["RANK"])
"""


def script(code: str) -> str:
    """The code of a rank, which imports this file's names."""
    return NAMES + textwrap.dedent(code)


@pytest.mark.slow
def test_a_signal_to_any_rank_stops_all_at_the_same_step(
    mixed_shards: Path, tmp_path: Path
) -> None:
    code = script(
        """
        truth = Record()
        fit(folder, root / "truth", truth)
        # A fit that has ended keeps no group, with its threads and sockets, beside the common one.
        assert len(torch.distributed.distributed_c10d._world.pg_map) == 1
        cases = [
            ("setup", signal.SIGUSR2, 1),
            ("sanity.0", signal.SIGTERM, 1),
            ("batch 0.1", signal.SIGTERM, 1),
            ("batch 0.3", signal.SIGINT, 0),
            ("validation 4.0", signal.SIGUSR2, 1),
        ]
        for number, (place, sign, who) in enumerate(cases):
            first, second = Record(place if rank == who else "", sign), Record()
            code = 0
            try:
                fit(folder, root / str(number), first)
            except SystemExit as left:
                code = left.code
            assert code == 85, (place, code)
            fit(folder, root / str(number), second, ckpt_path="last")
            assert first.done + second.done == truth.done, place
            print(f"rank {rank} {place}: {first.done[-1:]}", flush=True)
        """
    )
    done = on_ranks(code, tmp_path, mixed_shards, tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("stopped by ")]
    assert [line.split(":")[0] for line in lines] == [
        "stopped by SIGUSR2 at step 0",
        "stopped by SIGTERM at step 0",
        "stopped by SIGTERM at step 3",
        "stopped by SIGINT at step 4",
        "stopped by SIGUSR2 at step 4",
    ]


@pytest.mark.slow
def test_in_validation_no_rank_of_a_sharded_model_leaves_the_others_to_their_next_batch(
    mixed_shards: Path, tmp_path: Path
) -> None:
    code = script(
        """
        class Slow(Record):
            def on_validation_batch_end(self, trainer, *arguments):
                time.sleep(2 * rank)  # the other rank does not hear of the signal in this batch

        sharded = {"model": segmentor, "strategy": "fsdp", "limit_train_batches": 1}
        first = Slow("validation 1.0" if rank else "")
        code = 0
        try:
            fit(
                folder,
                root,
                first,
                val_batch_size=1,
                num_sanity_val_steps=0,
                timeout_minutes=1,
                **sharded,
            )
        except SystemExit as left:
            code = left.code
        assert code == 85, code
        assert first.done[-1][2] == 1

        # Nor is an error in a forward pass hidden by the end of the run.
        class Failing(Record):
            def on_validation_start(self, trainer, pl_module):
                pl_module.network.head.register_forward_pre_hook(self._fail)

            def _fail(self, *_):
                raise ValueError("of a pass")

        try:
            fit(folder, root / "failing", Failing(), **sharded)
        except ValueError as error:
            print(f"raised: {error}", flush=True)
        """
    )
    done = on_ranks(code, tmp_path, mixed_shards, tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    assert "stopped by SIGTERM at step 1" in done.stderr
    assert done.stdout.count("raised: of a pass") == 2


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_and_torchrun_goes_on_from_the_last_checkpoint(
    mixed_shards: Path, tmp_path: Path
) -> None:
    # The torchrun of the other node restarts because this one does, and counts no restart itself.
    code = script(
        """
        first = not (root / f"again-{rank}").exists()
        (root / f"again-{rank}").touch()
        print(f"rank {rank}: count {os.environ['TORCHELASTIC_RESTART_COUNT']}", flush=True)

        class Killed(Record):
            def _see(self, what):
                if first and rank == 1 and what == "batch 1.1":
                    os.kill(os.getpid(), signal.SIGKILL)

        from autotimm.distributed.lost_ranks import LostRanksError

        record = Killed()
        try:
            fit(folder, root / "runs", record, max_epochs=3)
        except LostRanksError as error:
            print(f"lost: {error.reports} {error}", flush=True)
            raise SystemExit(1)
        assert not first
        truth = Record()
        fit(folder, root / "truth", truth, max_epochs=3)
        # The epoch in which the rank died is trained once more, from its beginning.
        assert record.done == [what for what in truth.done if what not in truth.done[:6]]
        print("as it was", flush=True)
        """
    )
    done = on_nodes(code, tmp_path, mixed_shards, tmp_path, restarts=2)
    output = "\n".join(one.stdout for one in done)
    assert [one.returncode for one in done] == [0, 0], output[-6000:]
    assert output.count("as it was") == 2
    assert f"lost: True rank 1 on {platform.node()} has ended" in output
    assert "goes on from " in output and "/runs/version_0/checkpoints/" in output
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["last", "version_0"]


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_after_the_timeout(mixed_shards: Path, tmp_path: Path) -> None:
    code = script(
        """
        class Hanging(Record):
            def _see(self, what):
                if rank == 1 and what == "batch 0.2":
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # or its end would be waited for
                    print("hangs", flush=True)
                    time.sleep(10000)

        from autotimm.distributed.lost_ranks import LostRanksError

        try:
            fit(folder, root / "runs", Hanging(), timeout_minutes=0.25)
        except LostRanksError as error:
            print(f"lost: {error.reports} {error}", flush=True)
            raise SystemExit(1)
        """
    )
    done = on_ranks(code, tmp_path, mixed_shards, tmp_path)
    assert done.returncode == 1, done.stderr[-6000:]
    assert "hangs" in done.stdout
    message = f"lost: True rank 1 on {platform.node()} does not answer within the timeout"
    assert message in done.stdout
