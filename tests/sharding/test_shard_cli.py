"""The command ``autotimm-shard``: its output, exit codes, and files."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from coco_folder import SQUARE, annotation, image, picture, write

from autotimm.format.manifest_file import read_manifest
from autotimm.sharding import cli

pytestmark = pytest.mark.usefixtures("one_worker")


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Runs the command in this process; returns exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(exit_.value.code or 0), out, err


def two_splits(root: Path) -> Path:
    write(root, files={"a.jpg": picture()})
    return write(root, split="val")


def test_a_sound_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_splits(tmp_path / "coco")
    code, out, err = run(tmp_path / "coco", tmp_path / "deep" / "out", capsys=capsys)
    assert code == 0 and not err  # no bar where there is no terminal
    rows = [line.split() for line in out.splitlines()]
    assert ["split", "images", "instances", "crowd", "shards", "MB"] in rows
    assert [row[:5] for row in rows if row and row[0] in ("train", "val")] == [
        ["train", "1", "1", "0", "1"],
        ["val", "1", "1", "0", "1"],
    ]
    assert set(read_manifest(tmp_path / "deep" / "out").splits) == {"train", "val"}


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    two_splits(tmp_path / "coco")
    command = [sys.executable, "-m", "autotimm.sharding.cli", tmp_path / "coco", tmp_path / "out"]
    subprocess.run(command, check=True, capture_output=True)
    assert set(read_manifest(tmp_path / "out").splits) == {"train", "val"}


def test_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [image(id=n, file_name=f"{n}.jpg") for n in range(9)]
    files = {f"{n}.jpg": picture() for n in range(9)}
    write(tmp_path / "coco", images, [], files=files)
    write(tmp_path / "coco", split="val")
    options = ["--splits", "train", "--samples-per-shard", 3, "--limit", 7]
    code, _, _ = run(tmp_path / "coco", tmp_path / "out", *options, capsys=capsys)
    manifest = read_manifest(tmp_path / "out")
    assert code == 0 and list(manifest.splits) == ["train"]
    assert [s.samples for s in manifest.splits["train"].shards] == [3, 3, 1]
    options = ["--overwrite", "--max-shard-size", "40kB"]
    code, _, _ = run(tmp_path / "coco", tmp_path / "out", *options, capsys=capsys)
    manifest = read_manifest(tmp_path / "out")
    assert code == 0 and list(manifest.splits) == ["train", "val"]
    assert manifest.splits["train"].images == 9
    assert all(s.bytes <= 40_000 for s in manifest.splits["train"].shards)
    named = {s.name for split in manifest.splits.values() for s in split.shards}
    assert {p.name for p in (tmp_path / "out").glob("*.tar")} == named, "nothing old is left"


BAD_FLAGS = [
    (["--max-shard-size", "0"], "--max-shard-size"),
    (["--max-shard-size", "many"], "--max-shard-size"),
    (["--samples-per-shard", "0"], "--samples-per-shard"),
    (["--samples-per-shard", "1.5"], "--samples-per-shard"),
    (["--limit", "-1"], "--limit"),
    (["--splits", "train,,val"], "--splits"),
    (["--splits", ""], "--splits"),
    (["--splits", "test"], "has no 'test', but train, val"),
    (["--nonsense"], "--nonsense"),
    (["--shuffle", "-1"], "--shuffle"),
    (["--workers", "0"], "--workers"),
    (["--part", "3/2"], "--part"),
    (["--part", "0/2"], "--part"),
    (["--split", "train"], "--split"),  # no abbreviations, which a later flag could make ambiguous
    (["--splits", "train", "--splits", "val"], "--splits: is given more than once"),
    (["--limit", "3", "--strict", "--limit=4"], "--limit: is given more than once"),
    (["--strict", "--strict"], "--strict: is given more than once"),
    (["third"], "third: one argument too many"),
    (["--verify"], "--verify: takes one folder"),
    (["--verify", "--limit", "3"], "--limit: not with --verify"),
    (["--verify", "--strict"], "--strict: not with --verify"),
    (["--dry-run", "--overwrite"], "--overwrite: not with --dry-run"),
    (["--dry-run", "--part", "1/2"], "--part: not with --dry-run"),
    (["--images", "x"], "--images: needs --annotations"),
    (["--annotations", "x"], "--annotations: needs --images"),
    (["--annotations", "x", "--images", "y"], "DST is the only folder"),
]


@pytest.mark.parametrize(("flags", "named"), BAD_FLAGS)
def test_bad_flags_are_one_line_and_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], named: str
) -> None:
    two_splits(tmp_path / "coco")
    code, out, err = run(tmp_path / "coco", tmp_path / "out", *flags, capsys=capsys)
    assert code == 2 and not out and err.count("\n") == 1 and named in err
    assert err.startswith("autotimm-shard: ") and not (tmp_path / "out").exists()


def test_messages_name_the_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Messages name the next step for other layouts, wrong split names and unfinished folders."""
    write(tmp_path / "coco", split="train2017")
    (tmp_path / "other").mkdir()
    _, _, err = run(tmp_path / "other", tmp_path / "out", capsys=capsys)
    assert err.endswith("another layout takes --annotations and --images\n")
    named = (tmp_path / "coco", tmp_path / "out", "--splits", "train2017")
    code, out, _ = run(*named, capsys=capsys)
    assert code == 0 and "wrote 1 shard in" in out and (tmp_path / "out/train-000000.tar").exists()
    code, out, _ = run(*named, capsys=capsys)
    assert code == 0 and "same options, annotations and sizes of images; --overwrite" in out
    (tmp_path / "begun/.autotimm-shard").mkdir(parents=True)
    code, _, err = run("--verify", tmp_path / "begun", capsys=capsys)
    assert code == 2 and "holds an unfinished run: run autotimm-shard again as it was" in err


