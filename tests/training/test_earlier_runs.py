"""Which runs ``ckpt_path=last`` goes on, finished runs, and the link to the newest one."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import SAMPLE
from line import Line, loader, quiet

from autotimm.cli import train
from autotimm.distributed.launcher import Launch
from autotimm.outputs.curves import read_curves
from autotimm.training.earlier_runs import finished, newest_below
from autotimm.training.newest_link import NEWEST, is_link_to_newest, link_newest
from autotimm.training.run_folder import find_run
from autotimm.training.run_record import next_number, read_record, write_record
from autotimm.training.start import starting_point

MODEL = {"backbone": "resnet18", "num_classes": 4, "lr": 0.1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint after two epochs of four steps each."""
    root = tmp_path_factory.mktemp("whole")
    trainer = quiet(root, max_epochs=2, logger=[])
    trainer.fit(Line(), loader(4))
    path, _ = newest_below(root)
    assert path is not None
    return path.read_bytes()


def run(root: Path, number: int, whole: bytes, **record: Any) -> Path:
    folder = root / f"version_{number}"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step_8.ckpt").write_bytes(whole)
    write_record(folder, {"number": number} | record)
    return folder / "checkpoints" / "step_8.ckpt"


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"settings": {"model": MODEL | {"backbone": "resnet50"}}}, "backbone resnet50, here resn"),
        ({"settings": {"model": MODEL | {"num_classes": 9}}}, "num_classes 9, here 4"),
        ({"settings": {"model": MODEL}, "data": "other"}, "other training data"),
        ({"settings": {"model": MODEL | {"lr": 0.2}}, "data": "same"}, None),
        ({"settings": {"model": MODEL | {"backbone": "resnet18.a1_in1k"}}}, None),  # its weights
        ({"settings": {"model": {"num_classes": 4}}}, None),  # an older version's, or half a one
        ({"settings": "odd", "data": None}, "other training data"),
        ({}, None),
    ],
)
def test_last_is_of_the_same_model_and_data(
    other: dict[str, Any], told: str | None, whole: bytes, tmp_path: Path
) -> None:
    same = {"settings": {"model": MODEL}, "data": "same"}
    older, newer = run(tmp_path, 1, whole, **same), run(tmp_path, 2, whole, **other)
    wanted = {"model": {"backbone": "resnet18", "num_classes": 4}, "data": "same"}
    path, passed = newest_below(tmp_path, wanted)
    if told is None:
        assert (path, passed) == (newer, [])
    else:
        assert path == older and len(passed) == 1
        assert passed[0].startswith(f"{tmp_path / 'version_2'} ({told}")
    assert newest_below(tmp_path) == (newer, [])
    if told == "other training data":  # which is no matter to an evaluation
        assert newest_below(tmp_path, {"model": wanted["model"]}) == (newer, [])


@pytest.mark.parametrize(
    ("epochs", "steps", "told"),
    [
        (2, -1, "2 of 2 epochs"),
        (1, -1, "2 of 1 epochs"),
        (3, -1, ""),
        (-1, 8, "8 of 8 steps"),
        (-1, 9, ""),
        (None, -1, ""),
        (5, 6, "8 of 6 steps"),
    ],
)
def test_a_finished_run(
    epochs: int | None, steps: int, told: str, whole: bytes, tmp_path: Path
) -> None:
    path = run(tmp_path, 0, whole)
    assert finished(path, epochs, steps) == told
    assert finished(path.parent, epochs, steps) == ""  # a folder does not tell


def test_a_link_leads_to_the_newest_run_and_is_none_itself(whole: bytes, tmp_path: Path) -> None:
    first, second = (run(tmp_path, n, whole, launch_id="slurm-1.0") for n in (0, 1))
    link = tmp_path / NEWEST
    for path in (first, second):
        link_newest(tmp_path, path.parents[1])
        assert (link / "checkpoints" / "step_8.ckpt").samefile(path)
    assert os.readlink(link) == "version_1"  # a folder of runs may be moved  # noqa: PTH115
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert newest_below(tmp_path) == (second, [])
    assert next_number(tmp_path, tmp_path / "version_7") == 7
    assert find_run(tmp_path, Launch("slurm-1.0", "x", True, "", ""), []) == second.parents[1]
    assert is_link_to_newest(tmp_path, link / "checkpoints")
    assert not is_link_to_newest(tmp_path, second)


