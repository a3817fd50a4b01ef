"""What an earlier run has left: it goes on if it was of the same job, else says what differs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from shard_runs import (
    PAIRS,
    WORK,
    files_of,
    shard,
    source,
    stop_after,
)

from autotimm.sharding import job, run

pytestmark = pytest.mark.usefixtures("own_threads", "one_worker")


CHANGES = [
    (("--samples-per-shard", 3), None, "--samples-per-shard was 2, now 3"),
    ((*PAIRS, "--limit", 5), None, "--limit was not given, now 5"),
    ((*PAIRS, "--shuffle", 0), None, "--shuffle was not given, now 0"),
    ((*PAIRS, "--max-shard-size", "1MB"), None, "--max-shard-size was 536870912, now 1000000"),
    ((*PAIRS, "--splits", "train"), None, "the splits were train, val, now train"),
    (PAIRS, "annotations/instances_val.json", "instances_val.json has changed since"),
    (PAIRS, "train/3.jpg", "images of split 'train' were added, removed or changed in size since"),
]


@pytest.mark.parametrize(("flags", "file", "message"), CHANGES)
def test_a_changed_source_or_option_is_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple,
    file: str | None,
    message: str,
) -> None:
    coco, out = source(tmp_path / "coco"), tmp_path / "out"
    stop_after(2, coco, out, *PAIRS, monkeypatch=monkeypatch)
    if file:
        with (coco / file).open("ab") as appended:
            appended.write(b"\n")
    before = {path.name for path in (out / WORK).iterdir()}
    capsys.readouterr()
    assert shard(coco, out, *flags) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err and "--overwrite" in err
    assert {path.name for path in (out / WORK).iterdir()} == before, "nothing is lost unasked"
    assert shard(coco, out, *flags, "--overwrite") == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "discarded" in err and message in err
    assert shard(coco, tmp_path / "fresh", *flags) == 0
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_a_changed_image_is_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    coco, out = source(tmp_path / "coco"), tmp_path / "out"
    stop_after(3, coco, out, *PAIRS, monkeypatch=monkeypatch)
    path = coco / "train" / "2.jpg"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1  # another picture of the same size, in the second shard
    path.write_bytes(data)
    capsys.readouterr()
    assert shard(coco, out, *PAIRS, "--json") == 0
    told, err = capsys.readouterr()
    assert json.loads(told)["kept_shards"] == 2
    assert "written again: train-000001.tar (1 of 3 finished shards)" in err
    assert shard(coco, tmp_path / "fresh", *PAIRS) == 0
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_an_image_that_changes_while_its_shard_is_written_is_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    coco, out = source(tmp_path / "coco"), tmp_path / "out"
    path, real = coco / "train" / "0.jpg", run.write_shard

    def write_shard(folder: Path, plan: job.ShardPlan, *rest: object) -> object:
        written = real(folder, plan, *rest)  # type: ignore[arg-type]
        if plan.name == "train-000000.tar":
            os.utime(path, (0, 0))
        return written

    with monkeypatch.context() as patched:
        patched.setattr(run, "write_shard", write_shard)
        stop_after(2, coco, out, *PAIRS, monkeypatch=monkeypatch)
    capsys.readouterr()
    assert shard(coco, out, *PAIRS) == 0
    err = capsys.readouterr().err
    assert "written again: train-000000.tar (1 of 2 finished shards)" in err


@pytest.mark.parametrize("damage", ["cut", "gone", "entry", "job"])
def test_a_damaged_journal_or_shard_is_written_again(
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    out = tmp_path / "out"
    stop_after(3, tmp_path / "coco", out, *PAIRS, monkeypatch=monkeypatch)
    if damage == "cut":
        os.truncate(out / WORK / "train-000001.tar", 512)
    elif damage == "gone":
        (out / WORK / "train-000001.idx.npy").unlink()
    elif damage == "entry":
        (out / WORK / "train-000001.json").write_text('{"images": "many"}')
    else:
        (out / WORK / "job.json").write_text("{")
    overwrite = ["--overwrite"] * (damage == "job")
    assert shard(tmp_path / "coco", out, *PAIRS, *overwrite) == 0
    assert files_of(out) == undisturbed


def test_an_input_error_discards_the_unfinished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    coco, out = source(tmp_path / "coco"), tmp_path / "out"
    stop_after(4, coco, out, *PAIRS, "--splits", "val,train", monkeypatch=monkeypatch)
    capsys.readouterr()
    assert shard(coco, out, *PAIRS, "--splits", "val,train", "--strict") == 2
    assert "--strict: split 'train': image cannot be opened" in capsys.readouterr().err
    assert not list(out.iterdir())


def test_a_complete_folder_that_lost_a_shard_is_not_complete(
    tmp_path: Path, undisturbed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    truth = tmp_path / "truth"
    (truth / "train-000002.tar").unlink()
    capsys.readouterr()
    assert shard(tmp_path / "coco", truth, *PAIRS) == 2
    assert "train-000002.tar is missing or of another size; --over" in capsys.readouterr().err
    assert shard(tmp_path / "coco", truth, *PAIRS, "--overwrite") == 0
    assert files_of(truth) == undisturbed
    assert shard(tmp_path / "coco", truth, *PAIRS, "--strict") == 2  # the source has problems
    assert "--strict: split 'train'" in capsys.readouterr().err


def test_what_leads_out_of_the_folder_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source(tmp_path / "coco")
    (tmp_path / "out").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    (tmp_path / "out" / WORK).symlink_to(tmp_path / "mine")
    for options in ([], ["--overwrite"], ["--part", "1/2"]):
        assert shard(tmp_path / "coco", tmp_path / "out", *options) == 2
        assert f"{WORK}: is not the folder of an unfinished run" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter"]
    (tmp_path / "out" / WORK).unlink()
    (tmp_path / "out" / WORK).write_text("a file")
    assert shard(tmp_path / "coco", tmp_path / "out") == 2
