"""The progress bar: its line, its numbers, and that it does not make a GPU wait."""

from __future__ import annotations

import math
import os
import pty
import re
import struct
import sys
import termios
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SAMPLE
from lightning.pytorch.callbacks import ProgressBar as LightningBar
from line import Line, loader
from rich.cells import cell_len
from rich.console import Console
from torch.utils.data import DataLoader, IterableDataset

from autotimm import AutoTrainer
from autotimm.training import progress
from autotimm.training.progress_line import can_redraw, clock, epochs_in_all, line


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_is_visible", lambda: True)


class Shown(progress.ProgressBar):
    """A bar that keeps what it shows: title, batches and what they are of."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, int, float]] = []
        self.metrics: list[dict[str, Any]] = []

    def _show(self, title: str, total: float, done: int) -> None:
        super()._show(title, total, done)
        self.lines.append((title, done, total))

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        self.metrics.append(super().get_metrics(trainer, pl_module))
        return self.metrics[-1]


def fit(folder: Path, data: Any, *more: Any, model: Any = None, **options: Any) -> list[Any]:
    """What a bar shows in a fit."""
    bar, ckpt_path = Shown(), options.pop("ckpt_path", None)
    run = AutoTrainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_model_summary=False,
        callbacks=[bar],
        num_sanity_val_steps=0,
        **options,
    )
    run.fit(model or Line(), data, *more, ckpt_path=ckpt_path)
    return bar.lines


def of_training(lines: list[Any]) -> list[Any]:
    return [one for one in lines if "validation" not in one[0]]


# ------------------------------------------------------------ the line


PARTS = ["ETA 1:02:10", "loss 1.234", "mask_mAP 0.5123", "3.21 images/s", "classes 0.3"]


@pytest.mark.parametrize("width", [1, 2, 9, 20, 30, 40, 79, 80, 81, 132, 300])
@pytest.mark.parametrize("total", [120.0, math.inf])
def test_the_line_fits_and_says_the_most_important_first(width: int, total: float) -> None:
    names = [f"a_metric_with_a_long_name_{k} 0.1234" for k in range(9)]
    for parts in (PARTS, [*PARTS, *names], [*names, *PARTS], ["\u7a0e" * 30, *PARTS], []):
        made = line(width, "epoch 12 of 50", 12, total, parts).plain
        assert cell_len(made) <= width - 1
        assert "\n" not in made
        if width >= 40:
            assert made.startswith("epoch 12 of 50  ")
            assert (" 12/120" in made) == (total == 120)
    wide = line(width, "epoch 12 of 50", 12, total, PARTS).plain
    shown = [part in wide for part in PARTS]
    assert shown == sorted(shown, reverse=True)
    assert sum(shown) == {30: 0, 40: 0, 79: 3, 80: 3, 81: 3, 132: 5, 300: 5}.get(width, 0) or (
        total == math.inf and width <= 81
    )


def test_the_bar_in_the_line_grows() -> None:
    def full(done: int) -> tuple[int, int]:
        made = line(80, "epoch 1", done, 40, ["loss 1"], ("#", "-")).plain
        return made.count("#"), made.count("-")

    assert [full(done) for done in (0, 10, 20, 40)] == [(0, 24), (6, 18), (12, 12), (24, 0)]
    assert line(80, "a", 0, 0, [], ("#", "-")).plain.count("#") == 0
    assert "#" not in line(80, "a", 5, math.inf, [], ("#", "-")).plain


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0, 50, math.inf, 10, 10), 50),
        ((0, None, math.inf, 10, 10), None),
        ((0, -1, math.inf, 10, 10), None),
        ((0, -1, 25, 10, 10), 3),  # 10, 10, 5
        ((0, -1, 30, 10, 10), 3),
        ((0, 2, 30, 10, 10), 2),
        ((0, 9, 25, 10, 10), 3),
        ((2, -1, 1, 4, 10), 3),  # resumed at step 29 of 30
        ((1, -1, 14, 4, 10), 3),  # resumed within the second epoch
        ((0, -1, 5, 10, 10, 4), 2),  # three steps an epoch
        ((4, -1, 7, math.inf, math.inf), None),
    ],
)
def test_epochs_are_counted_to_the_end(given: Any, expected: int | None) -> None:
    assert epochs_in_all(*given) == expected


def test_times_are_short() -> None:
    assert [clock(s) for s in (0.2, 7, 133, 3730)] == ["0:00", "0:07", "2:13", "1:02:10"]


# ------------------------------------------------------------ counting


@pytest.mark.usefixtures("screen")
def test_epochs_and_batches_are_counted_from_one(tmp_path: Path) -> None:
    lines = fit(tmp_path, loader(3), loader(2), max_epochs=3, check_val_every_n_epoch=2)
    expected = [(f"epoch {e} of 3", done, 3.0) for e in (1, 2, 3) for done in (0, 1, 2, 3)]
    found = list(dict.fromkeys(of_training(lines)))
    assert found == expected
    validated = [one for one in lines if "validation" in one[0]]
    expected = [(f"epoch {e} of 3, validation", done, 2.0) for e in (2, 3) for done in (1, 2)]
    assert validated == expected
    # The last line of an epoch is that of the training, with what was measured.
    assert lines[lines.index(validated[1]) + 1] == ("epoch 2 of 3", 3, 3.0)


@pytest.mark.usefixtures("screen")
def test_steps_limit_the_epochs_and_the_last_one(tmp_path: Path) -> None:
    lines = of_training(fit(tmp_path, loader(4), max_steps=6, max_epochs=-1))
    assert list(dict.fromkeys(lines)) == [
        *(("epoch 1 of 2", done, 4.0) for done in range(5)),
        *(("epoch 2 of 2", done, 2.0) for done in range(3)),
    ]
    lines = fit(tmp_path, loader(4), max_steps=3, max_epochs=-1, accumulate_grad_batches=2)
    assert list(dict.fromkeys(of_training(lines)))[-1] == ("epoch 2 of 2", 2, 2.0)


@pytest.mark.usefixtures("screen")
def test_a_stream_without_a_length_is_counted(tmp_path: Path) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(list(loader(3)))

    lines = of_training(fit(tmp_path, DataLoader(Stream(), batch_size=None), max_epochs=2))
    titles = ("epoch 1 of 2", "epoch 2 of 2")
    assert list(dict.fromkeys(lines)) == [(t, done, math.inf) for t in titles for done in range(4)]


@pytest.mark.usefixtures("screen")
def test_a_resumed_epoch_goes_on_where_it_was(tmp_path: Path) -> None:
    """Also with the data module, whose loader has the rest of the epoch alone."""
    from autotimm import InstanceSegmentationDataModule

    def one(ckpt_path: str | None = None, **options: Any) -> list[Any]:
        data = InstanceSegmentationDataModule(
            SAMPLE, image_size=64, batch_size=2, num_workers=0, val_split=None
        )
        bar = Shown()
        run = AutoTrainer(
            accelerator="cpu",
            default_root_dir=tmp_path / "runs",
            enable_model_summary=False,
            limit_val_batches=0,
            callbacks=[bar],
            **options,
        )
        run.fit(Line(), datamodule=data, ckpt_path=ckpt_path)
        return list(dict.fromkeys(bar.lines))

    lines = one(max_steps=2)
    assert lines == [("epoch 1 of 1", done, 2.0) for done in range(3)]
    lines = one("last", max_epochs=2)
    assert lines == [
        *(("epoch 1 of 2", done, 4.0) for done in (2, 3, 4)),
        *(("epoch 2 of 2", done, 4.0) for done in range(5)),
    ]


@pytest.mark.usefixtures("screen")
def test_the_pace_of_a_validation_begins_with_its_second_batch(tmp_path: Path) -> None:
    """The time of the first one is not known; Lightning has no hook before it that says of which
    loader it is."""
    paces: dict[tuple[str, int], str] = {}

    class Paced(Shown):
        def _show(self, title: str, total: float, done: int) -> None:
            super()._show(title, total, done)
            paces[title, done] = self._pace

    run = AutoTrainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_model_summary=False,
        callbacks=[Paced()],
        num_sanity_val_steps=0,
        max_epochs=1,
        val_check_interval=2,
    )
    run.fit(Line(), loader(4), loader(3))
    validated = [paces["epoch 1 of 1, validation", done] for done in (1, 2, 3)]
    assert validated[0] == "" and all(one.endswith(" it/s") for one in validated[1:])
    assert paces["epoch 1 of 1", 3].endswith(" it/s")


# ------------------------------------------------------------ where it is shown


def test_a_terminal_without_a_cursor_gets_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for term, expected in (("dumb", False), ("unknown", False), ("xterm", True)):
        monkeypatch.setenv("TERM", term)
        assert can_redraw() == expected
    monkeypatch.setenv("TERM", "dumb")
    assert fit(tmp_path, loader(3), max_epochs=1)
    out = capsys.readouterr().out
    assert "epoch 1 of 1: loss" in out and "it/s" not in out


def test_in_a_file_there_is_no_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor are there Lightning's lines about the model and about products."""
    for seen in (True, False):
        monkeypatch.setattr(progress, "_is_visible", lambda seen=seen: seen)
        run = AutoTrainer(accelerator="cpu", default_root_dir=tmp_path, max_epochs=1)
        run.fit(Line(), loader(6))
        out, err = capfd.readouterr()
        assert ("it/s" in out) == seen
        assert "epoch 1 of 1: loss" in out
        assert "FLOP" not in out + err


