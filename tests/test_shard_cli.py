"""``autotimm-shard`` as a user meets it: what it prints, how it exits, what it leaves."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from coco_folder import SQUARE, annotation, image, picture, write

from autotimm.sharding import cli
from autotimm.sharding.manifest import read_manifest

COMMAND = [sys.executable, "-c", "from autotimm.sharding.cli import main; main()"]


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of the command, in this process."""
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
    assert ["split", "images", "instances", "crowd", "shards", "MB", "seconds", "images/s"] in rows
    assert [row[:5] for row in rows if row and row[0] in ("train", "val")] == [
        ["train", "1", "1", "0", "1"],
        ["val", "1", "1", "0", "1"],
    ]
    assert set(read_manifest(tmp_path / "deep" / "out").splits) == {"train", "val"}
    assert (tmp_path / "deep" / "out" / "manifest.json").stat().st_mode & 0o777 == 0o644


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
    (["a", "third"], "third"),
]


@pytest.mark.parametrize(("flags", "named"), BAD_FLAGS)
def test_bad_flags_are_one_line_and_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], named: str
) -> None:
    two_splits(tmp_path / "coco")
    code, out, err = run(tmp_path / "coco", tmp_path / "out", *flags, capsys=capsys)
    assert code == 2 and not out and err.count("\n") == 1 and named in err
    assert err.startswith("autotimm-shard: ") and not (tmp_path / "out").exists()


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


def test_shards_are_not_overwritten_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_splits(tmp_path / "coco")
    run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    code, _, err = run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    assert code == 2 and err.count("\n") == 1 and "--overwrite" in err
    (tmp_path / "out" / "manifest.json").unlink()  # shards without one are shards too
    code, _, err = run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    assert code == 2 and "--overwrite" in err
    (tmp_path / "out" / "manifest.json").write_text("broken")
    (tmp_path / "out" / ".train-000007.tar.abc.tmp").touch()  # of a run that was killed
    (tmp_path / "out" / "mine.tar").touch()
    code, _, _ = run(tmp_path / "coco", tmp_path / "out", "--overwrite", capsys=capsys)
    assert code == 0 and len(read_manifest(tmp_path / "out").splits) == 2
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert "mine.tar" in names and not any(".tmp" in name for name in names)


def test_what_is_odd_is_said_with_examples(
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
    assert "cannot train masks" not in out
    write(tmp_path / "coco", annotations=odd)
    _, out, _ = run(tmp_path / "coco", tmp_path / "out", "--overwrite", capsys=capsys)
    assert "train: no instance has a mask, so this split cannot train masks" in out
    write(tmp_path / "coco", annotations=[annotation(iscrowd=1)])
    _, out, _ = run(tmp_path / "coco", tmp_path / "out", "--overwrite", capsys=capsys)
    assert "train: no instance that is not a crowd has a mask, so this split cannot" in out


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


def test_a_split_of_no_usable_image_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "coco", files={"a.jpg": b"broken"})
    code, _, err = run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    assert code == 2 and err.count("\n") == 1 and "no image can be used: image cannot be" in err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("address", ["s3://foo/bar", "https://a.example/b", "file:///tmp/x", ""])
def test_addresses_are_not_folders(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    address: str,
) -> None:
    write(tmp_path / "coco")
    monkeypatch.chdir(tmp_path)
    for arguments, name in ((["coco", address], "DST"), ([address, "out"], "SRC")):
        code, out, err = run(*arguments, capsys=capsys)
        assert code == 2 and not out and err.count("\n") == 1
        assert err.startswith(f"autotimm-shard: {name}: {address or 'empty'}")
    assert [path.name for path in tmp_path.iterdir()] == ["coco"]


def test_a_full_disk_names_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write(tmp_path / "coco")
    monkeypatch.setattr(os, "writev", full)
    code, out, err = run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    assert code == 2 and not out
    assert err == f"autotimm-shard: {tmp_path / 'out'}: No space left on device\n"
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "coco")
    (tmp_path / "out").mkdir(mode=0o500)
    code, _, err = run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    assert code == 2 and "Permission denied" in err and err.count("\n") == 1


