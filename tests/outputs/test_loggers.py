"""Loggers by name; loggers that fail; pictures in them."""

from __future__ import annotations

import pickle
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyExperiment
from line import Line, loader, quiet

from autotimm import InputError
from autotimm.outputs import loggers
from autotimm.outputs.loggers import Guard, guarded, log_picture, make_loggers
from autotimm.outputs.metrics_file import MetricsLogger

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Failing(Logger):
    """Raises an error in every method, from the ``after``-th call on."""

    name, version = "failing", "0"

    def __init__(self, after: int = 0) -> None:
        super().__init__()
        self.asked, self.after = 0, after

    def fail(self, *args: Any, **kwargs: Any) -> None:
        self.asked += 1
        if self.asked > self.after:
            raise ConnectionError("no route to http://user:secret@host/api?key=secret")

    log_metrics = log_hyperparams = save = finalize = fail

    @property
    def experiment(self) -> Any:
        self.fail()


def kinds(given: list[Logger]) -> list[str]:
    return [one.__class__.__name__ for one in given]


@pytest.mark.parametrize("after", [0, 4])
def test_a_logger_that_fails_ends_no_run_and_is_named_once(tmp_path: Path, after: int) -> None:
    bad = Failing(after)
    run = quiet(tmp_path, max_epochs=4, log_every_n_steps=1, logger=bad)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(Line(), loader(6), loader(1))
    assert run.global_step == 24
    warned = [str(w.message) for w in caught if "Failing" in str(w.message)]
    assert len(warned) == 2
    assert warned[0].startswith("Failing fails, and the run goes on without it (ConnectionError")
    assert "secret" not in warned[0]
    assert warned[1] == "Failing failed 5 times in a row, and is not called any more"
    assert bad.asked == after + loggers.GIVEN_UP
    rows = (tmp_path / "version_0" / "metrics.csv").read_text().splitlines()
    assert len(rows) > 4  # the other loggers continue


def test_a_logger_that_comes_back_is_used_again() -> None:
    class Flaky(Failing):
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            self.asked += 1
            if self.asked % 4:
                raise ConnectionError

    flaky = guarded(Flaky())
    with pytest.warns(UserWarning, match="Flaky fails"):
        for _ in range(40):
            flaky.log_metrics({})
    assert flaky.asked == 40  # type: ignore[attr-defined]


def test_a_guard_passes_for_its_logger(tmp_path: Path) -> None:
    given = TensorBoardLogger(tmp_path)
    guard = guarded(given)
    assert guarded(guard) is guard
    assert isinstance(guard, TensorBoardLogger) and not isinstance(guard, CSVLogger)
    assert guard.experiment is given.experiment and guard.log_dir == given.log_dir
    guard._default_hp_metric = False  # as users do for missing constructor arguments
    assert given._default_hp_metric is False
    copied = pickle.loads(pickle.dumps(guard))  # noqa: S301
    assert isinstance(copied, Guard) and isinstance(copied, TensorBoardLogger)
    assert copied.root_dir == given.root_dir
    bad = pickle.loads(pickle.dumps(guarded(Failing())))  # noqa: S301
    with pytest.warns(UserWarning, match="Failing fails"):
        assert isinstance(bad.experiment, DummyExperiment)


def test_other_methods_of_a_logger_end_no_run_either() -> None:
    class Service(Failing):
        def log_image(self, key: str) -> None:
            self.experiment.log(key)

        def look_up(self, key: str) -> str:
            return key

    service: Any = guarded(Service())
    assert service.look_up("a") == "a"
    with pytest.warns(UserWarning, match="Service fails, and the run goes on without it"):
        assert service.log_image("a") is None
    with pytest.raises(AttributeError, match="no_such"):
        service.no_such()


