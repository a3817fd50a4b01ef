"""The choice of a run's folder, and of the checkpoint that it begins from."""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import forked
import fsspec
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from line import Line, loader, quiet

from autotimm.distributed.launcher import Launch, find_launch
from autotimm.structures import InputError
from autotimm.training.earlier_runs import newest_below
from autotimm.training.run_folder import find_run, folder_name
from autotimm.training.run_record import next_number, order_of, read_record, write_record
from autotimm.training.start import begin, starting_point
from autotimm.training.start_weights import Weights

SLURM = {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "abc", "TORCHELASTIC_RESTART_COUNT": "0"}


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)


def given(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "launch"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "12"}, None),  # in a job, but not started by srun
        (SLURM, Launch("slurm-12.0", "job_12", False, "", "")),
        (SLURM | {"SLURM_RESTART_COUNT": "2"}, Launch("slurm-12.0", "job_12", True, "", "")),
        (
            SLURM | {"SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "3"},
            Launch("slurm-10_3.0", "job_10_3", False, "", ""),
        ),
    ],
)
def test_launches(
    variables: dict[str, str], launch: Launch | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, variables)
    assert find_launch() == launch


@pytest.mark.parametrize("script", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_torchrun_is_known_by_its_process_through_a_script(script: bool) -> None:
    code = (
        "import os; from autotimm.distributed.launcher import find_launch; "
        "print(os.getppid(), os.getpid(), *find_launch())"
    )
    env = os.environ | TORCHRUN
    if script:
        words = ["bash", "-c", '"$@"; exit', "bash", sys.executable, "-c", code]
        child = subprocess.Popen(words, stdout=subprocess.PIPE, env=env, text=True)
        parent, _, *fields = child.communicate()[0].split()
        assert parent == str(child.pid)
        torchrun, started = os.getpid(), child.pid
    else:
        torchrun, started, *fields = forked.run("-c", code, env=env).stdout.split()
    assert fields[:3] == ["torchrun-abc", "None", "False"]
    assert fields[3].startswith(f"{platform.node()}-{torchrun}-")
    assert fields[4].startswith(f"{platform.node()}-{started}-")


def torchrun(agent: str, worker: str) -> Launch:
    return Launch("torchrun-abc", None, False, agent, worker)


def test_torchrun_has_restarted_if_one_of_its_nodes_was_there_before(
    tmp_path: Path,
) -> None:
    write_record(
        tmp_path / "run",
        {"launch_id": "torchrun-abc", "agents": ["a", "b"], "worker": "a-1"},
    )
    run = tmp_path / "run"
    assert find_run(tmp_path, torchrun("a", "a-2"), ["a"]) == run
    # The first node is lost, and another one is the first now.
    assert find_run(tmp_path, torchrun("0", "0-1"), ["0", "b"]) == run
    # A second run of the same start, and another call that was given the same id.
    assert find_run(tmp_path, torchrun("a", "a-1"), ["a", "b"]) is None
    assert find_run(tmp_path, torchrun("c", "c-1"), ["c"]) is None


def test_a_requeued_job_finds_its_folder_and_another_step_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert folder_name(tmp_path) is None  # version_<n>
    given(monkeypatch, SLURM)
    assert folder_name(tmp_path) == "job_12"
    write_record(tmp_path / "job_12", {"launch_id": "slurm-12.0"})
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    assert folder_name(tmp_path) == "job_12-2"
    write_record(tmp_path / "job_12-2", {"launch_id": "slurm-12.1"})
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert folder_name(tmp_path) == "job_12-2"
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert folder_name(tmp_path) == "job_12"


def test_the_newer_of_two_runs_with_an_id_is_taken(tmp_path: Path) -> None:
    for n, name in enumerate(["b", "a"]):
        write_record(tmp_path / name, {"launch_id": "slurm-1.0", "number": n})
        os.utime(tmp_path / name / "run.json", (9 - n, 9 - n))  # no clock counts
    launch = Launch("slurm-1.0", "job_1", True, "", "")
    assert find_run(tmp_path, launch, []) == tmp_path / "a"
    assert find_run(tmp_path / "none", launch, []) is None
    assert find_run(tmp_path, launch._replace(again=False), []) is None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint that a trainer has saved."""
    root = tmp_path_factory.mktemp("runs")
    trainer = quiet(root, max_steps=1, logger=[])
    trainer.fit(Line(), loader())
    found, _ = newest_below(root)
    assert found is not None
    return found


def run(root: Path, name: str, checkpoint: Path, number: int, launch_id: str | None = None) -> Path:
    """A run whose files are the older, the higher its number is: no clock counts."""
    path = root / name / "checkpoints" / "step_1.ckpt"
    path.parent.mkdir(parents=True)
    shutil.copy(checkpoint, path)
    write_record(root / name, {"launch_id": launch_id, "number": number})
    for one in (path, root / name / "run.json"):
        os.utime(one, (1000 - number, 1000 - number))
    return path


def test_where_a_run_begins(tmp_path: Path, checkpoint: Path) -> None:
    asked = str(shutil.copy(checkpoint, tmp_path / "a.ckpt"))
    assert starting_point(tmp_path, None) == (None, None)
    assert starting_point(tmp_path, asked) == (asked, None)
    path, message = starting_point(tmp_path, "last")
    assert path is None and message is not None and "no checkpoint below" in message

    newer = run(tmp_path, "version_0", checkpoint, number=20)
    own = run(tmp_path, "job_1", checkpoint, number=10, launch_id="slurm-1.0")
    assert starting_point(tmp_path, "last") == (str(newer), f"ckpt_path=last: {newer}")
    assert starting_point(tmp_path, asked) == (asked, None)
    assert starting_point(tmp_path, None) == (None, None)
    for requested in (None, "last", asked):
        path, message = starting_point(tmp_path, requested, tmp_path / "job_1")
        assert path == str(own) and message == f"started again (slurm-1.0): goes on from {own}"
    # The newest run's is cut off: the one before it is taken.
    newer.write_bytes(newer.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="damaged"):
        assert starting_point(tmp_path, "last")[0] == str(own)
    # It died before it saved anything.
    own.unlink()
    path, message = starting_point(tmp_path, asked, tmp_path / "job_1")
    assert path == asked and message is not None and message.endswith(f"begins from {asked}")
    older = run(tmp_path, "version_1", checkpoint, number=5)
    with pytest.warns(UserWarning, match="damaged"):
        path, message = starting_point(tmp_path, "last", tmp_path / "job_1")
    assert (path, message) == (str(older), f"ckpt_path=last: {older}")


def test_what_cannot_be_begun_from_leaves_no_folder(tmp_path: Path, checkpoint: Path) -> None:
    """Whether it is on this disk or a server: outputs are made after inputs are checked."""
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    files = {
        "bad.ckpt": (bytes(content), "is damaged"),
        "page.ckpt": (b"<html>", "is not a checkpoint"),
        "none.ckpt": (None, "there is no checkpoint at"),
    }
    store = fsspec.filesystem("memory")
    for name, (data, reason) in files.items():
        places = [str(tmp_path / name), f"memory://start/{name}"]
        if data is not None:
            (tmp_path / name).write_bytes(data)
            store.pipe_file(f"/start/{name}", data)
        for place in places:
            with pytest.raises(InputError, match=reason):
                quiet(tmp_path / "runs", max_steps=1).fit(Line(), loader(), ckpt_path=place)
            assert not (tmp_path / "runs").exists(), place


CLOCKS = (0, 3600, -7200, 86400, -1_000_000)  # seconds by which a start's clock is wrong


def test_five_starts_with_wrong_clocks_lose_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each goes on from the last step, though its node's clock is ahead or behind."""
    now, begun = time.time, list[int]()
    monkeypatch.setattr(Line, "on_train_start", lambda self: begun.append(self.global_step))
    for start, wrong in enumerate(CLOCKS):
        monkeypatch.setattr(time, "time", lambda wrong=wrong: now() + wrong)
        there = {path for path in tmp_path.rglob("*") if path.is_file()}
        trainer = quiet(tmp_path, max_epochs=start + 1, logger=[])
        trainer.fit(Line(), loader(2), ckpt_path="last")
        assert begun[-1] == 2 * start
        assert trainer.global_step == 2 * start + 2
        for path in {path for path in tmp_path.rglob("*") if path.is_file()} - there:
            os.utime(path, (now() + wrong, now() + wrong))
    records = [read_record(tmp_path / f"version_{n}")["number"] for n in range(len(CLOCKS))]
    assert records == list(range(len(CLOCKS)))


def test_the_number_of_a_run_follows_from_the_runs_before_it(tmp_path: Path) -> None:
    assert next_number(tmp_path, tmp_path / "version_0") == 0
    assert next_number(tmp_path, tmp_path / "job_812") == 812
    write_record(tmp_path / "job_812", {"number": 812})
    # The cluster was set up again and numbers its jobs from one; then someone starts by hand.
    assert next_number(tmp_path, tmp_path / "job_3") == 813
    write_record(tmp_path / "job_3", {"number": 813})
    assert next_number(tmp_path, tmp_path / "version_0") == 814
    # A run of before has no number, and one whose record is lost has its name's.
    (tmp_path / "version_9").mkdir()
    (tmp_path / "version_9" / "checkpoints").mkdir()
    (tmp_path / "version_10" / "checkpoints").mkdir(parents=True)
    names = ["job_3", "job_812", "version_10", "version_9"]
    assert [path.name for path in sorted(tmp_path.iterdir(), key=order_of, reverse=True)] == names


def test_a_job_that_is_started_again_evaluates_what_it_was_given(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a fit resumes the job's own run."""
    given(monkeypatch, SLURM | {"SLURM_RESTART_COUNT": "1"})
    own = run(tmp_path, "job_12", checkpoint, number=10, launch_id="slurm-12.0")
    trainer = SimpleNamespace(default_root_dir=tmp_path, world_size=1, max_epochs=9, max_steps=-1)
    for fn, expected in ((TrainerFn.FITTING, str(own)), (TrainerFn.VALIDATING, str(checkpoint))):
        trainer.state = SimpleNamespace(fn=fn)
        assert begin(trainer, Line(), checkpoint).checkpoint == expected  # type: ignore[arg-type]


def test_only_named_checkpoints_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"of another job")
    trainer = quiet(tmp_path, max_steps=1, logger=False)
    name = "lightning.pytorch.trainer.connectors.checkpoint_connector.SLURMEnvironment.detect"
    monkeypatch.setattr(name, lambda: True)
    trainer.fit(Line(), loader())
    assert trainer.global_step == 1
    with pytest.raises(InputError, match="'hpc' is not used here"):
        trainer.fit(Line(), loader(), ckpt_path="hpc")


def test_damaged_checkpoints_and_other_folders_are_refused_by_path(
    tmp_path: Path, checkpoint: Path
) -> None:
    path = run(tmp_path, "version_0", checkpoint, number=10)
    for folder in (tmp_path / "version_0", path.parent):
        with pytest.raises(
            InputError, match=f"{folder} is a folder, but no checkpoint: give {path}"
        ):
            starting_point(tmp_path, str(folder))
    with pytest.raises(InputError, match="no checkpoint: and none is in it"):
        starting_point(tmp_path, tmp_path)
    assert starting_point(tmp_path, str(path)) == (str(path), None)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:  # a byte of a tensor, which torch does not check
        entry = next(one for one in archive.infolist() if "/data/" in one.filename)
    names = content[entry.header_offset + 26 :][:4]  # lengths of name and extra field
    skipped = 30 + sum(struct.unpack("<HH", names))
    content[entry.header_offset + skipped] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"step_1.ckpt is damaged \(.* is not what was written"):
        starting_point(tmp_path, str(path))


