"""``metrics.csv``: the metrics of a run, one row for each time that they are logged.

Invariants: the file contains only whole rows at any time; if the disk is full, rows wait until
there is room; a row is on the disk before the checkpoint of its step (``RowsAhead``); a run that
resumes in its folder appends to its file, after removing the rows of the steps that it repeats.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor

from autotimm.files.atomic import whole_file
from autotimm.files.shortage import name_file


class MetricsLogger(CSVLogger):
    """Lightning's CSVLogger, except that it appends to an existing file instead of removing it.

    Args:
        root: the folder that contains the runs.
        version: the name of the run's folder; by default the next free ``version_<n>``.

    ``step`` counts from 0, as in all of Lightning's loggers: the row of step 9 belongs to the tenth
    optimizer step, or to a validation after it. Checkpoints, pictures and ``run.json`` use the
    number of steps taken, which is 10 then.
    """

    def __init__(self, root: str | Path, version: str | None = None) -> None:
        super().__init__(root, name="", version=version)
        self.known_version: int | str | None = version
        self.file: MetricsFile | None = None

    @property
    def version(self) -> int | str:
        """The name or number of the run's folder.

        The first rank creates a new folder at once. Otherwise two runs that start together could
        choose the same number.
        """
        if self.known_version is None:
            free = int(super().version)
            while not rank_zero_only.rank:  # type: ignore[attr-defined]
                try:
                    Path(self.root_dir, f"version_{free}").mkdir(parents=True)
                except FileExistsError:
                    free += 1
                    continue
                except OSError:  # later writes will report it
                    pass
                break
            self.known_version = free
        return self.known_version

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsFile:
        if self.file is None:
            self.file = MetricsFile(self.log_dir)
        return self.file

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.file is not None:
            self.save()

    @rank_zero_only
    def sync(self) -> None:
        """Syncs the rows that are written to the disk, so that a power failure keeps them."""
        if self.file is not None:
            self.file.sync()

    @rank_zero_only
    def go_on(self, step: int) -> None:
        """Removes the rows of optimizer step ``step``, from 0 on, and later, which are repeated."""
        self.experiment.forget(step)


class MetricsFile:
    """The file, its rows that are not written yet, and ``hparams.yaml`` beside it.

    It replaces Lightning's ExperimentWriter, which removes an existing file, and has its methods.
    """

    def __init__(self, log_dir: str) -> None:
        self.path = Path(log_dir, "metrics.csv")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.metrics: list[dict[str, Any]] = []
        self.metrics_keys: list[str] = []
        self.hparams: dict[str, Any] = {}
        if self.path.exists():
            self._take_over()

    def _take_over(self) -> None:
        """Goes on with the file of an earlier start, which a program may have saved in between.

        If it has rows without a step, it is kept under another name, and the others are copied.
        """
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # the last row is partial if a run was killed
        columns, rows, left_out = _parsed(whole)
        if left_out:
            numbers = ("", *map(str, range(2, 1000)))
            names = (self.path.with_name(f"{self.path.name}.old{n}") for n in numbers)
            old = next(name for name in names if not name.exists())
            self.path.replace(old)
            rank_zero_warn(
                f"{self.path} has {left_out} rows that are none of a run's, or is no table: it is "
                f"kept as {old}, and the run goes on with its other {len(rows)} rows"
            )
        elif not columns:
            self.path.unlink()
        elif whole == _table(rows, columns):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
            self.metrics_keys = columns
            return
        if columns:
            self._rewrite(rows, columns)

    def log_hparams(self, params: dict[str, Any]) -> None:
        self.hparams |= params
        save_hparams_to_yaml(self.path.with_name("hparams.yaml"), self.hparams)

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        row = {k: v.item() if isinstance(v, Tensor) else v for k, v in metrics.items()}
        self.metrics.append({**row, "step": step})

    def save(self) -> None:
        """Writes the waiting rows. If that fails, they keep waiting and the file stays as it is."""
        if not self.metrics:
            return
        columns = sorted({*self.metrics_keys}.union(*self.metrics))
        if columns != self.metrics_keys or not self.path.exists():
            self._rewrite([*self._read(), *self.metrics], columns)
        else:
            with self.path.open("ab") as file:
                size = file.tell()
                try:
                    file.write(_rows(self.metrics, columns))
                    file.flush()
                except OSError as error:
                    name_file(error, self.path)
                    # Close the raw file: closing the buffer would write the rest of it.
                    file.raw.close()
                    with self.path.open("r+b") as again:
                        again.truncate(size)
                    raise
        self.metrics = []

    def sync(self) -> None:
        """Syncs the file to the disk."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def forget(self, step: int) -> None:
        """Removes the rows of ``step`` and later ones."""
        rows = self._read()
        kept = [row for row in rows if int(row["step"]) < step]
        if len(kept) < len(rows):
            self._rewrite(kept, self.metrics_keys)

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: Sequence[dict[str, Any]], columns: list[str]) -> None:
        with whole_file(self.path, sync=False) as file:
            file.write(_table(rows, columns))
        self.metrics_keys = columns


def _parsed(whole: bytes) -> tuple[list[str], list[dict[str, Any]], int]:
    """The columns and rows of a table, and the number of rows that have no step."""
    try:
        table = csv.DictReader(io.StringIO(whole.decode("utf-8-sig"), newline=""))
        columns, found = list(table.fieldnames or ()), list(table)
    except (ValueError, csv.Error):
        return [], [], 1
    if columns and "step" not in columns:
        return [], [], 1 + len(found)
    rows = []
    for row in found:
        row.pop(None, None)  # more cells than there are columns
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            rows.append(row | {"step": int(float(row["step"]))})
    return columns, rows, len(found) - len(rows)


def _table(rows: Sequence[dict[str, Any]], columns: list[str]) -> bytes:
    return _rows([dict(zip(columns, columns, strict=True)), *rows], columns)


def _rows(rows: Sequence[dict[str, Any]], columns: list[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
