"""The data module's callback: ends of epochs after a resume, and skipped samples."""

from __future__ import annotations

import itertools
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from coco_folder import mixed
from data_fits import Recorder, Scheduled, module, run_ranks, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from autotimm.data.collate import finish
from autotimm.data.synthetic import make_dataset
from autotimm.data.watch import step_seed
from autotimm.sharding.cli import shard
from autotimm.streaming.dataset import SampleStream
from autotimm.streaming.loader import StreamLoader
from autotimm.structures import InputError, World

IMAGES = 13


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed(tmp_path_factory.mktemp("mixed") / "coco")


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted") / "coco"
    make_dataset(folder, train=IMAGES, val=5, size=(64, 96))
    return folder


@pytest.fixture(scope="module")
def shard_folder(coco_folder: Path) -> Path:
    shard(coco_folder, coco_folder.parent / "shards", samples_per_shard=4)
    return coco_folder.parent / "shards"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "buckets"), [("Recorder", False), ("Recorder", True), ("Scheduled", False)]
)
def test_a_resume_with_another_batch_size_ends_the_epoch_in_time(
    mixed_folder: Path, tmp_path: Path, kind: str, buckets: bool
) -> None:
    """Also at the end of an epoch, and if a larger batch makes the epoch shorter."""
    options = {"image_size": 96, "aspect_buckets": buckets}
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    first = Recorder()
    trainer(tmp_path, callbacks=[saving], enable_checkpointing=True).fit(
        first, datamodule=module(mixed_folder, **options)
    )
    for taken, batch_size in ((1, 5), (6, 5), (7, 5), (3, 1), (7, 1), (9, 13)):
        model = {"Recorder": Recorder, "Scheduled": Scheduled}[kind]()
        run = trainer(tmp_path, max_epochs=4)
        run.fit(
            model,
            datamodule=module(mixed_folder, batch_size=batch_size, **options),
            ckpt_path=tmp_path / f"step={taken}.ckpt",
        )
        case = (taken, batch_size)
        in_epoch = taken % 7
        had = {i for batch in first.batches[taken - in_epoch : taken] for i in batch}
        rest = IMAGES - 2 * in_epoch if in_epoch else 0
        steps = -(-rest // batch_size)
        seen = [i for batch in model.batches[:steps] for i in batch][:rest]
        assert len(set(seen)) == rest, case
        assert not had & set(seen), case
        whole = -(-IMAGES // batch_size)
        epochs = 4 - -(-taken // 7)
        assert len(model.batches) == steps + epochs * whole, case
        for n in range(epochs):
            start = steps + n * whole
            epoch = [i for batch in model.batches[start : start + whole] for i in batch]
            assert len(set(epoch[:IMAGES])) == IMAGES, case
        assert len(model.evaluated) == 3 * (epochs + (steps > 0)), case  # after each epoch
        assert run.current_epoch == 4


def test_each_step_of_each_rank_draws_other_numbers(shard_folder: Path) -> None:
    """Otherwise all ranks would draw the same random numbers for their RoIs."""

    def seeds(rank: int, seed: int = 0, epochs: int = 2) -> list[int]:
        given = module(shard_folder, seed=seed).train_dataloader().stream
        stream = SampleStream(
            given.source, given.load, given.collate, world=World(rank, 2), batch_size=2, seed=seed
        )
        loader = StreamLoader(stream)
        return [step_seed(loader) for _ in range(epochs) for _ in loader]

    every = seeds(0) + seeds(1) + seeds(0, seed=1)
    assert len(set(every)) == len(every) == 3 * 2 * 4
    assert seeds(1) == seeds(1)


class Told(Scheduled):
    """Records batches, validations and ends of epochs in order."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []
        self.stop_after = 0  # batches; 0 for never

    def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
        loss = super().training_step(batch)
        self.events.append(self.batches[-1])
        if len(self.batches) == self.stop_after:
            self.trainer.should_stop = True  # as max_time does
        return loss

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.events.append("validated")

    def on_train_epoch_end(self) -> None:
        self.events.append(self.trainer.current_epoch)


def stopped_at(folder: Path, out: Path, *, should_stop: bool = False, **options: Any) -> Told:
    """A run that ends at ``max_steps``, and leaves its ``last.ckpt`` in a folder."""
    saving = ModelCheckpoint(out, save_last=True, save_on_train_epoch_end=True)
    model = Told()
    if should_stop:
        model.stop_after = options.pop("max_steps")
    how = {"callbacks": [saving], "enable_checkpointing": True} | options
    trainer(out, **how).fit(model, datamodule=module(folder))
    return model


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("options", "stops"),
    [
        ({}, (1, 5, 7, 9)),
        pytest.param({"should_stop": True}, (2, 7, 12), marks=pytest.mark.slow),
        pytest.param({"limit_train_batches": 3}, (2, 3, 4), marks=pytest.mark.slow),
        pytest.param({"val_check_interval": 3}, (2, 3, 10), marks=pytest.mark.slow),
        ({"accumulate_grad_batches": 2}, (1, 3, 4, 6)),  # 4 steps an epoch
    ],
)
def test_the_rest_of_an_epoch_that_max_steps_cut_is_trained(
    shard_folder: Path, tmp_path: Path, options: dict[str, Any], stops: tuple[int, ...]
) -> None:
    limits = {key: value for key, value in options.items() if key != "should_stop"}
    truth, whole = Told(), trainer(tmp_path, **limits)
    whole.fit(truth, datamodule=module(shard_folder))
    for stop in stops:
        out = tmp_path / str(stop)
        first = stopped_at(shard_folder, out, max_steps=stop, **options)
        assert first.batches == truth.batches[: len(first.batches)]
        # A stop looks like the end of an epoch, so max_time validates there too.
        both = zip(first.events, truth.events, strict=False)
        done = [event for event, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both)]
        model, run = Told(), trainer(tmp_path, **limits)
        run.fit(model, datamodule=module(shard_folder), ckpt_path=out / "last.ckpt")
        assert done + model.events == truth.events, stop
        assert (run.current_epoch, run.global_step) == (2, whole.global_step)
        assert torch.equal(model.weight, truth.weight)
        # The step that loggers get.
        steps = (r.fit_loop.epoch_loop._batches_that_stepped for r in (run, whole))
        assert len(set(steps)) == 1, stop


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_max_steps_may_cut_an_epoch_again_and_again(shard_folder: Path, tmp_path: Path) -> None:
    truth = Told()
    trainer(tmp_path).fit(truth, datamodule=module(shard_folder))
    saving = {"save_last": True, "save_on_train_epoch_end": True}
    batches, events, checkpoint = [], [], None
    for leg, stop in enumerate((1, 3, 7, 9, -1)):
        callbacks = [ModelCheckpoint(tmp_path / str(leg), **saving)]
        model = Told()
        run = trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True, max_steps=stop)
        run.fit(model, datamodule=module(shard_folder), ckpt_path=checkpoint)
        checkpoint = tmp_path / str(leg) / "last.ckpt"
        batches += model.batches
        assert len(batches) == (14 if stop == -1 else stop)
        closed = stop % 7 and stop != -1  # closed by the stop only
        events += model.events[:-1] if closed else model.events
    assert events == truth.events
    assert run.current_epoch == 2


CUT_RANK = """
    import json, sys
    from test_watch import Told, module, stopped_at, trainer
    from pathlib import Path

    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    ranks = {"devices": 2, "strategy": "ddp"}
    first = stopped_at(folder, out, max_steps=2, **ranks)
    second, whole = Told(), Told()
    run = trainer(out, **ranks)
    run.fit(second, datamodule=module(folder), ckpt_path=out / "last.ckpt")
    trainer(out, **ranks).fit(whole, datamodule=module(folder))
    found = {"first": first.events, "second": second.events, "whole": whole.events}
    (out / f"{run.global_rank}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_two_ranks_train_the_rest_of_an_epoch(shard_folder: Path, tmp_path: Path) -> None:
    for found in run_ranks(CUT_RANK, tmp_path, shard_folder, tmp_path):
        assert len(found["first"]) == 3
        assert found["first"][:2] + found["second"] == found["whole"]


def damage(folder: Path, ids: set[int]) -> set[str]:
    """Flips a byte in the middle of these images, in a COCO folder or in shards."""
    names = set()
    for path in sorted(folder.rglob("*.tar")) or sorted(folder.rglob("*.jpg")):
        content = bytearray(path.read_bytes())
        if path.suffix == ".jpg":
            if int(path.stem) in ids:
                path.write_bytes(content[:200])
                names.add(path.name)
            continue
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for image, record in zip(members[::2], members[1::2], strict=True):
                known = json.loads(tar.extractfile(record).read())
                if known["image_id"] in ids:
                    content[image.offset_data + image.size // 2] ^= 1
                    names.add(known["file_name"])
        path.write_bytes(content)
    return names


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["coco", "shards"])
def test_damaged_samples_are_left_out_and_reported(
    coco_folder: Path, shard_folder: Path, tmp_path: Path, kind: str
) -> None:
    source = {"coco": coco_folder, "shards": shard_folder}[kind]
    clean = Recorder()
    trainer(tmp_path).fit(clean, datamodule=module(source))
    bad = {clean.seen[0][3], clean.seen[0][8], clean.evaluated[1]}
    folder = shutil.copytree(source, tmp_path / "damaged")
    names = damage(folder, bad)
    assert len(names) == 3

    model = Recorder()
    with pytest.warns(UserWarning) as caught:
        trainer(tmp_path).fit(model, datamodule=module(folder, max_corrupt=0.5, num_workers=1))
    for was, now in zip(clean.batches, model.batches, strict=True):
        assert all(w == n or w in bad for w, n in zip(was, now, strict=True))
    assert not bad & {i for batch in model.batches for i in batch}
    assert sorted(model.evaluated[-4:]) == sorted(set(clean.evaluated) - bad)
    lines = [str(w.message) for w in caught if "were skipped" in str(w.message)]
    assert [line.partition(" were ")[0] for line in lines] == [
        "validation: 1 of 5 samples",
        "epoch 1: 2 of 13 samples",
        "validation: 1 of 5 samples",
        "epoch 2: 2 of 13 samples",
    ]
    assert "cannot be used, and are not evaluated: " in lines[0]
    if kind == "coco":  # a damaged sample of shards is named by its place only
        assert all(any(name in line for line in lines) for name in names)

    model = Recorder()
    way = {"coco": f"autotimm-shard {folder} --dry-run", "shards": "autotimm-shard --verify"}[kind]
    match = rf"max_corrupt=0\.01 of a rank's 13 .*: repair them \({way} .*max_corrupt$"
    with pytest.raises(InputError, match=match):
        trainer(tmp_path, num_sanity_val_steps=0).fit(model, datamodule=module(folder))
    model = Recorder()
    run = trainer(tmp_path)
    run.validate(model, datamodule=module(folder, max_corrupt=0.2), verbose=False)
    assert sorted(model.evaluated) == sorted(set(clean.evaluated) - bad)
    model = Recorder()
    run.predict(model, datamodule=module(folder, max_corrupt=0.2))
    assert sorted(model.predicted) == sorted(set(clean.evaluated) - bad)


DAMAGED_RANK = """
    import json, sys, warnings
    from data_fits import Recorder, module, trainer
    from pathlib import Path

    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    options = {"image_size": 96, "max_corrupt": 0.9, "aspect_buckets": True}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = Recorder()
        run = trainer(out, devices=2, strategy="ddp", max_epochs=1)
        run.fit(model, datamodule=module(folder, num_workers=2, **options))
        one = Recorder()
        run.validate(one, datamodule=module(folder, val_batch_size=1, **options), verbose=False)
    lines = [str(w.message) for w in caught if "were skipped" in str(w.message)]
    found = {"batches": model.batches, "shapes": model.shapes, "evaluated": one.evaluated,
             "lines": lines}
    (out / f"{run.global_rank}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_two_ranks_keep_in_step_over_damaged_samples(mixed_folder: Path, tmp_path: Path) -> None:
    """Three damaged samples on rank 1 and none on rank 0; canvases change from step to step."""
    folder = tmp_path / "shards"
    shard(mixed_folder, folder, samples_per_shard=4)
    data = module(folder, image_size=96, aspect_buckets=True)
    stream = data.train_dataloader().stream
    clean = []
    for rank in range(2):
        stream.world = World(rank, 2)
        clean.append([b["image_id"].tolist() for b in StreamLoader(stream, finish=finish)])
    first, second = ({i for batch in part for i in batch} for part in clean)
    bad = set(sorted(second - first)[:3])
    val = [i for b in data.val_dataloader() for i in b["image_id"][~b["padding"]].tolist()]
    damage(folder, bad | {val[1]})

    ranks = run_ranks(DAMAGED_RANK, tmp_path, folder, tmp_path)
    assert ranks[0]["shapes"] == ranks[1]["shapes"]
    assert len(set(map(tuple, ranks[0]["shapes"]))) > 1
    assert ranks[0]["batches"] == clean[0]
    for was, now in zip(clean[1], ranks[1]["batches"], strict=True):
        assert all((w == n) != (w in bad) for w, n in zip(was, now, strict=True))
    evaluated = ranks[0]["evaluated"] + ranks[1]["evaluated"]
    assert sorted(evaluated) == sorted(set(val) - {val[1]})
    assert [line.partition(" were ")[0] for line in ranks[0]["lines"]] == [
        "validation: 1 of 3 samples",
        "epoch 1: 3 of 13 samples",
        "validation: 1 of 3 samples",
    ]
    assert ranks[1]["lines"] == []  # rank 0 reports for all