@pytest.mark.parametrize("key", ["optimizer_states", "lr_schedulers"])
def test_a_state_that_is_not_there_does_not_begin_anew(
    key: str, tmp_path: Path, checkpoint: Path
) -> None:
    class Scheduled(Line):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    path = tmp_path / "odd.ckpt"
    quiet(tmp_path, max_steps=1).fit(Scheduled(), loader())
    whole = torch.load(newest_below(tmp_path)[0], weights_only=True)
    torch.save({**whole, key: []}, path)
    model = Scheduled()
    with pytest.raises(InputError, match=f"has 0 {key}, but this run has 1: give one"):
        quiet(tmp_path, max_steps=2).fit(model, loader(), ckpt_path=path)
    torch.save(whole, path)
    quiet(tmp_path, max_steps=2).fit(model, loader(), ckpt_path=path)


@pytest.mark.parametrize(("given_path", "message"), [("", "is empty"), ("best", "earlier fit")])
def test_a_checkpoint_that_no_path_names(tmp_path: Path, given_path: str, message: str) -> None:
    with pytest.raises(InputError, match=f"ckpt_path.*{message}"):
        quiet(tmp_path, max_steps=1).fit(Line(), loader(), ckpt_path=given_path)


def test_weights_are_for_a_run_that_resumes_nothing_or_the_last_one() -> None:
    """``last`` may find no run: then the weights are taken."""
    for path in (None, "last"):
        assert Weights.given("a.ckpt", False, path) == Weights("a.ckpt", only_fitting=False)
    with pytest.raises(InputError, match="--ckpt_path resumes a run"):
        Weights.given("a.ckpt", False, "b.ckpt")
    assert Weights.given(None, False, "b.ckpt") is None