@pytest.mark.parametrize("there", [True, False])
def test_a_notebook_shows_it_if_it_has_widgets(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "can_redraw", lambda: False)
    monkeypatch.setattr(progress, "get_console", lambda: Console(force_jupyter=True))
    monkeypatch.setattr(progress, "find_spec", lambda _: there or None)
    assert progress._is_visible() == there


def test_lines_in_a_file_say_of_how_many_epochs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, expected in (
        ({"max_steps": 5, "max_epochs": -1}, ["epoch 1 of 2", "epoch 2 of 2"]),
        ({"max_epochs": 1}, ["epoch 1 of 1"]),
        ({"max_epochs": -1, "max_time": "00:00:00:01", "limit_train_batches": 2}, None),
    ):
        fit(tmp_path, loader(3), **options)
        lines = [one for one in capsys.readouterr().out.splitlines() if one.startswith("epoch")]
        named = [one.partition(":")[0] for one in lines]
        assert named == (expected or [f"epoch {n}" for n in range(1, len(lines) + 1)])


def terminal(command: list[str], columns: int) -> str:
    """What a program writes to a terminal of so many columns."""
    child, end = pty.fork()
    if child == 0:
        os.environ.pop("COLUMNS", None)
        os.execve(command[0], command, {**os.environ, "TERM": "xterm"})  # noqa: S606
    ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written = b""
    while True:
        try:
            part = os.read(end, 2**16)
        except OSError:  # the program has ended
            break
        if not part:
            break
        written += part
    _, status = os.waitpid(child, 0)
    assert status == 0, written.decode()
    return written.decode()