def test_bad_folders_are_one_line_and_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_splits(tmp_path / "coco")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    write(tmp_path / "half")
    (tmp_path / "half/annotations/instances_val.json").write_text("{}")
    write(tmp_path / "broken")
    (tmp_path / "broken/annotations/instances_train.json").write_text("{")
    cases = {
        (tmp_path / "gone", tmp_path / "out"): "no such folder",
        (tmp_path / "empty", tmp_path / "out"): "no annotations/instances_*.json",
        (tmp_path / "file", tmp_path / "out"): "no such folder",
        (tmp_path / "broken", tmp_path / "out"): "not a JSON file",
        (tmp_path / "half", tmp_path / "out"): "half/val: no such folder, and the images",
        (tmp_path / "coco", tmp_path / "coco"): "is the COCO folder itself",
        (tmp_path / "coco", tmp_path / "file"): "is a file",
        (tmp_path / "coco", tmp_path / "file" / "out"): "Not a directory",
    }
    for (src, dst), message in cases.items():
        code, out, err = run(src, dst, capsys=capsys)
        assert code == 2 and not out and err.count("\n") == 1 and message in err, err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", ".", ".hid", "a\\b"])
@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_file_that_names_no_split_is_refused_before_it_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, flags: tuple[str, ...]
) -> None:
    coco, out = two_splits(tmp_path / "coco"), tmp_path / "out"
    (coco / "train").rename(coco / "images")
    file = coco / f"annotations/instances_{name}.json"
    file.write_text("not read")
    code, _, err = run(coco, *([] if flags else [out]), *flags, capsys=capsys)
    assert code == 2 and err.count("\n") == 1 and f"{file}: names a split" in err
    assert not out.exists()
    assert run(coco, out, "--splits", "train", capsys=capsys)[0] == 0
    assert list(read_manifest(out).splits) == ["train"]


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


def test_problems_are_listed_with_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = [annotation(id=n, segmentation=[]) for n in range(2, 7)]
    images = [image(), image(id=2, file_name="[red]gone.jpg")]
    write(tmp_path / "coco", images, [annotation(), *odd])
    code, out, _ = run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    lines = out.splitlines()
    assert code == 0
    assert "train: image file missing (image left out): 1 ([red]gone.jpg)" in lines
    assert (
        "train: no segmentation (instance left out): 5 "
        "(annotation 2 of a.jpg, annotation 3 of a.jpg, annotation 4 of a.jpg, ...)" in lines
    )
    assert "trains nothing" not in out
    write(tmp_path / "coco", annotations=[])
    _, out, _ = run(tmp_path / "coco", tmp_path / "out", "--overwrite", capsys=capsys)
    assert "train: there are no instances at all, so this split trains nothing" in out.splitlines()
    write(tmp_path / "coco", annotations=[annotation(iscrowd=1)])
    _, out, _ = run(tmp_path / "coco", tmp_path / "out", "--overwrite", capsys=capsys)
    assert (
        "train: there are no instances but crowds, so this split trains nothing" in out.splitlines()
    )


