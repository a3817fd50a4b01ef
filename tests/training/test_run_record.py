"""run.json: what a script can read of a run in progress, a finished one and a failed one."""

from __future__ import annotations

import csv
import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from line import Line, loader, quiet
from servers import serve

from autotimm import AutoTrainer
from autotimm.outputs import provenance
from autotimm.outputs.loggers import make_loggers
from autotimm.training import run_record
from autotimm.training.run_record import read_record, write_record

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Seen(Line):
    """Records the content of run.json at every step."""

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []
        self.fail_at = fail_at

    def training_step(self, batch, batch_idx):
        self.seen.append(read_record(Path(self.trainer.log_dir)))
        if self.trainer.global_step == self.fail_at:
            raise RuntimeError("the device is gone:\n see http://user:secret@host/log")
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss)
        return loss

    def on_validation_epoch_end(self):
        self.log("val/mAP", torch.tensor(0.5))
        self.log("val/broken", torch.tensor(torch.nan))


def test_a_script_can_follow_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_record, "SECONDS", 0.0)
    model = Seen()
    run = quiet(tmp_path, max_epochs=2, log_every_n_steps=2)
    run.fit(model, loader(4), loader(1))
    assert [one["status"] for one in model.seen] == ["running"] * 8
    assert [one["step"] for one in model.seen] == [0, 0, 2, 2, 4, 4, 6, 6]
    last = json.loads((tmp_path / "version_0" / "run.json").read_text())
    assert (last["status"], last["stage"], last["error"]) == ("finished", "fit", None)
    assert (last["step"], last["total_steps"], last["epoch"], last["max_epochs"]) == (8, 8, 2, 2)
    assert last["metrics"]["val/mAP"] == 0.5
    assert last["metrics"]["val/broken"] is None
    assert last["metrics"]["train/loss"] < model.seen[4]["metrics"]["train/loss"]
    assert Path(last["last"]).name == "step_8.ckpt"
    assert last["starts"] == 1
    assert last["started"] <= last["updated"]
    assert not list((tmp_path / "version_0").glob(".run.json*"))


def test_the_error_of_a_failed_run_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the device is gone"):
        quiet(tmp_path, max_epochs=2).fit(Seen(fail_at=3), loader(4), loader(1))
    last = read_record(tmp_path / "version_0")
    assert last["status"] == "failed"
    assert last["error"] == "RuntimeError: the device is gone: see http://host/log"
    assert last["step"] == 3


def test_a_run_that_failed_before_it_began_has_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unprepared(Line):
        def prepare_data(self):
            raise RuntimeError("no data")

    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="no data"):
        quiet(tmp_path / "runs").fit(Unprepared(), loader(4))
    assert not list(tmp_path.rglob("run.json"))


def test_a_test_has_a_record_of_its_own(tmp_path: Path) -> None:
    class Tested(Line):
        categories = ()

        def test_step(self, batch, batch_idx):
            self.log("test/mAP", 0.25)
            return [{}, {}]

    quiet(tmp_path).test(Tested(), loader(1), verbose=False)
    last = read_record(tmp_path / "version_0")
    assert (last["status"], last["stage"]) == ("finished", "test")
    assert last["metrics"] == {"test/mAP": 0.25}
    assert last["starts"] == 0, "a test is not a start of the training"


def test_the_best_checkpoint_is_named(tmp_path: Path) -> None:
    class Better(Seen):
        def on_validation_epoch_end(self):
            self.log("val/mAP", (0.1, 0.3, 0.2)[self.trainer.current_epoch])

    best = ModelCheckpoint(tmp_path / "best", "{epoch}", monitor="val/mAP", mode="max")
    quiet(tmp_path, max_epochs=3, callbacks=[best], num_sanity_val_steps=0).fit(
        Better(), loader(2), loader(1)
    )
    record = read_record(tmp_path / "version_0")["best"]
    assert record["checkpoint"] == str(tmp_path / "best" / "epoch=1.ckpt")
    assert (record["metric"], record["value"]) == ("val/mAP", pytest.approx(0.3))


def test_a_run_that_goes_on_in_its_folder_keeps_its_beginning(tmp_path: Path) -> None:
    """It resumes from step 5 of 8, although it had reached step 7 when it was killed."""
    folder = tmp_path / "version_0"
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    first = Seen(fail_at=7)
    with pytest.raises(RuntimeError, match="the device is gone"):
        quiet(tmp_path, max_epochs=2, callbacks=[saving], log_every_n_steps=1).fit(
            first, loader(4), loader(1)
        )
    before = read_record(folder)
    assert (before["status"], before["step"]) == ("failed", 7)
    write_record(folder, {**before, "started": "2020-01-01T00:00:00+00:00"})

    logger = make_loggers("csv", tmp_path, "version_0")
    again = quiet(tmp_path, max_epochs=2, logger=logger, log_every_n_steps=1)
    again.fit(Seen(), loader(4), loader(1), ckpt_path=tmp_path / "step=5.ckpt")
    last = read_record(folder)
    assert (last["status"], last["step"], last["error"]) == ("finished", 8, None)
    assert (last["starts"], last["started"][:4]) == (2, "2020")
    assert before["from"] is None and last["from"] == str(tmp_path / "step=5.ckpt")
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(8))
    assert [int(row["step"]) for row in rows if row["val/mAP"]] == [3, 7]