def rows(text: str, columns: int) -> list[str]:
    """What a terminal shows in the end: it breaks lines, goes up, erases, and scrolls for ever."""
    shown, row, column = [""], 0, 0
    for found in re.finditer(r"\x1b\[\??(\d*)[\d;]*([A-Za-z])|([^\x1b])", text):
        number, code, letter = found.groups()
        if letter == "\r":
            column = 0
        elif letter == "\n":
            row += 1
        elif letter:
            row, column = (row + 1, 0) if column == columns else (row, column)
            shown += [""] * (row + 1 - len(shown))
            before = shown[row].ljust(column)
            shown[row] = before[:column] + letter + before[column + 1 :]
            column += 1
        elif code == "A":
            row -= int(number or 1)
        elif code == "K":
            shown[row] = "" if number == "2" else shown[row][:column]
        shown += [""] * (row + 1 - len(shown))
    return shown


PROGRAM = """
import sys, time, warnings
sys.path.insert(0, {tests!r})
from line import Line, loader
from lightning.pytorch.utilities import rank_zero_info
from autotimm import AutoTrainer

class Logging(Line):
    def training_step(self, batch, batch_idx):
        time.sleep(0.1)
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({{f"train/part_{{k}}_of_a_long_name_loss": loss for k in range(9)}})
        if batch_idx == 2:
            print("printed between")
            rank_zero_info("logged between")
            warnings.warn("warned between")
        return loss

    def validation_step(self, batch, batch_idx):
        time.sleep(0.4)
        return super().validation_step(batch, batch_idx)

    def on_validation_epoch_end(self):
        names = [f"val/a_metric_of_a_long_name_{{k}}" for k in range(9)]
        self.log_dict(dict.fromkeys(names, 0.25), prog_bar=True)

run = AutoTrainer(accelerator="cpu", default_root_dir={folder!r}, enable_model_summary=False,
                  max_epochs=2, log_every_n_steps=2)
run.fit(Logging(), loader(6), loader(2))
"""


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, pytest.param(33, marks=pytest.mark.release)])
def test_a_terminal_shows_one_line_and_all_that_is_printed(tmp_path: Path, columns: int) -> None:
    code = PROGRAM.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path))
    written = terminal([sys.executable, "-c", code], columns)
    assert "\x1b[1A" not in written, "no frame is higher than a line"
    shown = rows(written, columns)
    of_bar = [row for row in shown if row.startswith("epoch")]
    assert len(of_bar) == 1  # the last one is left; the others were drawn over
    assert of_bar[0].startswith("epoch 2 of 2") and "6/6" in of_bar[0]
    assert len(of_bar[0].rstrip()) < columns
    frames = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", part) for part in re.split("[\r\n]+", written)]
    frames = [frame for frame in frames if frame.startswith("epoch")]
    assert any("epoch 1 of 2, validation" in frame for frame in frames)
    # Which of the others are drawn depends on the machine's pace.
    assert "6/6" in {found for f in frames for found in re.findall(r"\d/6", f)}
    if columns == 80:
        assert any("loss 1" in frame or "loss 0" in frame for frame in frames)
    for word in ("printed between", "logged between"):
        assert sum(row == word for row in shown) == 2
    assert "warned between" in "".join(shown)
    assert any(row.startswith("`Trainer.fit` stopped") for row in shown)