def test_a_logger_sees_a_command_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    class Service(Failing):
        def log_image(self, key: str) -> list[str]:
            return list(sys.argv)

    monkeypatch.setattr(sys, "argv", ["fit", "https://me:hunter2x@host.org/x"])
    service: Any = guarded(Service())
    assert service.log_image("a") == ["fit", "https://host.org/x"]


def test_csv_is_always_there_and_tensorboard_by_default(tmp_path: Path) -> None:
    def made(given: Any) -> list[str]:
        return kinds(make_loggers(given, tmp_path))

    assert made(None) == made(True) == ["MetricsLogger", "TensorBoard"]
    assert made("csv") == ["MetricsLogger"]
    assert made(["tensorboard", "csv", "tensorboard"]) == ["MetricsLogger", "TensorBoard"]
    assert made(False) == []
    own = CSVLogger(tmp_path)
    assert make_loggers([own, "tensorboard"], tmp_path)[0].experiment is own.experiment
    assert made(TensorBoardLogger(tmp_path)) == ["MetricsLogger", "TensorBoardLogger"]


def test_without_tensorboard_csv_is_enough(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda _: None)
    assert [type(one) for one in make_loggers(None, tmp_path)] != []
    assert len(make_loggers(None, tmp_path)) == 1
    for name in ("tensorboard", "wandb", "mlflow"):
        with pytest.raises(InputError, match=f"logger='{name}' needs pip install {name}"):
            make_loggers(name, tmp_path)
    with pytest.raises(InputError, match="logger='comet' is unknown: choose from csv, tensorb"):
        make_loggers(["comet"], tmp_path)
    with pytest.raises(InputError, match=r"logger=\{'a': 1\} is unknown"):
        make_loggers([{"a": 1}], tmp_path)
    with pytest.raises(InputError, match="logger=3: give some of csv"):
        make_loggers(3, tmp_path)


def test_ranks_but_the_first_connect_to_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loggers, "_installed", lambda _: True)
    monkeypatch.setattr(loggers.rank_zero_only, "rank", 1)
    made = make_loggers(["wandb", "mlflow"], tmp_path)
    assert kinds(made) == ["MetricsLogger", "DummyLogger", "DummyLogger"]
    for one in made:
        one.log_metrics({"a": 1.0}, 0)
        one.save()
        one.finalize("success")
    assert not list(tmp_path.iterdir())


def test_a_server_with_an_invalid_address_is_refused_in_one_line(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://user:secret@host")
    with pytest.raises(InputError, match=r"logger='mlflow' cannot be set up: .*nosuch") as caught:
        make_loggers("mlflow", tmp_path)
    assert "secret" not in str(caught.value)


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"images": 0})
    read.Reload()
    return read


def test_tensorboard_writes_into_the_runs_folder(tmp_path: Path) -> None:
    class Logging(Line):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train/loss", loss)
            return loss

    run = quiet(tmp_path, max_epochs=2, log_every_n_steps=1)
    run.fit(Logging(), loader())
    folder = tmp_path / "version_0"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "version_0"]
    log_picture(run.loggers[1], "val/pictures", np.zeros((4, 6, 3), np.uint8), 6)
    run.loggers[1].save()
    found = events(folder)
    assert [e.step for e in found.Scalars("train/loss")] == list(range(6))
    (picture,) = found.Images("val/pictures")
    assert (picture.step, picture.height, picture.width) == (6, 4, 6)
    # A run that resumes from step 4 in this folder repeats steps 4 and 5.
    again = make_loggers(None, tmp_path, "version_0")
    loggers.go_on(again, 4)
    again[1].log_metrics({"train/loss": 7.0}, 4)
    again[1].save()
    found = events(folder)
    assert [e.step for e in found.Scalars("train/loss")] == list(range(5))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)