def test_help_tells_flags_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("--help", capsys=capsys)
    flags = "--splits --samples-per-shard --max-shard-size --overwrite --strict --limit"
    assert code == 0 and all(flag in out for flag in flags.split())
    assert "Exit codes: 0 done, 2 the input cannot be used, 130 interrupted" in out


def test_it_needs_no_torch() -> None:
    check = "import sys, autotimm.sharding.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_ctrl_c_is_one_line_and_130(tmp_path: Path) -> None:
    count = 1500
    images = [image(id=n, width=1600, height=1200) for n in range(count)]
    write(tmp_path / "coco", images, [], files={"a.jpg": picture(1600, 1200, quality=90)})
    out = tmp_path / "out"
    with subprocess.Popen(
        [*COMMAND, tmp_path / "coco", out, "--samples-per-shard", "5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not list(out.glob(".*/*.tar")):  # it has begun
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate()
    assert process.returncode == 130 and not stdout
    assert stderr == "autotimm-shard: interrupted: the shards of this run are removed again\n"
    assert not list(out.iterdir())


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
    write(tmp_path / "odd", split="val", **content)  # train is written before val fails
    code, _, err = run(tmp_path / "odd", out, "--overwrite", *flags, capsys=capsys)
    assert code == 2 and err.count("\n") == 1 and message in err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    write(tmp_path / "sound", [image(id=77)], [])
    write(tmp_path / "sound", [image(id=78)], [], split="val")
    (out / ".autotimm-shard-killed" / "old").mkdir(parents=True)
    assert run(tmp_path / "sound", out, "--overwrite", *flags, capsys=capsys)[0] == 0
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after.keys() == before.keys() and after["mine.txt"] == b"mine"
    assert b'"image_id":77' in after["train-000000.tar"]
    assert [split.instances for split in read_manifest(out).splits.values()] == [0, 0]


@pytest.mark.parametrize("count", range(10))
def test_an_interrupted_replacement_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    out = tmp_path / "out"
    cli.shard(two_splits(tmp_path / "coco"), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write(tmp_path / "coco", [image(id=77)], [])
    rename = Path.rename
    calls = []

    def fail(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == count // 2 * 2 + 1:  # before the move, and after it
            if count % 2:
                rename(path, target)
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        cli.shard(tmp_path / "coco", out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_overwrite_loses_no_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    run(two_splits(tmp_path / "coco"), out, capsys=capsys)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    only_val = ["--overwrite", "--splits", "val"]
    code, _, err = run(tmp_path / "coco", out, *only_val, capsys=capsys)
    assert code == 2 and err.count("\n") == 1 and "would lose its split 'train'" in err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "manifest.json").write_text("broken")  # what it held is not known: only val is replaced
    assert run(tmp_path / "coco", out, *only_val, capsys=capsys)[0] == 0
    assert list(read_manifest(out).splits) == ["val"] and (out / "train-000000.tar").exists()


def test_one_run_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [image(id=n, width=1600, height=1200) for n in range(1500)]
    write(tmp_path / "many", images, [], files={"a.jpg": picture(1600, 1200, quality=90)})
    write(tmp_path / "coco")
    out = tmp_path / "out"
    with subprocess.Popen([*COMMAND, tmp_path / "many", out, "--samples-per-shard", "5"]) as first:
        try:
            while not list(out.glob(".*/*.tar")):  # it has begun
                assert first.poll() is None
                time.sleep(0.002)
            first.send_signal(signal.SIGSTOP)  # it cannot end while the other is tried
            code, _, err = run(tmp_path / "coco", out, "--overwrite", capsys=capsys)
            assert code == 2 and err.count("\n") == 1
            assert f"{out}: another autotimm-shard is writing there" in err
        finally:
            first.kill()
    assert list(out.glob(".*/*.tar"))  # killed, it left them, and its lock went
    assert run(tmp_path / "coco", out, capsys=capsys)[0] == 0
    assert {path.name for path in out.iterdir()} == {
        "manifest.json",
        "train-000000.idx.npy",
        "train-000000.tar",
    }
