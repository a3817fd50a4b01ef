"""The command line: flags, exit codes, one line an error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from coco_folder import annotation, image, picture, write
from shard_commands import run, two_splits

from autotimm.format.manifest_file import read_manifest

pytestmark = pytest.mark.usefixtures("one_worker")


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
    (["--nonsense"], "unrecognized arguments: --nonsense (autotimm-shard --help lists"),
    (
        ["--sample-per-shard=9"],
        "unrecognized arguments: --sample-per-shard (did you mean --samples",
    ),
    (["--max_shard_size", "1GB"], "--max_shard_size (did you mean --max-shard-size?) (autotimm-"),
    (["--dryrun"], "--dryrun (did you mean --dry-run?)"),
    (["--", "--dryrun", "x", "y"], "one argument too many"),
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
    assert err.startswith("error: ") and not (tmp_path / "out").exists()


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