# ------------------------------------------------------------ numbers


@pytest.mark.usefixtures("screen")
def test_the_bar_asks_a_device_for_numbers_only_at_steps_that_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = LightningBar.get_metrics

    def count(self, run, model):
        asked.append(run.global_step)
        return ask(self, run, model)

    monkeypatch.setattr(LightningBar, "get_metrics", count)

    class Logging(Line):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss, prog_bar=True)
            return loss

    def steps_asked(folder: str) -> list[int]:
        asked.clear()
        run = AutoTrainer(
            accelerator="cpu",
            default_root_dir=tmp_path / folder,
            enable_model_summary=False,
            log_every_n_steps=4,
            max_epochs=1,
        )
        run.fit(Logging(), loader(10))
        assert isinstance(run.progress_bar_callback, progress.ProgressBar)
        return sorted(set(asked))

    assert steps_asked("cpu") == [*range(1, 11)]
    monkeypatch.setattr(progress, "_waits", lambda _: True)
    assert steps_asked("gpu") == [
        1,
        4,
        8,
        10,
    ]  # first, logged, end of the epoch


@pytest.mark.usefixtures("screen")
def test_the_bar_shows_what_people_look_for(tmp_path: Path) -> None:
    class Logging(Line):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train/loss", loss, prog_bar=True)
            self.log_dict({"train/boxes_loss": loss / 4, "train/masks_loss": 3 * loss / 4})
            return loss

        def on_validation_epoch_end(self):
            self.log("val/mask_mAP", 0.25, prog_bar=True)

    bar = Shown()
    run = AutoTrainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_model_summary=False,
        log_every_n_steps=2,
        max_epochs=2,
        callbacks=[bar],
    )
    run.fit(Logging(), loader(6), loader(1))
    last = next(one for one in reversed(bar.metrics) if "ETA" in one)
    names = ["ETA", "loss", "val/mask_mAP", "images/s", "data wait", "boxes", "masks"]
    assert [*last] == names  # the most important first
    assert last["loss"] == pytest.approx(last["boxes"] + last["masks"])
    assert last["val/mask_mAP"] == 0.25
    assert not isinstance(last["loss"], torch.Tensor)
