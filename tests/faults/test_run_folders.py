"""What people and programs do to the folder of a run between its starts."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from line import Line, loader, quiet
from saves import names, state

from autotimm.checkpoints.resume import newest
from autotimm.checkpoints.retention import point
from autotimm.checkpoints.storage import whole_folder
from autotimm.distributed import parent
from autotimm.distributed.launcher import Launch
from autotimm.outputs.metrics_file import MetricsFile
from autotimm.training.earlier_runs import newest_below
from autotimm.training.run_folder import find_run
from autotimm.training.run_record import read_record, write_record
from autotimm.training.start import starting_point

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


def fit(root: Path, epochs: int, **options: Any) -> None:
    more = {"num_sanity_val_steps": 0, "limit_val_batches": 0, "logger": "csv"} | options
    quiet(root, max_epochs=epochs, **more).fit(Line(), loader(4), ckpt_path="last")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of which one has taken eight steps, and its checkpoints of steps 4 and 8."""
    root = tmp_path_factory.mktemp("runs")
    fit(root, 2)
    return root


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "runs", symlinks=True)


def backup(run: Path, name: str) -> Path:
    """A copy of a run's folder that was made before the run's last checkpoint."""
    copy = shutil.copytree(run, run.with_name(name), symlinks=True)
    (copy / "checkpoints/step_8.ckpt").unlink()
    return copy


@pytest.mark.parametrize(
    ("name", "recorded"),
    [
        ("version_0_backup", True),
        ("version_0_backup", False),
        ("a", True),
        ("a", False),
        ("2026-11-30", True),
    ],
)
def test_a_run_does_not_go_on_in_an_older_copy_of_its_folder(
    name: str, recorded: bool, runs: Path
) -> None:
    run = runs / "version_0"
    copy = backup(run, name)
    if not recorded:
        (copy / "run.json").unlink()
    assert newest_below(runs)[0] == run / "checkpoints/step_8.ckpt"


def test_a_requeued_job_goes_on_in_its_own_folder(runs: Path) -> None:
    job = (runs / "version_0").rename(runs / "job_7")
    record = read_record(job) | {"launch_id": "slurm-7.0", "number": 7}
    write_record(job, record)
    launch = Launch("slurm-7.0", "job_7", True, "", "")
    backup(job, "job_7_backup")
    shutil.copytree(job, runs / "job_7_at_the_end", symlinks=True)
    assert find_run(runs, launch, []) == job


@pytest.mark.parametrize("content", ["nothing", "files"])
def test_a_folder_in_the_place_of_the_link_is_replaced(content: str, runs: Path) -> None:
    """As an empty one, or one in which a copy was begun."""
    run = runs / "version_0"
    last = run / "checkpoints/last.ckpt"
    last.unlink()
    last.mkdir()
    if content == "files":
        (last / "part").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged and left aside"):
        fit(runs, 3)
    point(last, "step_8.ckpt")
    assert names(run) == {"step_4.ckpt", "step_8.ckpt", "last.ckpt -> step_8.ckpt"}
    assert names(runs / "version_1") >= {"step_12.ckpt", "last.ckpt -> step_12.ckpt"}


@pytest.mark.parametrize("leads", ["nowhere", "to the one before"])
def test_a_folder_replaces_a_link(leads: str, tmp_path: Path) -> None:
    path, before = tmp_path / "last.ckpt", tmp_path / "step_1.ckpt"
    path.symlink_to("step_1.ckpt")
    if leads != "nowhere":
        with whole_folder(before, 1):
            pass
    with whole_folder(path, 2) as inner:
        (inner / "weights").write_bytes(b"w")
    assert not path.is_symlink()
    assert newest(tmp_path) == path
    assert before.exists() == (leads != "nowhere")
    assert not [*tmp_path.glob(".*")]