@pytest.mark.parametrize(
    "content",
    [
        {"annotations": [annotation(segmentation=[SQUARE[0], [1, 2]])]},
        {"images": [image(), image(id=2, file_name="gone.jpg")]},
        {"images": [image(), image(id=2, width=65)]},
    ],
)
def test_strict_refuses_anything_odd(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict
) -> None:
    write(tmp_path / "coco", **content)
    code, out, err = run(tmp_path / "coco", tmp_path / "out", "--strict", capsys=capsys)
    assert code == 2 and not out and err.count("\n") == 1 and "--strict: split 'train'" in err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    write(tmp_path / "sound")
    assert run(tmp_path / "sound", tmp_path / "out", "--strict", capsys=capsys)[0] == 0


def test_what_is_no_plain_annotation_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "coco")
    file = tmp_path / "coco" / "annotations" / "instances_train.json"
    file.unlink()
    os.mkfifo(file)
    named = ["--annotations", "/dev/zero", "--images", tmp_path / "coco" / "train"]
    for arguments in ([tmp_path / "coco"], named):
        code, out, err = run(*arguments, tmp_path / "out", capsys=capsys)
        assert code == 2 and not out and err.count("\n") == 1 and "is no plain file" in err
    assert not (tmp_path / "out").exists()


def test_a_shard_without_a_usable_image_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [image(id=n, file_name=f"{n}.jpg") for n in range(9)]
    files = {f"{n}.jpg": b"broken" if n in (0, 3, 4, 5) else picture() for n in range(9)}
    write(tmp_path / "coco", images, [], files=files)
    out, flags = tmp_path / "out", ["--samples-per-shard", 3]
    for arguments in (["--dry-run"], [tmp_path / "all"], [out, "--part", "2/3"], [out]):
        code, printed, _ = run(tmp_path / "coco", *arguments, *flags, capsys=capsys)
        words = {"--dry-run": "; 2 shards would", "--part": "wrote 0 shards"}
        expected = next((words[a] for a in arguments if a in words), "wrote 2 shards in")
        assert code == 0 and expected in printed
    shards = read_manifest(out).splits["train"].shards
    assert [shard.name for shard in shards] == ["train-000000.tar", "train-000002.tar"]
    assert (out / "manifest.json").read_bytes() == (tmp_path / "all/manifest.json").read_bytes()
    code, printed, _ = run("--verify", out, capsys=capsys)
    assert code == 0 and "2 shards, 5 images" in printed


def test_new_ids_have_64_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    least, most = -(2**63), 2**63 - 1
    images = [image(id=least), image(id=most, file_name="b.jpg")]
    ids = [most, 1, most, 3, most]
    annotations = [annotation(id=id_, image_id=least) for id_ in ids]
    files = {"a.jpg": picture(), "b.jpg": picture()}
    write(tmp_path / "coco", images, annotations, files=files)
    code, out, _ = run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    assert code == 0 and "annotation id occurs twice (numbered anew): 2" in out
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        member = tar.extractfile("a.json")
        record = json.loads(member.read() if member else b"")
    assert [a["id"] for a in record["annotations"]] == [most, 1, 2, 3, 4]
    code, out, _ = run("--verify", tmp_path / "out", capsys=capsys)
    assert code == 0, out


def test_a_split_of_no_usable_image_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "coco", files={"a.jpg": b"broken"})
    code, _, err = run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    assert code == 2 and err.count("\n") == 1 and "no image can be used: image cannot be" in err
    assert not list((tmp_path / "out").iterdir())


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


