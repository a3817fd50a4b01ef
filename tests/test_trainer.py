"""AutoTrainer: what it takes from the launcher, what it refuses, what a run leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from line import Line, loader, quiet

from autotimm import AutoTrainer, InputError
from autotimm.training import trainer
from autotimm.training.pictures import SavePictures


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true", "foo"])
def test_precisions_that_the_losses_do_not_bear_are_refused(precision: str) -> None:
    with pytest.raises(InputError, match=f"precision='{precision}'.*16-mixed"):
        AutoTrainer(precision=precision)


def test_default_callbacks_give_way_to_those_of_the_user_and_their_kind() -> None:
    class Mine(SavePictures):
        pass

    def kinds(given):
        made = trainer._default_callbacks(given, checkpoints=True, bar=True)
        return [type(c).__name__ for c in made]

    every = [
        *("CheckLoss", "Throughput", "EpochLines", "SavePictures"),
        *("SaveResults", "RunRecord", "ModelCheckpoint", "Preemption"),
        "ProgressBar",
    ]
    assert kinds([]) == every
    assert kinds([Mine()]) == [name for name in every if name != "SavePictures"]
    assert "ProgressBar" not in kinds([TQDMProgressBar()])


def test_the_last_checkpoint_is_that_of_the_last_epoch(tmp_path: Path) -> None:
    """Also where the last epochs are not validated."""
    quiet(tmp_path, max_epochs=5, check_val_every_n_epoch=3).fit(Line(), loader(), loader(1))
    state = torch.load(tmp_path / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 15