def test_an_unfinished_rename_on_a_disk_that_may_only_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        with whole_folder(tmp_path / f"step_{step}.ckpt", step) as inner:
            (inner / "weights").write_bytes(b"w")
    (tmp_path / "step_2.ckpt").rename(tmp_path / ".step_2.ckpt.new.tmp")

    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.warns(UserWarning, match=r"step_2.*cannot be renamed: Read-only file system"):
            assert newest(tmp_path) == tmp_path / "step_1.ckpt"
    assert newest(tmp_path) == tmp_path / "step_2.ckpt"


@pytest.mark.parametrize(
    "odd",
    [
        {"starts": None, "agents": None, "logger_ids": None, "number": None, "process": None},
        {"starts": "x", "agents": 7, "logger_ids": [1], "number": "7", "process": [], "status": {}},
        {"starts": [], "agents": {}, "logger_ids": "x", "number": 1e99, "launch_id": {}},
    ],
)
def test_a_record_of_other_types_ends_no_run(odd: dict[str, Any], runs: Path) -> None:
    path = runs / "version_0/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | odd))
    assert find_run(runs, Launch("torchrun-x", None, False, "agent", "worker"), ["agent"]) is None
    fit(runs, 3)
    assert state(runs / "version_1/checkpoints/last.ckpt")["global_step"] == 12


@pytest.mark.parametrize("ticks", ["its own", "of a process before it"])
def test_a_run_that_another_process_trains_is_told(ticks: str, runs: Path) -> None:
    pid = os.getppid()
    other = parent.identity() | {"pid": pid, "ticks": parent._ticks(pid)}
    if ticks != "its own":
        other["ticks"] = "1"
    write_record(
        runs / "version_0",
        read_record(runs / "version_0") | {"status": "running", "process": other},
    )
    path, line = starting_point(runs, "last")
    assert Path(path).name == "step_8.ckpt"
    assert (f"process {pid} still trains this run" in str(line)) == (ticks == "its own")


ROWS = b"epoch,loss,step\n0,0.5,0\n0,0.25,1\n"


@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        ROWS + b"1,0.1",
        ROWS.replace(b"\n", b"\r\n"),
        ROWS.replace(b"\n", b",\n"),
        ROWS.replace(b"1\n", b"1,7,8\n"),
        b"\xef\xbb\xbf" + ROWS,
        ROWS + b"\n",
        ROWS.replace(b",1\n", b",1.0\n"),
        ROWS.replace(b"0,0.25,1", b'0,"0.25",1'),
    ],
    ids=["whole", "half a row", "CRLF", "column", "cells", "mark", "blank", "floats", "quotes"],
)
def test_rows_that_another_program_has_saved_are_kept(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    _go_on(tmp_path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(float(row["step"])) for row in rows] == [0, 1, 2]
    assert [float(row["loss"]) for row in rows] == [0.5, 0.25, 0.125]
    assert not [*tmp_path.glob("metrics.csv.*")]


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (ROWS.partition(b"\n")[2], 0),
        (bytes(range(256)) * 4, 0),
        (ROWS.replace(b"step", b"stop"), 0),
        (ROWS.replace(b",1\n", b",one\n"), 1),
        (ROWS.replace(b",1\n", b",inf\n"), 1),
        (ROWS.replace(b"0,0.25,1\n", b"0\n"), 1),
        (b"\0" * 100 + b"\n", 0),
    ],
    ids=["no header", "binary", "no steps", "a word", "infinite", "a short row", "zeros"],
)
def test_a_table_with_other_rows_is_kept_aside(content: bytes, kept: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.with_name("metrics.csv.old").write_text("of an earlier time")
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"metrics\.csv .* kept as .*metrics\.csv\.old2"):
        _go_on(tmp_path)
    assert path.with_name("metrics.csv.old2").read_bytes() == content
    with path.open(newline="") as file:
        rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    assert rows == [(0, 0.5), (2, 0.125)][1 - kept :]


def _go_on(folder: Path) -> None:
    table = MetricsFile(str(folder))
    table.forget(2)
    table.log_metrics({"loss": torch.tensor(0.125)}, 2)
    table.save()