def test_mlflow_by_name(tmp_path: Path, offline: None, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    run = quiet(tmp_path / "runs", max_epochs=1, log_every_n_steps=1, logger=["mlflow"])
    run.fit(Line(), loader(4))
    assert kinds(run.loggers) == ["MetricsLogger", "MLFlowLogger"]
    logger = run.loggers[1]
    assert isinstance(logger, MLFlowLogger)
    log_picture(logger, "val/pictures", np.zeros((4, 6, 3), np.uint8), 4)
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    found = client.get_run(logger.run_id)
    assert found.info.run_name == "version_0"
    assert found.data.metrics["train/images_per_second"] > 0
    assert client.list_artifacts(logger.run_id)
    # A resumed run is the same MLflow run.
    monkeypatch.setattr("autotimm.training.trainer.folder_name", lambda *_: "version_0")
    again = quiet(tmp_path / "runs", logger="mlflow").loggers[1]
    assert again.version == logger.run_id


def test_wandb_by_name(tmp_path: Path, offline: None) -> None:
    pytest.importorskip("wandb")
    run = quiet(tmp_path / "runs", max_epochs=1, log_every_n_steps=1, logger="wandb")
    run.fit(Line(), loader(4))
    assert kinds(run.loggers) == ["MetricsLogger", "WandbLogger"]
    log_picture(run.loggers[1], "val/pictures", np.zeros((4, 6, 3), np.uint8), 4)
    run.loggers[1].experiment.finish()
    assert list((tmp_path / "runs" / "wandb").glob("offline-run-*/*.wandb"))
    assert loggers.run_ids(run.loggers)["wandb"]


def metrics(folder: Path) -> MetricsLogger:
    return MetricsLogger(folder, "run")


def write(logger: MetricsLogger, step: int, **values: float) -> None:
    logger.log_metrics(values, step)  # type: ignore[arg-type]
    logger.save()


def test_a_run_that_goes_on_goes_on_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    first = metrics(tmp_path)
    for step in range(4):
        write(first, step, loss=step)
    with path.open("ab") as file:
        file.write(b"0.5,")  # killed within a row
    second = metrics(tmp_path)
    second.go_on(2)
    write(second, 2, loss=20)
    write(second, 3, loss=30, val=0.5)
    assert path.read_text() == "loss,step,val\n0,0,\n1,1,\n20,2,\n30,3,0.5\n"
    assert sorted(p.name for p in path.parent.iterdir()) == ["metrics.csv"]


@pytest.mark.parametrize("content", [b"", b"loss,st"])
def test_a_file_without_a_whole_row_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run" / "metrics.csv"
    path.parent.mkdir()
    path.write_bytes(content)
    write(metrics(tmp_path), 0, loss=1)
    assert path.read_text() == "loss,step\n1,0\n"


def test_on_a_full_disk_rows_wait_and_stay_whole(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "run" / "metrics.csv"
    logger: Any = guarded(metrics(tmp_path))
    for step in range(10):
        write(logger, step, loss=step)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    whole = path.read_text()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 5, before[1]))
    try:
        with pytest.warns(UserWarning, match="MetricsLogger fails, and the run goes on"):
            for step in range(10, 20):
                write(logger, step, loss=step)
            assert path.read_text().startswith(whole)
            write(logger, 20, new=1.0)  # another column, so the file is rewritten
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text().endswith("\n")
    write(logger, 21, loss=21)
    rows = path.read_text().splitlines()
    assert rows[0] == "loss,new,step"
    assert [row.split(",")[-1] for row in rows[1:]] == [str(step) for step in range(22)]
    assert [p.name for p in path.parent.iterdir()] == ["metrics.csv"]


def test_two_runs_that_start_together_have_a_folder_each(tmp_path: Path) -> None:
    (tmp_path / "version_3").mkdir()
    one, two = (make_loggers("csv", tmp_path)[0] for _ in range(2))
    with mock.patch.object(MetricsLogger, "_get_next_version", lambda _: 4):  # both find it free
        folders = [one.log_dir, two.log_dir]
    assert folders == [str(tmp_path / "version_4"), str(tmp_path / "version_5")]
    assert [one.log_dir, two.log_dir] == folders
