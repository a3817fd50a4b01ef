"""What a run prints: JSON, closed pipes, names that the locale lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from coco_folder import image, picture, write
from shard_commands import run, two_splits

from autotimm.format.manifest_file import read_manifest
from autotimm.sharding.outcome import Outcome, Part
from autotimm.sharding.summary import print_outcome

pytestmark = pytest.mark.usefixtures("one_worker")


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


@pytest.mark.parametrize(
    ("state", "part", "lines"),
    [
        ("written", None, ["wrote 2 shards, kept 3 of an earlier run in 4.0 s (5 images/s)"]),
        ("dry run", None, ["dry run: read in 4.0 s (5 images/s); 2 shards would be written"]),
        ("part", Part(1, 2), ["wrote 2 shards, kept 3 of", "part 1 of 2 is done; once all are"]),
        ("complete", None, ["out: already complete"]),
    ],
)
def test_the_last_lines_say_what_the_run_did(
    state: str, part: Part | None, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = Outcome(state, {}, new=2, kept=3, images=20, seconds=4.0, workers=1)
    print_outcome(outcome, "out", part)
    printed = capsys.readouterr().out.strip().splitlines()
    if state == "written":
        assert printed.pop() == "wrote out/manifest.json"
    for line, begin in zip(printed[-len(lines) :], lines, strict=True):
        assert line.startswith(begin)


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
    assert done.stderr.startswith("error: <stdout>: No space left on device: ")


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
