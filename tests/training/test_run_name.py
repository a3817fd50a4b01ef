"""``--out NAME`` names a run, and ``--out DIR/`` the folder of runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest
from jsonargparse import Namespace
from line import Line, loader, quiet

from autotimm import InputError
from autotimm.cli import flags
from autotimm.cli.early_checks import check_words
from autotimm.cli.lightning_cli import SaveConfig
from autotimm.distributed.launcher import Launch
from autotimm.training import run_folder, run_record, start
from autotimm.training.newest_link import NEWEST
from autotimm.training.run_name import check_name, is_name
from autotimm.training.run_record import RECORD, read_record


@pytest.mark.parametrize(
    ("given", "named"),
    [(name, True) for name in ("first", "a b", "v1.2")]
    + [(name, False) for name in ("first/", "./first", "/first", "..", ".", "s3://a/b", "")],
)
def test_a_slash_makes_a_folder_of_runs(given: str, named: bool) -> None:
    assert is_name(given) == named
    long = "--trainer.run_name" if named else "--trainer.default_root_dir"
    assert flags.expanded(["--out", given]) == [long, given]
    assert flags.expanded([f"--out={given}"]) == [f"{long}={given}"]


def test_both_can_be_given() -> None:
    words = ["fit", "--out", "elsewhere/", "--out", "first", "--patience", "4"]
    found = check_words(words, "--help-all")
    assert found == {
        "trainer.default_root_dir": "elsewhere/",
        "trainer.run_name": "first",
        "trainer.patience": "4",
    }


def test_the_run_has_its_name_and_no_other_run_can(tmp_path: Path) -> None:
    quiet(tmp_path, max_epochs=1, run_name="first").fit(Line(), loader(2))
    assert read_record(tmp_path / "first")["status"] == "finished"
    assert (tmp_path / "first" / "checkpoints" / "last.ckpt").exists()
    assert os.readlink(tmp_path / NEWEST) == "first"  # noqa: PTH115
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"--out first: .*first is a run already: .*last\.ckpt"):
        quiet(tmp_path, max_epochs=1, run_name="first")
    assert sorted(tmp_path.rglob("*")) == before
    # It is an earlier run as any other.
    quiet(tmp_path, max_epochs=2).fit(Line(), loader(2), ckpt_path="last")
    record = read_record(tmp_path / "version_0")
    assert record["from"] == str(tmp_path / "first" / "checkpoints" / "step_2.ckpt")
    assert record["number"] == read_record(tmp_path / "first")["number"] + 1


def test_a_new_node_of_a_torchrun_that_starts_again_goes_on_with_the_named_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launched(agent: str, worker: str) -> None:
        launch = Launch("torchrun-x", None, False, agent, worker)
        for module in (run_folder, run_record, start):
            monkeypatch.setattr(module, "find_launch", lambda: launch)

    launched("a", "a-1")
    quiet(tmp_path, max_epochs=1, run_name="first").fit(Line(), loader(2))
    # Another call of torchrun, even of the same id, is no restart.
    launched("b", "b-1")
    run = quiet(tmp_path, max_epochs=2, run_name="first")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="first is a run already"):
        run.fit(Line(), loader(2))
    assert sorted(tmp_path.rglob("*")) == before
    # Beside a node that was there before, it is.
    run = quiet(tmp_path, max_epochs=2, run_name="first")
    launched("a", "a-2")
    run.fit(Line(), loader(2))
    assert (run.global_step, run.log_dir) == (4, str(tmp_path / "first"))
    assert read_record(tmp_path / "first")["starts"] == 2
    run.validate(Line(), loader(1))  # the name is this run's own by now


def test_the_config_of_a_named_run_serves_another_run() -> None:
    config = Namespace(trainer=Namespace(run_name="first", max_epochs=3), seed_everything=0)
    saved = SaveConfig(cast(Any, None), config).config
    assert saved.trainer.as_dict() == {"max_epochs": 3}
    assert config.trainer.run_name == "first", "the run itself keeps it"


def test_a_name_that_may_mean_two_things_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "version_0").mkdir(parents=True)
    check_name("runs", "mine")  # a folder without a run
    (tmp_path / "mine" / "version_0" / RECORD).write_text("{}")
    for name in ("mine", "runs"):
        with pytest.raises(InputError, match=rf"{name}/ or a run of this name .*: write {name}/"):
            check_name("runs", name)
    with pytest.raises(InputError, match="leads to the newest run"):
        check_name("runs", NEWEST)
    for name in ("a/b", "", "..", "-x", "a\nb"):
        with pytest.raises(InputError, match="must be the name of a folder"):
            check_name("runs", name)
    assert not (tmp_path / "runs").exists()
