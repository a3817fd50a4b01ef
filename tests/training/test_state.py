"""The state in a checkpoint besides the weights: random generators, settings, versions."""

from __future__ import annotations

import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import small
from coco_folder import mixed
from line import Line, quiet
from ranks import on_ranks
from torch.utils.data import DataLoader

from autotimm import InputError, InstanceSegmentationDataModule
from autotimm.sharding.cli import shard
from autotimm.training.state import random_state, set_random_state

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Chance(Line):
    """Draws from each random generator in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[float, ...]] = []

    def training_step(self, batch, batch_idx):
        noise = (torch.rand(1).item(), np.random.normal(), random.gauss(0, 1))
        self.drawn.append((batch["image"][0, 0, 0, 0].item(), *noise))
        return super().training_step(batch, batch_idx) * sum(noise)


def seed(number: int) -> None:
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def shuffled(batches: int = 5) -> DataLoader:
    every = [
        {"image": torch.full((2, 3, 4, 4), float(i)), "padding": torch.ones(2)}
        for i in range(batches)
    ]
    return DataLoader(every, batch_size=None, shuffle=True)


def both(folder: Path, first: int) -> tuple[Chance, Chance]:
    """A run of three epochs, and one that resumes from the end of its first epoch."""
    whole, rest = Chance(), Chance()
    seed(first)
    quiet(folder / "whole", logger=False, max_epochs=3, keep_last=-1).fit(whole, shuffled())
    seed(first + 100)
    quiet(folder / "rest", logger=False, max_epochs=3).fit(
        rest, shuffled(), ckpt_path=folder / "whole" / "version_0" / "checkpoints" / "step_5.ckpt"
    )
    return whole, rest


def test_a_run_that_goes_on_draws_what_the_undisturbed_one_did(tmp_path: Path) -> None:
    """This includes the order of a loader that PyTorch shuffles."""
    whole, rest = both(tmp_path, 1)
    assert len(rest.drawn) == 10
    assert rest.drawn == whole.drawn[5:]
    assert rest.weight.item() == whole.weight.item()


class Rest:
    """A loader that is in mid-epoch according to its state."""

    def __init__(self) -> None:
        self.taken = 0

    def __len__(self) -> int:
        return 6

    def __iter__(self):
        torch.rand(3)  # like a DataLoader, it draws when it creates an iterator
        return self.batches()

    def batches(self):
        while self.taken < 6:
            self.taken += 1
            yield {"image": torch.ones(2, 3, 4, 4), "padding": torch.ones(2)}
        self.taken = 0

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.taken = state_dict["taken"]


def test_in_mid_epoch_too(tmp_path: Path) -> None:
    whole, rest = Chance(), Chance()
    seed(1)
    options = {"logger": False, "max_epochs": 1, "save_every_n_steps": 2, "keep_last": -1}
    quiet(tmp_path / "whole", **options).fit(whole, Rest())
    seed(2)
    path = tmp_path / "whole" / "version_0" / "checkpoints" / "step_4.ckpt"
    quiet(tmp_path / "rest", **options).fit(rest, Rest(), ckpt_path=path)
    assert rest.drawn == whole.drawn[4:]


def test_a_state_of_random_numbers_is_plain_and_comes_back(tmp_path: Path) -> None:
    seed(5)
    random.gauss(0, 1)  # also stores a second number
    np.random.normal()
    torch.save(random_state(CPU), tmp_path / "state.pt")
    expected = [random.gauss(0, 1), random.random(), np.random.normal(), torch.rand(1).item()]
    seed(6)
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True), CPU)
    assert [
        random.gauss(0, 1),
        random.random(),
        np.random.normal(),
        torch.rand(1).item(),
    ] == expected


def test_a_checkpoint_says_what_it_came_from(tmp_path: Path) -> None:
    """The real model's checkpoint holds everything, as plain values."""
    shard(mixed(tmp_path / "coco"), tmp_path / "shards", samples_per_shard=4)
    data = InstanceSegmentationDataModule(
        tmp_path / "shards", image_size=64, batch_size=2, num_workers=0
    )
    trainer = quiet(tmp_path, max_steps=2, limit_val_batches=0, ema_decay=0.9)
    trainer.fit(small(num_classes=4), datamodule=data)
    path = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    assert {"state_dict", "ema", "optimizer_states", "lr_schedulers", "loops"} <= saved.keys()
    assert saved["InstanceSegmentationDataModule"]["consumed"] == 4
    assert saved["hyper_parameters"]["backbone"] == "resnet10t"
    assert len(saved["categories"]) == 4
    own = saved["autotimm"]
    assert own["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert own["settings"]["data"]["image_size"] == [64, 64]
    assert own["settings"]["trainer"]["max_steps"] == 2
    assert len(own["random"]) == 1
    assert own["saved"] == pytest.approx(path.stat().st_mtime, abs=60)


@pytest.mark.parametrize(
    "odd",
    [
        [],
        {"versions": {}, "random": [5]},
        {"versions": 3, "random": []},
        {"versions": {}},
        {"versions": {}, "random": [{"python": [3, [1], None], "numpy": {}, "torch": "a"}]},
    ],
)
def test_an_invalid_state_is_reported_in_one_line(odd: Any, tmp_path: Path) -> None:
    path = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    quiet(tmp_path, logger=False, max_epochs=1).fit(Line(), shuffled())
    torch.save({**torch.load(path, weights_only=True), "autotimm": odd}, tmp_path / "odd.ckpt")
    with (
        warnings.catch_warnings(),
        pytest.raises(InputError, match="entry 'autotimm' is not what"),
    ):
        warnings.simplefilter("ignore")
        quiet(tmp_path, logger=False, max_epochs=2).fit(
            Line(), shuffled(), ckpt_path=tmp_path / "odd.ckpt"
        )


def test_another_version_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    quiet(tmp_path, logger=False, max_epochs=1).fit(Line(), shuffled())
    content = torch.load(path, weights_only=True)
    content["autotimm"]["versions"]["torch"] = "1.0"
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.warns(UserWarning, match=r"was saved with torch 1\.0, and this is torch \d"):
        quiet(tmp_path, logger=False, max_epochs=2).fit(
            Line(), shuffled(), ckpt_path=tmp_path / "old.ckpt"
        )


def test_urls_among_the_settings_are_saved_without_their_secrets(tmp_path: Path) -> None:
    class Given(Line):
        def __init__(self, weights: str, widths: list[int]) -> None:
            super().__init__()
            self.save_hyperparameters()

    model = Given("https://u:SECRET@h/w.pth?sig=SECRET", [1, 2])
    quiet(tmp_path, logger=False, max_epochs=1).fit(model, shuffled())
    path = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    assert b"SECRET" not in path.read_bytes()
    saved = torch.load(path, weights_only=True)["hyper_parameters"]
    assert dict(saved) == {"weights": "https://h/w.pth", "widths": [1, 2]}
    assert "SECRET" in model.hparams["weights"]  # the run still uses it


RANKS = """
import os, sys, warnings
from pathlib import Path
import torch.distributed as dist
from test_state import both

warnings.simplefilter("ignore")
rank = int(os.environ["RANK"])
whole, rest = both(Path(sys.argv[1]), first=rank)
assert rest.drawn and rest.drawn == whole.drawn[-len(rest.drawn):], (rank, rest.drawn, whole.drawn)
parts = [None, None]
dist.all_gather_object(parts, whole.drawn)
assert parts[0] != parts[1]
print("the same", flush=True)
"""


@pytest.mark.slow
def test_each_rank_goes_on_with_its_own(tmp_path: Path) -> None:
    done = on_ranks(RANKS, tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("the same") == 2


class Canary:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("way", ["load", "url", "fit", "validate", "newest", "forced", "convert"])
def test_nothing_of_a_checkpoint_that_carries_code_runs(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from servers import serve

    from autotimm import InstanceSegmentor
    from autotimm.checkpoints.convert import convert
    from autotimm.checkpoints.resume import newest

    ran, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    quiet(tmp_path / "run", logger=False, max_epochs=1).fit(Line(), shuffled())
    content = torch.load(
        tmp_path / "run" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True
    )
    torch.save({**content, "hyper_parameters": {"backbone": Canary(ran)}}, path)
    if way == "forced":
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    refused = pytest.raises(InputError, match=r"evil\.ckpt.*carries code, which was not run")
    if way == "newest":
        with pytest.warns(UserWarning, match=r"evil\.ckpt is damaged"):
            assert newest(tmp_path) is None
    elif way == "url":
        with serve(tmp_path) as server, refused:
            InstanceSegmentor.load_from_checkpoint(f"{server.url}/evil.ckpt")
    elif way == "convert":
        with refused:
            convert(path, tmp_path / "out.safetensors")
    elif way in ("fit", "validate"):
        trainer = quiet(tmp_path, logger=False, max_epochs=2)
        with refused:
            getattr(trainer, way)(Line(), shuffled(), ckpt_path=path)
    else:
        with refused:
            InstanceSegmentor.load_from_checkpoint(path)
    assert not ran.exists()
    # Without the protection, the code does run.
    torch.load(path, weights_only=False)
    assert ran.exists()


@pytest.mark.parametrize("key", ["hyper_parameters", "datamodule_hyper_parameters"])
def test_a_name_of_code_to_be_imported_is_refused(key: str, tmp_path: Path) -> None:
    from autotimm import InstanceSegmentor

    path = tmp_path / "evil.ckpt"
    named = {"_instantiator": "os.system", "backbone": "resnet10t"}
    torch.save({"state_dict": {}, "hyper_parameters": {}, key: named}, path)
    with pytest.raises(InputError, match=r"evil\.ckpt names code to run \('os\.system'"):
        InstanceSegmentor.load_from_checkpoint(path)
