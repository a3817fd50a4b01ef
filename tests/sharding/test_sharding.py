"""Shards as a whole: they hold every byte and mask of the source, and say nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from coco_folder import write
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from shard_runs import contents, many

from autotimm.coco import index as coco
from autotimm.coco import layouts
from autotimm.format.index import build_index, read_index
from autotimm.format.manifest_file import read_manifest
from autotimm.sharding import cli, run, writer
from autotimm.sharding.outcome import Written
from autotimm.structures import InputError


@pytest.mark.parametrize("name", ["coco_mini", "fruits_nuts", "balloon", "microscopy_flakes"])
def test_real_shards_hold_every_byte_and_every_mask(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    source = shared_data / name
    manifest = cli.shard(source, tmp_path / "out", samples_per_shard=33)
    assert read_manifest(tmp_path / "out") == manifest
    for split in layouts.find_splits(source).values():
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(split.annotation_file))
        info = manifest.splits[split.name]
        assert info.images == len(truth.imgs) and info.instances == len(truth.anns)
        assert info.crowd == sum(a["iscrowd"] for a in truth.anns.values())
        index = coco.load(split.annotation_file, split.image_folder)
        seen = 0
        for shard in info.shards:
            data = (tmp_path / "out" / shard.name).read_bytes()
            assert len(data) == shard.bytes and hashlib.sha256(data).hexdigest() == shard.sha256
            content = (tmp_path / "out" / shard.index).read_bytes()
            assert hashlib.sha256(content).hexdigest() == shard.index_sha256
            rows = read_index(content, shard)
            assert np.array_equal(rows, build_index(data))
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                members = archive.getmembers()
                assert len(members) == 2 * shard.samples
                for row, picture_, text in zip(rows, members[::2], members[1::2], strict=True):
                    assert (picture_.offset_data, picture_.size) == (row[0], row[1])
                    assert (text.offset_data, text.size) == (row[2], row[3])
                    record = json.loads(archive.extractfile(text).read())  # type: ignore[union-attr]
                    assert record == index.record(seen)
                    seen += 1
                    original = split.image_folder / truth.imgs[record["image_id"]]["file_name"]
                    assert archive.extractfile(picture_).read() == original.read_bytes()  # type: ignore[union-attr]
                    assert (record["width"], record["height"], record["image_id"]) == tuple(row)[
                        4:7
                    ]
                    for made in record["annotations"]:
                        expected = truth.annToRLE(truth.anns[made["id"]])
                        made_rle = made["segmentation"]
                        assert made_rle["size"] == list(expected["size"])
                        assert coco_mask.iou([made_rle], [expected], [0]) == 1
                        assert coco_mask.area(made_rle) == coco_mask.area(expected)
        assert seen == info.images


def test_the_webdataset_library_reads_them(tmp_path: Path) -> None:
    many(tmp_path / "coco")
    cli.shard(tmp_path / "coco", tmp_path / "out", samples_per_shard=3)
    names = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    assert len(names) == 3
    samples = list(webdataset.WebDataset(names, shardshuffle=False))
    assert [s["__key__"] for s in samples] == [f"pic_{n}" for n in range(7)]
    for n, sample in enumerate(samples):
        record = json.loads(sample["json"])
        (extension,) = {"jpg", "png", "bmp", "webp"} & set(sample)
        assert sample[extension] == (tmp_path / "coco/train" / record["file_name"]).read_bytes()
        assert record["image_id"] == n * 10 and len(record["annotations"]) == n % 3


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    many(tmp_path / "one")
    many(tmp_path / "two")
    for name in ("one", "two"):
        cli.shard(tmp_path / name, tmp_path / f"{name}_out", samples_per_shard=3)
    assert contents(tmp_path / "one_out") == contents(tmp_path / "two_out")
    assert len(contents(tmp_path / "one_out")) == 7


def test_a_stopped_run_leaves_no_shards_and_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(tmp_path / "coco")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "backup-000000.tar").write_text("mine")
    calls = iter(range(2))

    def fail(*args: object, **options: object) -> Written:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return writer.write_shard(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "write_shard", fail)
    with pytest.raises(KeyboardInterrupt):
        cli.shard(tmp_path / "coco", tmp_path / "out", samples_per_shard=4)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [".autotimm-shard", "backup-000000.tar", "notes.txt"]


def test_categories_of_the_splits_are_joined_or_refused(tmp_path: Path) -> None:
    write(tmp_path / "coco", categories=[{"id": 3, "name": "disc"}, {"id": 9, "name": "x"}])
    write(
        tmp_path / "coco",
        categories=[{"id": 3, "name": "disc"}, {"id": 5, "name": "y"}],
        split="val",
    )
    manifest = cli.shard(tmp_path / "coco", tmp_path / "out")
    assert [(c.id, c.name) for c in manifest.categories] == [(3, "disc"), (5, "y"), (9, "x")]
    write(tmp_path / "coco", categories=[{"id": 3, "name": "square"}], split="val")
    with pytest.raises(InputError, match="category 3 is 'square', but 'disc' in another split"):
        cli.shard(tmp_path / "coco", tmp_path / "out", overwrite=True)
    assert read_manifest(tmp_path / "out") == manifest  # refused before anything was removed


def test_the_bundled_sample_is_whole() -> None:
    folder = Path(__file__).parents[2] / "shards" / "sample"
    manifest = read_manifest(folder)
    assert {name: split.images for name, split in manifest.splits.items()} == {"train": 8, "val": 4}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 200_000
    for split in manifest.splits.values():
        for shard in split.shards:
            data = (folder / shard.name).read_bytes()
            assert hashlib.sha256(data).hexdigest() == shard.sha256
            index = (folder / shard.index).read_bytes()
            assert hashlib.sha256(index).hexdigest() == shard.index_sha256
            assert np.array_equal(read_index(index, shard), build_index(data))


def test_the_code_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[2]
    (code,) = re.findall(r"```python\n(.*?)```", (root / "shards/README.md").read_text(), re.DOTALL)
    with contextlib.chdir(root):
        exec(compile(code, "README", "exec"), {})  # noqa: S102 (our own)
    assert capsys.readouterr().out.count("(160, 160)") == 8


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize(("cpus", "workers"), [(1, 1), (2, 2), (64, 8)])
def test_by_default_each_cpu_has_a_worker_up_to_eight(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cpus: int,
    workers: int,
) -> None:
    monkeypatch.setattr(run, "usable_cpus", lambda: cpus)
    folders = map(str, (many(tmp_path / "coco", 9), tmp_path / "out"))
    with pytest.raises(SystemExit):
        cli.main([*folders, "--samples-per-shard", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["workers"] == workers
