"""A local folder as the destination: what is in the way, and what --overwrite keeps."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from coco_folder import annotation, image, picture, write
from shard_commands import run, two_splits
from shard_runs import WORK

from autotimm.format.manifest_file import read_manifest

pytestmark = pytest.mark.usefixtures("one_worker")


def test_shards_are_not_overwritten_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_splits(tmp_path / "coco")
    run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    two_splits(tmp_path / "other")
    write(tmp_path / "other", annotations=[])
    code, _, err = run(tmp_path / "other", tmp_path / "out", capsys=capsys)
    assert code == 2 and err.count("\n") == 1 and "--overwrite" in err
    assert "other/annotations/instances_train.json has changed since" in err
    code, _, err = run(tmp_path / "coco", tmp_path / "out", "--limit", 1, capsys=capsys)
    assert code == 2 and "--limit was not given, now 1" in err
    (tmp_path / "out" / "manifest.json").unlink()  # shards without a manifest count as shards too
    code, _, err = run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    assert code == 2 and "--overwrite" in err
    (tmp_path / "out" / "manifest.json").write_text("broken")
    (tmp_path / "out" / ".train-000007.tar.abc.tmp").touch()  # from a run that was killed
    (tmp_path / "out" / "mine.tar").touch()
    code, _, _ = run(tmp_path / "coco", tmp_path / "out", "--overwrite", capsys=capsys)
    assert code == 0 and len(read_manifest(tmp_path / "out").splits) == 2
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert "mine.tar" in names and not any(".tmp" in name for name in names)


@pytest.mark.parametrize(
    "address",
    [
        "https://a.example/b?secret",
        "simplecache::s3://user:secret@b/c",
        "nonsense://a/b",
        "memory://x",
        "",
    ],
)
def test_what_cannot_be_written_to_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    address: str,
) -> None:
    write(tmp_path / "coco")
    monkeypatch.chdir(tmp_path)
    for given in (["coco", address], [address, "out"]):
        code, out, err = run(*given, capsys=capsys)
        assert code == 2 and not out and err.count("\n") == 1
        assert "secret" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["coco"]


def test_a_full_disk_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def full(file: int, data: bytes) -> int:
        if len(data) < 10_000:  # no tar
            return real(file, data)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write(tmp_path / "coco")
    monkeypatch.setattr(os, "write", full)
    code, out, err = run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    assert code == 2 and not out
    assert err == (
        f"error: {tmp_path / 'out' / WORK / 'train-000000.tar'}: No space left on device: "
        "free some room there, or choose another folder; 0 of 1 shards are finished and kept: run "
        "the same command again to go on\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "coco")
    (tmp_path / "out").mkdir(mode=0o500)
    code, _, err = run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    assert code == 2 and "Permission denied" in err and err.count("\n") == 1


FAILURES = [
    ({"files": {"a.jpg": picture()[:-900]}}, (), "no image can be used: image cut off"),
    ({"annotations": [annotation(iscrowd=...)]}, ("--strict",), "iscrowd missing"),
]


@pytest.mark.parametrize(("content", "flags", "message"), FAILURES)
def test_a_failed_overwrite_leaves_the_old_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict, flags: tuple, message: str
) -> None:
    out = tmp_path / "out"
    run(two_splits(tmp_path / "coco"), out, capsys=capsys)
    (out / "mine.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    two_splits(tmp_path / "odd")
    write(tmp_path / "odd", split="val", **content)  # the run writes train before val fails
    code, _, err = run(tmp_path / "odd", out, "--overwrite", *flags, capsys=capsys)
    assert code == 2 and err.count("\n") == 1 and message in err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    write(tmp_path / "sound", [image(id=77)], [])
    other = {"a.jpg": picture(quality=80)}
    write(tmp_path / "sound", [image(id=78)], [], files=other, split="val")
    assert run(tmp_path / "sound", out, "--overwrite", *flags, capsys=capsys)[0] == 0
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after.keys() == before.keys() and after["mine.txt"] == b"mine"
    assert b'"image_id":77' in after["train-000000.tar"]
    assert [split.instances for split in read_manifest(out).splits.values()] == [0, 0]


def test_overwrite_loses_no_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    run(two_splits(tmp_path / "coco"), out, capsys=capsys)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    only_val = ["--overwrite", "--splits", "val"]
    code, _, err = run(tmp_path / "coco", out, *only_val, capsys=capsys)
    assert code == 2 and err.count("\n") == 1 and "would lose its split 'train'" in err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "manifest.json").write_text("broken")  # its splits are unknown, so only val is replaced
    assert run(tmp_path / "coco", out, *only_val, capsys=capsys)[0] == 0
    assert list(read_manifest(out).splits) == ["val"] and (out / "train-000000.tar").exists()
