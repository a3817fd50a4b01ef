"""The stream: the same batches with any workers and ranks, resume, and errors with names."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import webdataset

from autotimm.data.synthetic import make_dataset
from autotimm.images.decode import DataError, decode_image
from autotimm.sharding.cli import shard
from autotimm.streaming.dataset import SampleStream
from autotimm.streaming.loader import StreamLoader, killed_worker
from autotimm.streaming.order import sample_rng
from autotimm.streaming.store import Source, open_source
from autotimm.streaming.webdataset_pipeline import webdataset_pipeline
from autotimm.structures import InputError, Record, World

IMAGES = 11


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted") / "coco"
    make_dataset(folder, train=IMAGES, val=3, size=64)
    return folder


@pytest.fixture(scope="module")
def shard_folder(coco_folder: Path) -> Path:
    shard(coco_folder, coco_folder.parent / "shards", samples_per_shard=4)
    return coco_folder.parent / "shards"


@pytest.fixture(scope="module")
def source(shard_folder: Path) -> Source:
    return open_source(shard_folder, "train")


def load(data: Any, record: Record, rng: np.random.Generator) -> tuple[int, float, torch.Tensor]:
    image = decode_image(data, record["width"], record["height"])
    return record["image_id"], rng.random(), torch.from_numpy(image)


def collate(samples: list[Any], padding: list[bool]) -> dict[str, Any]:
    ids, draws, images = zip(*samples, strict=True)
    return {"id": list(ids), "draw": list(draws), "image": torch.stack(images), "padding": padding}


def loader(
    source: Source,
    world: World | None = None,
    batch_size: int = 2,
    workers: int = 0,
    seed: int = 0,
    pad: bool = False,
    **options: Any,
) -> StreamLoader:
    stream = SampleStream(
        source,
        load,
        collate,
        world=world or World(),
        batch_size=batch_size,
        seed=seed,
        shuffle=not pad,
        pad=pad,
    )
    return StreamLoader(stream, num_workers=workers, **options)


def ids(batches: Any) -> list[int]:
    return [i for batch in batches for i in batch["id"]]


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    keys = ("id", "draw", "padding")
    return len(a) == len(b) and all(
        all(x[k] == y[k] for k in keys) and torch.equal(x["image"], y["image"])
        for x, y in zip(a, b, strict=True)
    )


def test_workers_change_nothing(source: Source) -> None:
    truth = loader(source)
    epochs = [list(truth) for _ in range(2)]
    assert ids(epochs[0]) != ids(epochs[1])
    for number, epoch in enumerate(epochs):
        assert len(epoch) == len(truth) == 6
        assert len(set(ids(epoch)[:IMAGES])) == IMAGES
        assert ids(epoch)[IMAGES:] == ids(epoch)[:1]
        drawn = [draw for batch in epoch for draw in batch["draw"]]
        assert drawn == [sample_rng(0, number, p).random() for p in range(12)]
    for workers in (1, 2):
        persistent = loader(source, workers=workers)
        assert [same(list(persistent), epoch) for epoch in epochs] == [True, True]
        persistent.close()


def test_workers_leave_the_cpus_to_each_other(source: Source) -> None:
    """OpenCV would start a thread for each CPU in every worker."""

    def threads(*_: Any) -> int:
        return cv2.getNumThreads()

    here = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        given = {"world": World(), "batch_size": IMAGES}
        stream = SampleStream(source, threads, lambda samples, _: samples, **given)
        assert list(StreamLoader(stream, num_workers=1)) == [[1] * IMAGES]
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(here)


@pytest.mark.usefixtures("own_threads")
def test_threads_change_nothing(source: Source) -> None:
    truth, threaded = loader(source, batch_size=5), loader(source, batch_size=5)
    threaded.stream.threads = 3
    for _ in range(2):
        assert same(list(threaded), list(truth))
        assert threading.active_count() == 1  # the threads end with the epoch
    next(iter(threaded))
    gc.collect()
    assert threading.active_count() == 1


@pytest.mark.parametrize("threads", [1, 3])
def test_a_source_that_fails_is_not_asked_again(
    source: Source, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    asked = []

    def gone(shard: int, index: int) -> Any:
        asked.append(threading.current_thread())
        raise InputError("the server is gone")

    given = loader(source, batch_size=5)
    given.stream.threads = threads
    monkeypatch.setattr(source, "read", gone)
    with pytest.raises(InputError, match="the server is gone"):
        next(iter(given))
    assert asked == [threading.main_thread()]  # where Ctrl-C interrupts a download


@pytest.mark.slow
def test_spawned_workers_too(source: Source) -> None:
    spawned = loader(source, workers=1, multiprocessing_context="spawn", persistent_workers=False)
    assert same(list(spawned), list(loader(source)))


@pytest.mark.parametrize(("ranks", "batch_size"), [(2, 3), (3, 2), (6, 1), (15, 2)])
def test_ranks_share_the_global_batch(source: Source, ranks: int, batch_size: int) -> None:
    one = list(loader(source, batch_size=ranks * batch_size))
    parts = [list(loader(source, World(r, ranks), batch_size)) for r in range(ranks)]
    assert {len(p) for p in parts} == {len(one)}
    for whole, *part in zip(one, *parts, strict=True):
        assert whole["id"] == ids(part)
        assert whole["draw"] == [d for p in part for d in p["draw"]]
        assert torch.equal(whole["image"], torch.cat([p["image"] for p in part]))


def test_seeds_differ(source: Source) -> None:
    first, second = list(loader(source, seed=1)), list(loader(source, seed=2))
    assert ids(first) != ids(second)
    draw = {i: d for b in first for i, d in zip(b["id"], b["draw"], strict=True)}
    assert all(draw[i] != d for b in second for i, d in zip(b["id"], b["draw"], strict=True))


def test_evaluation_keeps_the_order_and_flags_repeats(source: Source) -> None:
    parts = [list(loader(source, World(r, 2), 4, pad=True)) for r in range(2)]
    pairs = [
        (i, p)
        for step in zip(*parts, strict=True)
        for batch in step
        for i, p in zip(batch["id"], batch["padding"], strict=True)
    ]
    natural = [source.read(k, i)[1]["image_id"] for k, n in enumerate([4, 4, 3]) for i in range(n)]
    assert [i for i, padding in pairs if not padding] == natural
    assert [padding for _, padding in pairs] == [False] * IMAGES + [True] * 5


@pytest.mark.parametrize(
    ("taken", "workers"), [*((taken, 0) for taken in range(1, 7)), (1, 2), (4, 2), (6, 2)]
)
def test_resume_gives_exactly_what_is_left(source: Source, taken: int, workers: int) -> None:
    whole = loader(source)
    truth = [list(whole) for _ in range(3)]
    first = loader(source, workers=workers)
    list(first)
    part = list(itertools.islice(first, taken))
    state = first.state_dict()
    assert state["epoch"] == 1
    assert state["step"] == taken
    assert same(part, truth[1][:taken])
    first.close()

    second = loader(source, workers=workers)
    second.load_state_dict(state)
    assert len(second) == 6
    assert second.state_dict() == state
    left = list(second)
    if taken == 6:  # the epoch is over, so the next one begins
        assert same(left, truth[2])
    else:
        assert same(left, truth[1][taken:])
        assert second.state_dict()["step"] == 6
        assert same(list(second), truth[2])
    second.close()


def test_resume_on_another_world(source: Source) -> None:
    first = loader(source, batch_size=3)
    part = list(itertools.islice(first, 2))
    state = first.state_dict()
    rest = []
    for rank in range(2):
        other = loader(source, World(rank, 2), batch_size=2)
        other.load_state_dict(state)
        assert (len(other), other.step) == (3, 1)  # five samples are left: two of three batches
        rest.append(list(other))
        assert other.step == 3
    left = [ids(step) for step in zip(*rest, strict=True)]
    order = ids(loader(source, batch_size=1))
    assert ids(part) == order[:6]
    assert [i for step in left for i in step] == order[6:] + order[:3]


def test_an_iterator_that_nobody_used_is_no_epoch(source: Source) -> None:
    truth, other = loader(source), loader(source)
    iter(other)
    assert same(list(other), list(truth))
    next(iter(other))
    assert other.epoch == 1
    list(truth)
    assert same(list(other), list(truth))


def test_a_state_of_something_else_is_refused(source: Source, shard_folder: Path) -> None:
    state = loader(source).state_dict()
    with pytest.raises(InputError, match="seed is 1, but the checkpoint was trained with seed 0"):
        loader(source, seed=1).load_state_dict(state)
    with pytest.raises(InputError, match="not the data that the checkpoint was trained on"):
        loader(open_source(shard_folder, "val")).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_does_not_decode_is_named(
    coco_folder: Path, tmp_path: Path, workers: int
) -> None:
    folder = shutil.copytree(coco_folder, tmp_path / "coco")
    image = sorted((folder / "train2017").iterdir())[5]
    image.write_bytes(image.read_bytes()[:300])
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(InputError) as error:
        list(loader(open_source(folder, "train"), workers=workers))
    assert f": {image.name} (in " in str(error.value)
    assert "max_corrupt=0.01 of a rank's 11 in an epoch" in str(error.value)
    assert "raise max_corrupt" in str(error.value)
    assert "instances_train2017.json" in str(error.value)
    assert "cannot be decoded" in str(error.value)
    assert "\n" not in str(error.value)


def broken(data: Any, record: Record, rng: np.random.Generator) -> None:
    raise ZeroDivisionError("a bug in a transform")


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_keep_their_traceback_and_name_the_sample(
    source: Source, workers: int
) -> None:
    stream = SampleStream(source, broken, collate, world=World(), batch_size=1)
    with pytest.raises(ZeroDivisionError) as error:
        list(StreamLoader(stream, num_workers=workers))
    said = str(error.value) + "".join(getattr(error.value, "__notes__", []))
    assert "a bug in a transform" in said
    name = source.read(0, 0)[1]["file_name"]
    assert f"while sample {name} (in {source.where(0)}) was made" in said


def killed(data: Any, record: Record, rng: np.random.Generator) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_says_what_needs_less_memory(source: Source) -> None:
    stream = SampleStream(source, killed, collate, world=World(), batch_size=1)
    with pytest.raises(InputError, match=r"^a data worker was killed \(out of memory\?\): lower"):
        list(StreamLoader(stream, num_workers=2))
    # A worker that exited by itself was not killed for lack of memory.
    gone = "DataLoader worker (pid(s) 7) exited unexpectedly"
    assert killed_worker(RuntimeError(gone))
    assert not killed_worker(RuntimeError(f"{gone} with exit code 3."))


def test_webdataset_pipeline_gives_the_same_samples(source: Source, shard_folder: Path) -> None:
    found = list(webdataset_pipeline(shard_folder, "train"))
    truth = [source.read(k, i) for k, n in enumerate([4, 4, 3]) for i in range(n)]
    assert len(found) == IMAGES
    for sample, (data, record) in zip(found, truth, strict=True):
        assert sample["record"] == record
        image = decode_image(data, record["width"], record["height"])
        assert np.array_equal(sample["image"], image)

    shuffled = webdataset_pipeline(shard_folder, "train", shuffle=100, seed=3)
    orders = [[s["record"]["image_id"] for s in shuffled] for _ in range(2)]
    again = [
        s["record"]["image_id"]
        for s in webdataset_pipeline(shard_folder, "train", shuffle=100, seed=3)
    ]
    assert orders[0] == again
    assert orders[0] != orders[1] != sorted(orders[1])
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(r["image_id"] for _, r in truth)


def test_webdataset_pipeline_is_shared_by_ranks_and_workers(shard_folder: Path) -> None:
    seen = []
    for rank in range(2):
        pipeline = webdataset_pipeline(shard_folder, "train", world=World(rank, 2))
        assert isinstance(pipeline, webdataset.WebDataset)
        chosen = pipeline.map(lambda sample: sample["record"]["image_id"])
        seen += list(torch.utils.data.DataLoader(chosen, batch_size=None, num_workers=2))
    assert len(seen) == len(set(seen)) == IMAGES


def test_webdataset_pipeline_names_what_it_cannot_use(
    shard_folder: Path, coco_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="not a folder of shards"):
        webdataset_pipeline(coco_folder, "train")
    copy = shutil.copytree(shard_folder, tmp_path / "copy")
    tar = copy / "train-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"\xff\xd8\xff", b"\xff\xd8\x00", 1))
    with pytest.raises(DataError, match=r"train-000000\.tar: sample '\w+' .*not an image"):
        list(webdataset_pipeline(copy, "train"))
