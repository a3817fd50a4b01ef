"""Tars written by tarfile and webdataset: the same samples as from the COCO folder."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn, optim

from autotimm import InstanceSegmentationDataModule
from autotimm.data.synthetic import make_dataset
from autotimm.format.tar import members
from autotimm.images.decode import DataError
from autotimm.sharding.cli import shard
from autotimm.streaming import foreign
from autotimm.streaming.store import FolderSource, ShardSource, open_source, split_names
from autotimm.structures import InputError

Sample = tuple[str, bytes, dict[str, Any]]  # key, image, record


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted") / "coco"
    make_dataset(folder, train=7, val=3, size=64)
    return folder


@pytest.fixture(scope="module")
def samples(coco_folder: Path) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for split in ("train", "val"):
        source = open_source(coco_folder, split)
        found[split] = [
            (f"part.one/{split}{i}", bytes(image), dict(record))
            for i in range(int(source.shard_sizes[0]))
            for image, record in [source.read(0, i)]
        ]
    return found


def tar(parts: list[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name, data in parts:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def parts_of(samples: list[Sample]) -> list[tuple[str, bytes]]:
    parts = []
    for key, image, record in samples:
        parts += [(f"{key}.JPG", image), (f"{key}.cls", b"1"), (f"{key}.json", dumped(record))]
    return parts


def dumped(record: Any) -> bytes:
    return json.dumps(record).encode()


def write(folder: Path, samples: dict[str, list[Sample]], kind: int = tarfile.PAX_FORMAT) -> Path:
    folder.mkdir(exist_ok=True)
    for split, found in samples.items():
        for number in range(0, len(found), 4):
            content = tar(parts_of(found[number : number + 4]), kind)
            (folder / f"{split}-{number:06d}.tar").write_bytes(content)
    return folder


def everything(source: Any) -> list[tuple[bytes, dict]]:
    return [
        (bytes(image), record)
        for k, size in enumerate(source.shard_sizes)
        for image, record in (source.read(k, i) for i in range(size))
    ]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tars_read_as_the_folder_that_they_are_of(
    kind: int, samples: dict[str, list[Sample]], coco_folder: Path, tmp_path: Path
) -> None:
    folder = write(tmp_path / "tars", samples, kind)
    assert split_names(folder) == ["train", "val"]
    source = open_source(folder, "train", tmp_path / "cache")
    assert isinstance(source, ShardSource) and source.has_instances()
    assert source.shard_sizes.tolist() == [4, 3]
    assert everything(source) == everything(open_source(coco_folder, "train"))
    sizes = open_source(coco_folder, "train").image_sizes()
    assert np.array_equal(source.image_sizes(), sizes)
    ids = {
        a["category_id"] for split in samples.values() for s in split for a in s[2]["annotations"]
    }
    assert [(c.id, c.name) for c in source.categories] == [(i, str(i)) for i in sorted(ids)]
    assert source.problems.counts == {}
    assert sorted(path.name for path in folder.iterdir()) == [
        "train-000000.tar",
        "train-000004.tar",
        "val-000000.tar",
    ]


def test_what_webdataset_writes(
    samples: dict[str, list[Sample]], coco_folder: Path, tmp_path: Path
) -> None:
    with webdataset.ShardWriter(f"{tmp_path}/train-%06d.tar", maxcount=3, verbose=0) as writer:
        for number, (_, image, record) in enumerate(samples["train"]):
            writer.write({"__key__": f"{number:03d}", "jpg": image, "json": record, "txt": "one"})
    source = open_source(tmp_path, "train", tmp_path / "cache")
    assert source.shard_sizes.tolist() == [3, 3, 1]
    assert everything(source) == everything(open_source(coco_folder, "train"))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_the_scan_against_tarfile(kind: int) -> None:
    long = "x" * 90
    parts = [("a/b.c", b"1"), (f"{long}/{long}", b"22"), ("tiny", b"3" * 1025)]
    if kind != tarfile.USTAR_FORMAT:
        parts += [("ü" * 60 + long, b"4"), ("z" * 1500, b"5"), ("plain", b"6")]
    content = bytearray(tar(parts, kind))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for what in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("y" * (95 if kind == tarfile.USTAR_FORMAT else 200))
            info.type, info.linkname = what, "q" * 99
            info.size = 512 if what == tarfile.LNKTYPE else 0  # as in old tars
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("last"))
    content = bytearray(content.rstrip(b"\0"))
    content += bytes(-len(content) % 512) + buffer.getvalue()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        known = [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]
    assert [m[0] for m in known][-1] == "last"
    assert list(members(memoryview(bytes(content)), plain=False)) == known


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_cut_or_changed_tar_is_refused(
    kind: int, samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    parts = parts_of(samples["val"])
    content = tar([("k" * 150 + name, data) for name, data in parts], kind)
    end = len(content.rstrip(b"\0"))
    path = tmp_path / "train-0.tar"
    for cut in range(512, end, 512):
        path.write_bytes(content[:cut])
        with pytest.raises(InputError, match=r"train-0\.tar: the shard is cut off"):
            open_source(tmp_path, "train", tmp_path / "cache")
    for position in (0, 124, 148, 156, 512 + 2):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        )
        if position == 514 and kind == tarfile.GNU_FORMAT:
            continue  # the name itself, which has no checksum
        with pytest.raises(InputError, match=r"train-0\.tar: the shard is (damaged|cut)"):
            open_source(tmp_path, "train", tmp_path / "cache")
    path.write_bytes(content)
    source = open_source(tmp_path, "train", tmp_path / "cache")
    flipped = bytearray(content)
    flipped[flipped.index(samples["val"][1][1]) + 99] ^= 4
    status = path.stat()
    with path.open("r+b") as file:  # like a failing disk: size and time stay the same
        file.write(flipped)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match=r"sample 1 of .*its bytes have changed"):
        everything(source)


def test_an_index_is_made_once_and_anew_when_the_tar_changes(
    samples: dict[str, list[Sample]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[str] = []
    scan = foreign.scan_foreign
    monkeypatch.setattr(
        foreign, "scan_foreign", lambda t, i: (scanned.append(t.name), scan(t, i))[1]
    )
    folder = write(tmp_path / "tars", samples)
    names = ["train-000000.tar", "train-000004.tar", "val-000000.tar"]
    first = open_source(folder, "train", tmp_path / "cache")
    assert sorted(scanned) == names
    again = open_source(folder, "train", tmp_path / "cache")
    assert sorted(scanned) == names and again.fingerprint == first.fingerprint
    assert [everything(again)] == [everything(first)]
    (folder / names[1]).write_bytes(tar(parts_of(samples["train"][5:])))
    changed = open_source(folder, "train", tmp_path / "cache")
    assert scanned[3:] == [names[1]] and changed.shard_sizes.tolist() == [4, 2]
    assert changed.fingerprint != first.fingerprint
    for file in (tmp_path / "cache" / foreign.FOLDER).glob("*.json"):
        file.write_bytes(file.read_bytes()[:-5])  # as after a crash of the machine
    assert everything(open_source(folder, "train", tmp_path / "cache")) == everything(changed)


def _open(folder: Path, cache: Path, together: Any, log: Path, results: Any) -> None:
    scan = foreign.scan_foreign

    def logged(path: Path, index: str) -> Any:
        with log.open("a") as file:
            file.write(path.name + "\n")
        return scan(path, index)

    foreign.scan_foreign = logged
    together.wait()
    results.put(open_source(folder, "train", cache).fingerprint)


def test_of_several_processes_one_makes_an_index(
    samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    folder = write(tmp_path / "tars", samples)
    context = multiprocessing.get_context("fork")
    together, results = context.Barrier(4), context.Queue()
    given = (folder, tmp_path / "cache", together, tmp_path / "log", results)
    processes = [context.Process(target=_open, args=given) for _ in range(4)]
    for process in processes:
        process.start()
    assert len({results.get(timeout=60) for _ in processes}) == 1
    for process in processes:
        process.join()
    assert sorted((tmp_path / "log").read_text().split()) == sorted(
        path.name for path in folder.iterdir()
    )


def test_unusable_samples_are_counted(samples: dict[str, list[Sample]], tmp_path: Path) -> None:
    (_, image, record), other = samples["train"][0], samples["train"][1]
    annotation = record["annotations"][0]
    # Of class 5 there is a box alone, so it is none of the classes.
    box = {"category_id": 5, "id": 1, "bbox": [1, 1, 5, 5]}
    odd = [annotation | {"category_id": "one"}, box, 7]
    parts = [
        ("._a.jpg", b"a Mac's"), ("README", b"text"), (".hidden.json", b"{}"),
        ("lonely.jpg", image),
        ("a.txt", b"no picture"), ("a.json", dumped(record)),
        ("b.jpg", image), ("b.png", image), ("b.json", dumped(record)),
        ("c.jpg", image), ("c.json", b"{"),
        ("d.jpg", image), ("d.json", b"[]"),
        ("e.jpg", image), ("e.json", dumped({**record, "width": 0})),
        ("f.jpg", image), ("f.json", dumped({**record, "image_id": None})),
        ("g.jpg", image), ("g.json", dumped({**record, "annotations": odd})),
        ("h.seg.png", b"?"), ("h.jpeg", other[1]), ("h.json", dumped(other[2])),
        ("g.jpg", image), ("g.json", dumped({**record, "image_id": 999, "annotations": []})),
    ]  # fmt: skip
    (tmp_path / "train-0.tar").write_bytes(tar(parts))
    (tmp_path / "train-1.tar").write_bytes(tar([]))
    source = open_source(tmp_path, "train", tmp_path / "cache")
    assert source.problems.counts == {
        "no .json (sample left out)": 1,
        "no image (sample left out)": 1,
        "more than one image (sample left out)": 1,
        "its .json is not JSON (sample left out)": 1,
        "its .json is not an object (sample left out)": 1,
        "its .json has no width and height of an image (sample left out)": 1,
        "its .json has no whole number as image_id (sample left out)": 1,
        "category_id is not a whole number (instance left out)": 1,
        "no segmentation (instance left out)": 1,
        "key of an earlier sample (both kept)": 1,
    }
    assert "lonely in train-0.tar" in source.problems.lines()[0]
    read = everything(source)
    assert read == [
        (image, {**record, "annotations": []}),
        (other[1], other[2]),
        (image, {**record, "image_id": 999, "annotations": []}),
    ]
    assert everything(open_source(tmp_path, "train", tmp_path / "cache")) == read
    (tmp_path / "val.tar").write_bytes(tar(parts[:3]))
    with pytest.raises(InputError, match="split 'val': no sample in its tars can be used: they"):
        open_source(tmp_path, "train", tmp_path / "cache")


def test_image_ids_that_repeat_are_refused(
    samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    """Also in different tars, and with cached indices."""
    train = samples["train"]
    again = [(f"again-{key}", image, record) for key, image, record in train[1:3]]
    folder, cache = tmp_path / "tars", tmp_path / "cache"
    write(folder, {"train": train[:4], "val": train[:2]})
    open_source(folder, "train", cache)  # ids may repeat in another split
    (folder / "train-7.tar").write_bytes(tar(parts_of([*train[4:], *again])))
    for _ in range(2):
        with pytest.raises(InputError) as error:
            open_source(folder, "train", cache)
        assert str(error.value) == (
            f"{folder}: split 'train': 2 image_id are of several samples each, such as "
            f"{train[1][2]['image_id']} (train-000000.tar, train-7.tar), and evaluation goes by "
            "it: give every image its own"
        )
    (folder / "train-7.tar").write_bytes(tar(parts_of(train[4:])))
    open_source(folder, "train", cache)


def test_an_index_that_changes_in_the_cache_is_made_anew(
    samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    folder = write(tmp_path / "tars", samples)
    before = everything(open_source(folder, "train", tmp_path / "cache"))
    for index in (tmp_path / "cache" / foreign.FOLDER).glob("*.npy"):
        index.write_bytes(index.read_bytes()[:-1] + b"?")
    assert everything(open_source(folder, "train", tmp_path / "cache")) == before


def test_a_tar_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train-0.tar")
    with pytest.raises(InputError, match=r"train-0\.tar: not a regular file: move it away"):
        open_source(tmp_path, "train", tmp_path / "cache")


def test_names_of_splits(tmp_path: Path) -> None:
    for name in ("train-10", "train-9", "val_000", "test", "shard.1"):
        (tmp_path / f"{name}.tar").write_bytes(b"")
    splits = foreign.split_tars(tmp_path)
    assert list(splits) == ["shard", "test", "train", "val"]
    assert [path.stem for path in splits["train"]] == ["train-9", "train-10"]
    (tmp_path / "000.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"000\.tar: its name has no split: .*train-000\.tar"):
        foreign.split_tars(tmp_path)


def test_a_coco_folder_with_a_tar_in_it_stays_one(coco_folder: Path) -> None:
    (coco_folder / "train2017.tar").write_bytes(b"left over")
    assert isinstance(open_source(coco_folder, "train"), FolderSource)


@pytest.mark.parametrize("what", ["nothing", "folder", "link", "fifo"])
def test_shards_that_lack_their_manifest_are_not_taken_for_those_of_others(
    what: str, coco_folder: Path, samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    if what == "nothing":  # after an interrupted copy
        shard(coco_folder, folder, samples_per_shard=4)
        (folder / "manifest.json").unlink()
        (folder / "train-000001.tar").unlink()
    else:
        write(folder, samples)
        {"folder": Path.mkdir, "link": lambda p: p.symlink_to("gone"), "fifo": os.mkfifo}[what](
            folder / "manifest.json"
        )
    message = (
        f"{folder}: shards of autotimm-shard whose manifest.json is missing (or not a file): copy "
        "it too, or run autotimm-shard again"
    )
    for attempt in (
        lambda: open_source(folder, "train", tmp_path / "c"),
        lambda: split_names(folder),
    ):
        with pytest.raises(InputError) as error:
            attempt()
        assert str(error.value) == message


class Grey(LightningModule):
    """Learns a grey value."""

    def __init__(self) -> None:
        super().__init__()
        self.grey = nn.Parameter(Tensor([0.0]))
        self.instances = 0

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.instances += int((batch["labels"] >= 0).sum())
        return ((batch["image"] - self.grey) ** 2).mean()

    def configure_optimizers(self) -> optim.Optimizer:
        return optim.SGD(self.parameters(), 0.1)


def test_a_fit_on_tars_of_others(samples: dict[str, list[Sample]], tmp_path: Path) -> None:
    folder = write(tmp_path / "tars", samples)
    data = InstanceSegmentationDataModule(
        folder, image_size=64, batch_size=2, num_workers=2, val_split=None,
        cache_dir=tmp_path / "cache",
    )  # fmt: skip
    model = Grey()
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    with pytest.warns(
        UserWarning, match="tars of another tool, .*: 2 tars with 7 samples and [1-9]"
    ):
        trainer.fit(model, datamodule=data)
    assert model.instances > 0 and model.grey.item() != 0


@pytest.mark.filterwarnings("ignore:skipped")
def test_too_many_damaged_samples_are_to_be_repaired_or_removed(
    samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    """autotimm-shard does not read other tools' tars."""
    key, image, record = samples["train"][2]
    cut = [*samples["train"][:2], (key, image[:200], record), *samples["train"][3:]]
    folder = write(tmp_path / "tars", samples | {"train": cut})
    data = InstanceSegmentationDataModule(
        folder, image_size=64, num_workers=0, val_split=None, cache_dir=tmp_path / "cache"
    )
    with pytest.warns(UserWarning, match="tars of another tool"):
        loader = data.train_dataloader()
    with pytest.raises(InputError, match="or remove them from the tars, or raise") as e:
        list(loader)
    assert "autotimm-shard" not in str(e.value)


def test_a_cache_that_cannot_be_written_is_refused(
    samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    folder = write(tmp_path / "tars", samples)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / foreign.FOLDER).write_bytes(b"in the way")
    with pytest.raises(InputError, match=r"the index of .*train-000000\.tar cannot be kept there"):
        open_source(folder, "train", tmp_path / "cache")