def test_a_full_disk_names_the_folder(
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
        f"autotimm-shard: {tmp_path / 'out'}: No space left on device; 0 of 1 shards are finished "
        "and kept: run the same command again to go on\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "coco")
    (tmp_path / "out").mkdir(mode=0o500)
    code, _, err = run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    assert code == 2 and "Permission denied" in err and err.count("\n") == 1


def test_help_lists_flags_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("--help", capsys=capsys)
    flags = (
        "--splits --samples-per-shard --max-shard-size --overwrite --strict --limit --annotations "
        "--images --shuffle --workers --part --dry-run --verify --json"
    )
    assert code == 0 and all(flag in out for flag in flags.split())
    codes = ("0 done", "1 --verify", "2 the input cannot be used", "130 interrupted", "143 termin")
    assert all(code in out.partition("Exit codes: ")[2] for code in codes)


def test_it_needs_no_torch() -> None:
    check = "import sys, autotimm.sharding.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


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
    write(tmp_path / "sound", [image(id=78)], [], split="val")
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


def test_a_dry_run_reads_all_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [image(), image(id=2, file_name="broken.jpg"), image(id=3, file_name="gone.jpg")]
    odd = [annotation(), annotation(id=2, segmentation=[])]
    write(tmp_path / "coco", images, odd, files={"a.jpg": picture(), "broken.jpg": b"broken"})
    flags = ["--samples-per-shard", 1]
    code, dry, err = run(tmp_path / "coco", "--dry-run", "--json", *flags, capsys=capsys)
    assert code == 0 and not err and [path.name for path in tmp_path.iterdir()] == ["coco"]
    code, out, _ = run(tmp_path / "coco", tmp_path / "out", "--dry-run", *flags, capsys=capsys)
    assert code == 0 and "; 1 shards would be written" in out and not (tmp_path / "out").exists()
    code, wet, _ = run(tmp_path / "coco", tmp_path / "out", "--json", *flags, capsys=capsys)
    printed, expected = json.loads(dry), json.loads(wet)
    assert printed["state"] == "dry run" and expected["state"] == "written"
    ours = expected["splits"]["train"]
    sizes = {"shards": ours["shards"], "bytes": ours["bytes"]}
    assert printed["splits"]["train"] | sizes == ours and printed["planned_shards"] == 1
    assert {name: ours[name] for name in ("images", "instances", "crowd", "shards")} == {
        "images": 1,
        "instances": 1,
        "crowd": 0,
        "shards": 1,
    }
    assert ours["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    assert ours["problems"] == {
        "image file missing (image left out)": {"count": 1, "examples": ["gone.jpg"]},
        "no segmentation (instance left out)": {
            "count": 1,
            "examples": ["annotation 2 of a.jpg"],
        },
        "image cannot be opened (image left out)": {"count": 1, "examples": ["broken.jpg"]},
    }
    code, _, err = run(tmp_path / "coco", "--dry-run", "--strict", capsys=capsys)
    assert code == 2 and "--strict: split 'train'" in err
    write(tmp_path / "coco", files={"a.jpg": b"broken"})
    code, _, err = run(tmp_path / "coco", "--dry-run", capsys=capsys)
    assert code == 2 and "no image can be used: image cannot be" in err


def test_verify_exits_with_1_at_any_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(two_splits(tmp_path / "coco"), out, capsys=capsys)
    code, printed, err = run("--verify", out, capsys=capsys)
    assert code == 0 and not err and "sound: 2 shards, 2 images, 2 instances" in printed
    data = bytearray((out / "train-000000.tar").read_bytes())
    data[700] ^= 1
    (out / "train-000000.tar").write_bytes(data)
    code, printed, err = run("--verify", out, "--workers", 1, capsys=capsys)
    assert code == 1 and not err and printed.startswith("train-000000.tar: ")
    code, printed, _ = run("--verify", out, "--json", capsys=capsys)
    report = json.loads(printed)
    assert code == 1 and report["state"] == "damaged" and report["shards"] == 2
    assert all("train-000000" in fault for fault in report["faults"])
    code, _, err = run("--verify", tmp_path / "coco", capsys=capsys)
    assert code == 2 and err.count("\n") == 1
    code, _, err = run("--verify", "s3://bucket/shards", capsys=capsys)
    assert code == 2 and err.count("\n") == 1 and "s3 URLs" in err


def test_other_layouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The layouts of Roboflow, CVAT and others, with files and folders given one by one."""
    two_splits(tmp_path / "coco")
    old = tmp_path / "coco" / "annotations"
    for folder, split in (("one", "train"), ("two", "val")):
        (tmp_path / folder).mkdir()
        (old / f"instances_{split}.json").rename(tmp_path / folder / "_annotations.coco.json")
    files = [tmp_path / "one/_annotations.coco.json", tmp_path / "two/_annotations.coco.json"]
    folders = [tmp_path / "coco/train", tmp_path / "coco/val"]
    given = ["--annotations", files[0], "--annotations", files[1]]
    images = ["--images", folders[0], "--images", folders[1]]
    out = tmp_path / "out"
    code, _, err = run(*given, *images, out, capsys=capsys)
    assert code == 2 and "would share the name '_annotations.coco'; --splits" in err
    three = [old / f"instances_{name}.json" for name in ("train", "val", "val")]
    several = [part for file in three for part in ("--annotations", file)]
    code, _, err = run(*several, *images[:2], out, capsys=capsys)
    assert code == 2 and f"{three[1]}, {three[2]} would share the name 'val'" in err
    assert str(three[0]) not in err
    for names, message in (("a", "1 names for 2"), ("a,../b", "'../b' is")):
        code, _, err = run(*given, *images, out, "--splits", names, capsys=capsys)
        assert code == 2 and err.count("\n") == 1 and message in err
    three = [*images, "--images", folders[1]]
    code, _, err = run(*given, *three, out, "--splits", "a,b", capsys=capsys)
    assert code == 2 and "--images: 3 folders for 2 files" in err and not out.exists()
    assert run(*given, *images, out, "--splits", "a,b", capsys=capsys)[0] == 0
    assert list(read_manifest(out).splits) == ["a", "b"]
    joined, twice = tmp_path / "joined", [*given[:2], *given[:2]]
    code, shown, _ = run(*given, *images, joined, "--splits", "a,a", capsys=capsys)
    assert code == 0 and "image id is in several annotation files (numbered anew): 1" in shown
    assert {n: s.images for n, s in read_manifest(joined).splits.items()} == {"a": 2}
    assert run(*given, *images, joined, "--splits", "a,a", capsys=capsys)[0] == 0, "as before"
    code, _, err = run(*twice, *images[:2], out, "--splits", "a,a", capsys=capsys)
    assert code == 2 and "is given twice for the split 'a'" in err and err.count("\n") == 1
    files[0].rename(tmp_path / "instances_fruit2017.json")
    one = ["--annotations", tmp_path / "instances_fruit2017.json", "--images", folders[0]]
    assert run(*one, tmp_path / "single", capsys=capsys)[0] == 0
    assert list(read_manifest(tmp_path / "single").splits) == ["fruit"]
    shared = ["--images", folders[0], "--splits", "a,b"]
    given[1] = tmp_path / "instances_fruit2017.json"
    assert run(*given, *shared, tmp_path / "shared", capsys=capsys)[0] == 0


def test_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_splits(tmp_path / "coco")
    code, out, _ = run(tmp_path / "coco", tmp_path / "out", "--json", capsys=capsys)
    printed = json.loads(out)
    assert code == 0 and printed["state"] == "written" and printed["seconds"] > 0
    counts = [printed[key] for key in ("written_shards", "kept_shards", "written_images")]
    assert counts == [2, 0, 2]
    assert printed["splits"]["val"] == {
        "images": 1,
        "instances": 1,
        "crowd": 0,
        "deep_images": 0,
        "ignored": 0,
        "untrained": [],
        "shards": 1,
        "bytes": (tmp_path / "out" / "val-000000.tar").stat().st_size,
        "problems": {},
    }


def process(*arguments: object, stdout: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from autotimm.sharding.cli import main; main()"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        **options,
    )


def test_a_closed_pipe_changes_no_exit_code(tmp_path: Path) -> None:
    write(tmp_path / "coco")
    out = tmp_path / "out"
    runs: list[tuple[int, list[object]]] = [
        (0, [tmp_path / "coco", out]),
        (0, [tmp_path / "coco", tmp_path / "other", "--json"]),
        (0, ["--verify", out]),
        (0, ["--help"]),
        (0, ["--version"]),
        (1, ["--verify", out]),
        (1, ["--verify", out, "--json"]),
    ]
    for code, arguments in runs:
        if code:
            os.truncate(out / "train-000000.tar", 512)
        reading, writing = os.pipe()
        os.close(reading)
        done = process(*arguments, stdout=writing)
        os.close(writing)
        assert (done.returncode, done.stderr) == (code, ""), arguments
    assert set(read_manifest(tmp_path / "other").splits) == {"train"}
    with Path("/dev/full").open("w") as full:
        done = process("--verify", out, stdout=full)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr == "autotimm-shard: <stdout>: No space left on device\n"


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_names_that_the_locale_lacks_are_one_line(tmp_path: Path) -> None:
    for number, name in enumerate(("é.jpg", "é/a.jpg", "a/日.jpg")):
        coco = tmp_path / f"é{number}"  # the folder's name is encoded in the locale's encoding
        write(coco, [image(), image(id=2, file_name=name)], files={"a.jpg": picture(), name: b""})
        done = process(coco, tmp_path / "out", stdout=subprocess.PIPE, env=os.environ | ASCII)
        assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
        assert f"{name!a} where the locale's encoding is ascii; set PYTHONUTF8=1" in done.stderr
    write(tmp_path / "odd", split="tr\udcff")
    done = process(tmp_path / "odd", tmp_path / "out", stdout=subprocess.PIPE)
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert "instances_tr\\udcff.json: its name is no text" in done.stderr
    sound = write(tmp_path / "sound é", [image(), image(id=2, file_name="b.jpg")], [])
    content = sound / "annotations" / "instances_train.json"
    content.write_text(content.read_text().replace('"id": 2', '"id": "é"'))
    done = process(sound, tmp_path / "é", stdout=subprocess.PIPE, env=os.environ | ASCII)
    assert done.returncode == 0 and not done.stderr and "manifest.json" in done.stdout