@pytest.mark.parametrize("kind", ["folder", "file", "own link", "read only"])
def test_a_link_that_cannot_be_made_is_told(
    kind: str, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(tmp_path, 0, whole).parents[1]
    link = tmp_path / NEWEST
    if kind == "folder":
        (link / "checkpoints").mkdir(parents=True)
        (link / "checkpoints" / "step_9.ckpt").write_bytes(whole)
    elif kind == "file":
        link.write_text("mine")
    elif kind == "own link":
        (tmp_path.parent / "elsewhere").mkdir(exist_ok=True)
        link.symlink_to(tmp_path.parent / "elsewhere")
    else:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.warns(UserWarning, match=f"{link} (is no link to a run|cannot lead)"):
        link_newest(tmp_path, folder)
    if kind == "folder":  # somebody's run of that name counts as any other
        assert newest_below(tmp_path)[0] == folder / "checkpoints" / "step_8.ckpt"
        assert not is_link_to_newest(tmp_path, link)
    elif kind == "file":
        assert link.read_text() == "mine"
    elif kind == "own link":
        assert link.readlink() == tmp_path.parent / "elsewhere"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_is_no_run_below_the_root_gets_no_link(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for other in (tmp_path / "runs", tmp_path / "logs" / "version_0"):
        link_newest(tmp_path / "runs", other)
        assert not (tmp_path / "runs" / NEWEST).is_symlink()


@pytest.mark.slow
def test_a_fit_ends_with_commands_and_is_not_begun_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    runs = tmp_path / "my runs"
    flags = [
        *("fit", "--data.data_dir", str(SAMPLE), "--data.image_size", "64"),
        *("--data.num_workers", "0", "--model.init_args.backbone", "resnet10t"),
        *("--model.init_args.pretrained", "false", "--model.init_args.compile_model", "false"),
        *("--model.init_args.fpn_channels", "16", "--model.init_args.head_convs", "1"),
        *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"),
        *("--trainer.limit_val_batches", "0", "--trainer.default_root_dir", str(runs)),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
        *("--trainer.log_every_n_steps", "1"),
    ]
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        train.train(flags)
    lines = [record.getMessage() for record in caplog.records]
    told = next(line for line in lines if line.startswith("run: ")).splitlines()
    assert told[0] == f"run: {runs / 'version_0'}" and (runs / NEWEST).samefile(runs / "version_0")
    assert told[1] == f"look at: {runs / 'version_0' / 'results.png'}"
    assert "8 training images, 1 step an epoch" in lines
    commands = [shlex.split(line) for line in told[2:]]
    assert [words[:2] for words in commands] == [["autotimm", "evaluate"], ["autotimm", "predict"]]
    for words in commands:
        checkpoint = words[words.index("--checkpoint") + 1]
        assert Path(checkpoint) == runs / "version_0" / "checkpoints" / "last.ckpt"
    assert commands[0][-2:] == ["--data", str(SAMPLE)]
    assert read_record(runs / "version_0")["data"]

    caplog.clear()
    before = sorted(runs.rglob("*"))
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        train.train([*flags, "--ckpt_path", "last"])
    assert sorted(runs.rglob("*")) == before
    lines = [record.getMessage() for record in caplog.records]
    assert any("is of a finished run (1 of 1 epochs): nothing is left to train" in x for x in lines)

    # The link leads to the new run before the old one's checkpoint is no longer needed.
    through = str(runs / NEWEST / "checkpoints" / "last.ckpt")
    caplog.clear()
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        train.train([*flags, "--ckpt_path", through, "--trainer.max_epochs", "2"])
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert f"look at: {runs / 'version_1' / 'results.png'}" in said
    curves = read_curves(runs / "version_1" / "metrics.csv")
    assert curves.resumed == {"version_0": 1.0}
    config = (runs / "version_1" / "config.yaml").read_text()
    assert "ckpt_path" not in config and "max_epochs: 2" in config
    record = json.loads((runs / "version_1" / "run.json").read_text())
    assert record["epoch"] == 2 and (runs / NEWEST).samefile(runs / "version_1")
    assert Path(record["from"]).parents[1] == runs / "version_0"

    # A restarted launch whose run has saved nothing begins where its first start did.
    for path in (runs / "version_1" / "checkpoints").iterdir():
        path.unlink()
    path, told = starting_point(runs, through, runs / "version_1")
    assert path == record["from"] and f"begins from {path}" in str(told)
