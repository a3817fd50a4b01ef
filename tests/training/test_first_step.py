"""The first step of a fit that compiles: what is printed, measured, and kept for the same work."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from line import Line, loader, quiet
from torch import Tensor

from autotimm.training import progress
from autotimm.training.first_step import FirstStep, first_step_of, last_time
from autotimm.training.run_record import read_record


class Compiled(Line):
    """Says that it compiles, and takes its time for the first step."""

    def __init__(self, compile_model: bool = True, backbone: str = "resnet18") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.first = True
        self.shown: list[list[str]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        first = first_step_of(self.trainer)
        assert first is not None
        # A busy machine takes seconds to come here.
        self.shown.append([re.sub(r"step \d+:\d\d$", "step", part) for part in first.waiting()])
        if self.first:
            time.sleep(0.3)
        self.first = False
        return super().training_step(batch, batch_idx)


def fit(folder: Path, **options: Any) -> Compiled:
    model = Compiled(**options)
    quiet(folder, max_epochs=1, logger=False).fit(model, loader(3))
    return model


def test_it_shows_what_the_first_step_took_last_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = fit(tmp_path)
    assert model.shown == [["compiling the first step"], [], []]
    out = capsys.readouterr().out
    assert "compiling the first step\n" in out
    assert re.search(r"^the first step was compiled and took \d+:\d\d$", out, re.MULTILINE)
    first = read_record(tmp_path / "version_0")["first_step"]["seconds"]
    assert first >= 0.3
    record = tmp_path / "version_0" / "run.json"
    record.write_text(json.dumps(read_record(record.parent) | {"first_step": {"seconds": 133}}))
    # Another network compiles something else.
    assert fit(tmp_path, backbone="resnet34").shown[0] == ["compiling the first step"]
    capsys.readouterr()
    assert fit(tmp_path).shown[0] == ["compiling the first step", "2:13 last time"]
    line = f"compiling the first step (it took 2:13 last time, in {tmp_path / 'version_0'})\n"
    assert line in capsys.readouterr().out
    found = last_time(tmp_path, tmp_path / "version_2")
    assert found is not None and found[1] == tmp_path / "version_2"  # an earlier start of it


@pytest.mark.parametrize(
    "broken", ["{", "[]", '{"first_step": 3}', '{"first_step": {"seconds": "x"}}']
)
def test_a_record_that_says_nothing_is_passed_over(tmp_path: Path, broken: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(broken)
    assert last_time(tmp_path, tmp_path / "a") is None


def test_nothing_is_shown_where_nothing_is_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, compile_model=False).shown == [[], [], []]
    assert "first step" not in capsys.readouterr().out
    assert "first_step" not in read_record(tmp_path / "version_0")


def test_the_bar_says_it_while_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from autotimm import AutoTrainer

    monkeypatch.setattr(progress, "_is_visible", lambda: True)
    bar = progress.ProgressBar()
    seen: list[str] = []

    class Looking(Compiled):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            seen.append(bar._render(Console(width=80)).plain)
            return super().training_step(batch, batch_idx)

    run = AutoTrainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_model_summary=False,
        max_epochs=1,
        callbacks=[bar],
    )
    assert any(isinstance(one, FirstStep) for one in run.callbacks)
    run.fit(Looking(), loader(3))
    assert re.fullmatch(r"epoch 1 of 1  0/3  compiling the first step \d+:\d\d", seen[0])
    assert not any("compiling" in one for one in seen[1:])


def test_the_first_rank_waits_for_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first rank alone does must not be sent to the others, who would not receive it."""
    sent: list[Any] = []

    class Alone(FirstStep):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            with monkeypatch.context() as patched:
                patched.setattr(trainer.strategy, "broadcast", sent.append)
                super().on_train_start(trainer, pl_module)

    first = Alone()
    quiet(tmp_path, max_epochs=1, callbacks=[first]).fit(Compiled(), loader(2))
    assert not sent