@pytest.mark.slow
def test_readers_never_see_half_of_it(tmp_path: Path) -> None:
    """While another thread replaces it as fast as possible."""
    content = {"metrics": {str(i): float(i) for i in range(3000)}}
    write_record(tmp_path, content)
    done = threading.Event()
    torn: list[Exception] = []

    def read() -> None:
        while not done.is_set():
            try:
                assert len(orjson.loads((tmp_path / "run.json").read_bytes())["metrics"]) == 3000
            except Exception as error:
                torn.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100):
        write_record(tmp_path, content)
    done.set()
    reader.join()
    assert not torn


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[1]"])
def test_a_damaged_record_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    assert read_record(tmp_path) == {}
    assert read_record(tmp_path / "none") == {}


def test_a_disk_that_does_not_take_it_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_record, "write_record", full)
    with pytest.warns(UserWarning) as caught:
        run = quiet(tmp_path, max_epochs=3)
        run.fit(Line(), loader(2), loader(1))
    assert run.global_step == 6
    warned = [str(w.message) for w in caught if "run.json" in str(w.message)]
    assert len(warned) == 1
    assert "run.json cannot be written, and the run goes on (OSError: " in warned[0]


def test_where_a_run_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("SLURM_JWT", "secret")
    words = ["python", "train.py", "--data.data_dir=http://user:secret@host/shards?token=secret"]
    monkeypatch.setattr(provenance.sys, "orig_argv", words)
    run = quiet(tmp_path, max_epochs=1, gradient_clip_val=2.0)
    run.fit(Line(), loader(2), loader(1))
    text = (tmp_path / "version_0" / "run.json").read_text()
    assert "secret" not in text
    record = json.loads(text)
    assert record["command"] == ["python", "train.py", "--data.data_dir=http://host/shards"]
    assert record["environment"]["NCCL_DEBUG"] == "WARN"
    assert record["environment"]["OMP_NUM_THREADS"] == "1"
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["machine"]["processes"] == 1
    assert record["settings"]["trainer"]["gradient_clip_val"] == 2.0


def test_the_checkpoint_of_a_url_is_recorded_without_its_secrets(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    quiet(tmp_path, max_steps=1).fit(Line(), loader(2))
    with serve(tmp_path / "version_0" / "checkpoints") as server:
        url = f"{server.url.replace('//', '//u:SECRET@')}/last.ckpt?sig=SECRET"
        quiet(tmp_path, max_steps=2).fit(Line(), loader(2), ckpt_path=url)
    record = read_record(tmp_path / "version_1")
    assert (record["from"], record["step"]) == (f"{server.url}/last.ckpt", 2)
    assert "SECRET" not in str(record) + caplog.text + "".join(capfd.readouterr())


def test_git_state_is_that_of_the_checkout(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        command = ["git", *identity, "-C", str(tmp_path), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert provenance._git_state(tmp_path) is None
    git("init", "-q")
    assert provenance._git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "a")
    commit = git("rev-parse", "HEAD")
    expected = {"folder": str(tmp_path), "commit": commit, "dirty": False}
    (tmp_path / "notes").write_text("not of the checkout")
    assert provenance._git_state(tmp_path) == expected
    (tmp_path / "a.py").write_text("2")
    # Git does not start the program that the repository's settings name.
    git("config", "core.fsmonitor", f"touch {tmp_path}/ran; false")
    assert provenance._git_state(tmp_path) == expected | {"dirty": True}
    assert not (tmp_path / "ran").exists()


def test_settings_are_plain_values() -> None:
    from autotimm.augmentation.presets import Augmentation

    class Data:
        def __init__(self) -> None:
            self.data_dir = "s3://key:secret@bucket/shards"
            self.augmentation = Augmentation()
            self.custom = object()
            self.batch_size = 4

    run: Any = AutoTrainer(accelerator="cpu", logger=False)
    run.datamodule = Data()
    record = provenance.settings(run, Line())
    assert record["data"]["data_dir"] == "s3://bucket/shards"
    assert record["data"]["batch_size"] == 4
    assert record["data"]["augmentation"]["flip"] == Augmentation().flip
    assert "custom" not in record["data"]
    assert orjson.loads(orjson.dumps(record)) == record
