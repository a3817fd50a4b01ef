"""The data module under Lightning: exact epochs, several ranks, resume, and refused arguments."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folder import mixed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import on_ranks

from autotimm.augmentation.presets import Augmentation
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.data.synthetic import make_dataset
from autotimm.sharding.cli import shard
from autotimm.structures import InputError

IMAGES, VAL = 13, 5
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted") / "coco"
    make_dataset(folder, train=IMAGES, val=VAL, size=(64, 96))
    return folder


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed(tmp_path_factory.mktemp("mixed") / "coco")


@pytest.fixture(scope="module")
def shard_folder(coco_folder: Path) -> Path:
    shard(coco_folder, coco_folder.parent / "shards", samples_per_shard=4)
    return coco_folder.parent / "shards"


def module(folder: Path, **options: Any) -> InstanceSegmentationDataModule:
    return InstanceSegmentationDataModule(
        folder, **({"image_size": 64, "batch_size": 2, "num_workers": 0} | options)
    )


class Recorder(LightningModule):
    """Learns one number, and records the images that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []
        self.batches: list[list[int]] = []
        self.shapes: list[list[int]] = []
        self.evaluated: list[int] = []
        self.predicted: list[int] = []
        self.image: torch.Tensor | None = None

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
        if not self.seen:
            self.seen.append([])
        self.seen[-1] += batch["image_id"].tolist()
        self.batches.append(batch["image_id"].tolist())
        self.image = batch["image"]
        self.shapes.append(list(self.image.shape[2:]))
        return (self.weight - batch["image"].mean()).square().sum()

    def validation_step(self, batch: dict[str, Any]) -> None:
        self.evaluated += batch["image_id"][~batch["padding"]].tolist()

    test_step = validation_step

    def predict_step(self, batch: dict[str, Any]) -> None:
        self.predicted += batch["image_id"][~batch["padding"]].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **options: Any) -> Trainer:
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return Trainer(**(defaults | options))


@pytest.mark.parametrize("workers", [0, 2])
def test_fit_sees_each_image_once_an_epoch(
    coco_folder: Path, shard_folder: Path, tmp_path: Path, workers: int
) -> None:
    for folder in (coco_folder, shard_folder):
        model = Recorder()
        data = module(folder, num_workers=workers)
        trainer(tmp_path).fit(model, datamodule=data)
        assert len(model.seen) == 2
        for epoch in model.seen:
            assert len(epoch) == 14  # seven batches; one image repeats
            assert len(set(epoch[:IMAGES])) == IMAGES
            assert epoch[IMAGES] == epoch[0]
        assert model.seen[0] != model.seen[1]
        # Lightning's sanity check takes two batches before training; then it validates each epoch.
        assert len(model.evaluated) == 4 + 2 * VAL
        assert len(set(model.evaluated)) == VAL


def test_loaders_are_made_as_the_flags_say(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    class Loader(list):
        multiprocessing_context = None

        def __init__(self, _, **options: Any) -> None:
            made.append(options)

    monkeypatch.setattr("autotimm.streaming.loader.DataLoader", Loader)
    flags = {"num_workers": 3, "prefetch_factor": 5, "persistent_workers": False}
    data = module(shard_folder, pin_memory=True, **flags)
    for one in (data.train_dataloader(), data.val_dataloader()):
        list(one)
        assert {**made[-1], **flags, "pin_memory": True} == made[-1]


def test_evaluation_and_prediction_see_each_image_once(shard_folder: Path, tmp_path: Path) -> None:
    model, data = Recorder(), module(shard_folder, val_batch_size=3, num_workers=1)
    for run in ("validate", "test"):
        model.evaluated.clear()
        getattr(trainer(tmp_path), run)(model, datamodule=data, verbose=False)
        assert len(set(model.evaluated)) == len(model.evaluated) == VAL
    trainer(tmp_path).predict(model, datamodule=data)
    assert sorted(model.predicted) == sorted(model.evaluated)


def test_images_are_normalised_once_on_the_device(shard_folder: Path, tmp_path: Path) -> None:
    model = Recorder()
    data = module(shard_folder, batch_size=1, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4))
    trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(model, datamodule=data)
    assert model.image is not None
    *_, batch = module(shard_folder, batch_size=1).train_dataloader()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.1, 0.2, 0.4)))
    truth = (batch["image"].double() / 255 - mean) / std
    seen = (batch["image"] != torch.tensor([124, 116, 104]).view(3, 1, 1)).any(1, keepdim=True)
    assert torch.allclose(model.image.double() * seen, truth * seen, atol=1e-4)
    assert model.image.dtype == torch.float32
    again = data.on_after_batch_transfer({"image": model.image}, 0)
    assert again["image"] is model.image


@pytest.mark.parametrize("stop", [1, 4, 7, 9])
def test_lightning_resumes_at_the_very_batch(shard_folder: Path, tmp_path: Path, stop: int) -> None:
    """A run resumed from a checkpoint of any step gets the batches of an uninterrupted run."""
    truth = Recorder()
    trainer(tmp_path, limit_val_batches=0).fit(truth, datamodule=module(shard_folder))

    saving = ModelCheckpoint(tmp_path / str(stop), every_n_train_steps=stop, save_top_k=-1)
    first = Recorder()
    trainer(
        tmp_path,
        limit_val_batches=0,
        callbacks=[saving],
        enable_checkpointing=True,
        max_steps=stop,
        max_epochs=-1,
    ).fit(first, datamodule=module(shard_folder))
    assert first.batches == truth.batches[:stop]

    second = Recorder()
    trainer(tmp_path, limit_val_batches=0).fit(
        second,
        datamodule=module(shard_folder),
        ckpt_path=next((tmp_path / str(stop)).glob("*.ckpt")),
    )
    assert second.batches == truth.batches[stop:]
    assert torch.equal(second.weight, truth.weight)


class Scheduled(Recorder):
    """Makes Lightning create the training loader before it restores the run's position."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()


@pytest.fixture(scope="module", params=[{}, {"limit_train_batches": 3}], ids=["all", "limited"])
def stopped(
    request: pytest.FixtureRequest, shard_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[list[int]], dict[int, Path]]:
    """A run of two epochs: its limits, its batches, and checkpoints by the batches before them."""
    folder = tmp_path_factory.mktemp("stopped")
    saving = [
        ModelCheckpoint(folder, "step-{step}", every_n_train_steps=2, save_top_k=-1),
        ModelCheckpoint(folder, "end-{step}", every_n_epochs=1, save_top_k=-1),
    ]
    model, options = Scheduled(), {"max_epochs": 2, "limit_val_batches": 0} | request.param
    run = trainer(folder, callbacks=saving, enable_checkpointing=True, **options)
    run.fit(model, datamodule=module(shard_folder))
    run.save_checkpoint(folder / "after.ckpt")
    steps = {int(f.stem.partition("step=")[2]): f for f in folder.glob("step-*.ckpt")}
    assert len(steps) == len(model.batches) // 2
    ends = {-int(f.stem.partition("step=")[2]): f for f in folder.glob("end-*.ckpt")}
    assert len(ends) == 2
    return options, model.batches, steps | ends | {0: folder / "after.ckpt"}


def test_a_schedule_does_not_lose_the_position(
    stopped: tuple[dict[str, Any], list[list[int]], dict[int, Path]],
    shard_folder: Path,
    tmp_path: Path,
) -> None:
    """Saves at every other step, at the end of each epoch (negative) and after the fit (0)."""
    options, truth, checkpoints = stopped
    anew = {"reload_dataloaders_every_n_epochs": 1}
    for taken, checkpoint in checkpoints.items():
        for kind, more in ((Scheduled, {}), (Scheduled, anew), (Recorder, {})):
            model = kind()
            run = trainer(tmp_path, **(options | more | {"max_epochs": 3}))
            run.fit(model, datamodule=module(shard_folder), ckpt_path=checkpoint)
            left = truth[abs(taken) or len(truth) :]
            assert model.batches[: len(left)] == left, (taken, kind, more)
            third = model.batches[len(left) :]
            assert len(third) == len(truth) / 2
            assert third not in [truth[i : i + len(third)] for i in range(len(truth))]


def test_only_a_fit_goes_on_from_a_checkpoint(
    stopped: tuple[dict[str, Any], list[list[int]], dict[int, Path]],
    shard_folder: Path,
    coco_folder: Path,
    tmp_path: Path,
) -> None:
    options, truth, checkpoints = stopped
    for kind in (Recorder, Scheduled):
        for data, match in (
            (module(coco_folder), "not the data that the checkpoint was trained on"),
            (module(shard_folder, seed=1), "seed is 1, but the checkpoint was trained with seed 0"),
        ):
            for run in ("validate", "test", "predict"):
                evaluating = trainer(tmp_path)
                getattr(evaluating, run)(kind(), datamodule=data, ckpt_path=checkpoints[2])
            with pytest.raises(InputError, match=match):
                trainer(tmp_path, **options).fit(kind(), datamodule=data, ckpt_path=checkpoints[2])
            trainer(tmp_path, **options).fit(kind(), datamodule=data)  # the refused state is gone
        data = module(shard_folder)
        first, second = kind(), kind()
        trainer(tmp_path, **options).fit(first, datamodule=data, ckpt_path=checkpoints[2])
        assert first.batches == truth[2:]
        trainer(tmp_path, **options).fit(second, datamodule=data)
        assert second.batches == truth


def test_the_state_reaches_a_loader_that_is_there_already(shard_folder: Path) -> None:
    """Like a strategy that restores checkpoints only after it has created the optimizers."""
    first, second, third = (module(shard_folder) for _ in range(3))
    assert first.state_dict() == {}
    batches = iter(first.train_dataloader())
    next(batches)
    loader = second.train_dataloader()
    second.load_state_dict(first.state_dict())
    third.load_state_dict(first.state_dict())
    left = [batch["file_name"] for batch in batches]
    assert [batch["file_name"] for batch in loader] == left
    assert [batch["file_name"] for batch in third.train_dataloader()] == left


def test_loaders_made_anew_go_on(shard_folder: Path, tmp_path: Path) -> None:
    truth, model = Recorder(), Recorder()
    trainer(tmp_path, limit_val_batches=0).fit(truth, datamodule=module(shard_folder))
    every = trainer(tmp_path, limit_val_batches=0, reload_dataloaders_every_n_epochs=1)
    every.fit(model, datamodule=module(shard_folder))
    assert model.batches == truth.batches


def test_loaders_made_anew_leave_no_workers(shard_folder: Path, tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    counts = []

    class Counting(Recorder):
        def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
            counts.append(len(set(multiprocessing.active_children()) - before))
            return super().training_step(batch)

    every = {"reload_dataloaders_every_n_epochs": 1, "limit_train_batches": 2, "max_epochs": 4}
    data = module(shard_folder, num_workers=1)
    trainer(tmp_path, num_sanity_val_steps=0, **every).fit(Counting(), datamodule=data)
    assert counts[:2] == [1, 1]
    assert max(counts) == 2  # one for training and one for validation
    assert not set(multiprocessing.active_children()) - before


def test_overfitting_keeps_to_its_batches(shard_folder: Path, tmp_path: Path) -> None:
    model = Recorder()
    trainer(tmp_path, overfit_batches=2).fit(model, datamodule=module(shard_folder))
    assert model.batches[:2] == model.batches[2:]
    assert len(model.batches) == 4


ENDS = """
    from autotimm.distributed.agreement import settle_at_exit
    settle_at_exit()  # AutoTrainer does
"""


def run_ranks(code: str, out: Path, *arguments: object) -> list[dict[str, Any]]:
    """Runs code on two ranks; returns the content of each rank's ``<rank>.json``."""
    done = on_ranks(code + ENDS, out, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


RANK = """
    import json, sys
    from test_datamodule import Recorder, module, trainer
    from pathlib import Path

    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    model = Recorder()
    run = trainer(out, devices=2, strategy="ddp", use_distributed_sampler=sys.argv[3] == "1")
    run.fit(model, datamodule=module(folder, num_workers=1))
    run.validate(model, datamodule=module(folder), verbose=False)
    found = {"seen": model.seen, "evaluated": model.evaluated[-5:]}
    (out / f"{run.global_rank}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["0", "1"])
def test_two_ranks_share_an_epoch(shard_folder: Path, tmp_path: Path, sampler: str) -> None:
    arguments = [shard_folder, tmp_path, sampler]
    ranks = run_ranks(RANK, tmp_path, *arguments)
    one = Recorder()
    trainer(tmp_path, limit_val_batches=0).fit(one, datamodule=module(shard_folder, batch_size=4))
    for epoch, truth in enumerate(one.seen):
        first, second = (r["seen"][epoch] for r in ranks)
        assert len(first) == len(second) == 8
        assert len(set(first[:6]) & set(second[:6])) == 0
        joined = np.concatenate([np.reshape(first, (4, 2)), np.reshape(second, (4, 2))], axis=1)
        assert joined.ravel().tolist() == truth
    evaluated = [r["evaluated"] for r in ranks]
    assert len(set(evaluated[0]) | set(evaluated[1])) == VAL


def test_a_folder_and_its_shards_give_the_same_batches(
    coco_folder: Path, shard_folder: Path
) -> None:
    for folder in (coco_folder, shard_folder):
        assert module(folder).class_names == ["disc", "square", "triangle", "star"]
        assert module(folder).num_classes == 4
    a, b = (list(module(f).val_dataloader()) for f in (coco_folder, shard_folder))
    assert len(a) == len(b) == 3
    for x, y in zip(a, b, strict=True):
        assert x["target"][0].keys() == y["target"][0].keys()
        for key in set(x) - {"target"}:
            equal = torch.equal if isinstance(x[key], torch.Tensor) else lambda p, q: p == q
            assert equal(x[key], y[key]), key
        assert [t["rles"] for t in x["target"]] == [t["rles"] for t in y["target"]]


@pytest.mark.parametrize("preset", ["light", "default", "strong"])
def test_same_seed_same_batches_for_any_workers(shard_folder: Path, preset: str) -> None:
    def batches(workers: int, seed: int = 0) -> list[dict[str, Any]]:
        data = module(shard_folder, num_workers=workers, augmentation_preset=preset, seed=seed)
        loader = data.train_dataloader()
        found = [batch for _ in range(2) for batch in loader]
        data.teardown()
        return found

    truth = batches(0)
    for workers in (1, 2):
        for x, y in zip(truth, batches(workers), strict=True):
            assert x["file_name"] == y["file_name"]
            for key in set(x) - {"file_name"}:
                assert torch.equal(x[key], y[key]), key
    assert any(
        not torch.equal(x["image"], y["image"]) for x, y in zip(truth, batches(0, 1), strict=True)
    )


def test_one_image_looks_different_in_every_epoch(shard_folder: Path) -> None:
    loader = module(shard_folder, augmentation_preset="strong").train_dataloader()
    looks: dict[int, list[torch.Tensor]] = {}
    for _ in range(2):
        for batch in loader:
            for number, image in zip(batch["image_id"].tolist(), batch["image"], strict=True):
                looks.setdefault(number, []).append(image)
    assert all(not torch.equal(a, b) for a, b, *_ in looks.values())


def test_masks_and_sizes(shard_folder: Path) -> None:
    data = module(shard_folder, image_size=(70, 97), masks=False)
    assert data.image_size == (96, 128)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 96, 128)
    assert "masks" not in batch
    data = module(shard_folder, resize="stretch")
    assert next(iter(data.train_dataloader()))["masks"].shape[2:] == (112, 112)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        batch = next(iter(loader))
        assert batch["scale"].tolist() == [[pytest.approx(64 / 96), 1.0]] * 2
        assert "masks" not in batch  # evaluation does not use crops
        assert all(len(t["rles"]) == len(t["labels"]) for t in batch["target"])
        assert (batch["labels"] >= 0).any()


def test_splits(coco_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(coco_folder, tmp_path / "coco")
    data = module(folder, val_split=None)
    data.setup("fit")
    assert data.val_dataloader() == []
    model = Recorder()
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=data)
    for run in ("validate", "test"):
        with pytest.raises(InputError, match="there is nothing to evaluate on: val_split is None"):
            getattr(trainer(tmp_path), run)(model, datamodule=data)
    with pytest.raises(InputError, match="no split 'other', only train, val; val_split=None"):
        module(folder, val_split="other").setup("fit")

    annotations = folder / "annotations"
    for name in ("instances_test2017.json", "instances_odd.json"):
        shutil.copy(annotations / "instances_val2017.json", annotations / name)
    shutil.copytree(folder / "val2017", folder / "test2017")
    assert module(folder).check("test") == ["test"]
    assert module(folder, test_split="val").check("test") == ["val"]

    content = json.loads((annotations / "instances_odd.json").read_text())
    content["categories"][0]["name"] = "ellipse"
    (annotations / "instances_odd.json").write_text(json.dumps(content))
    shutil.copytree(folder / "val2017", folder / "odd")
    with pytest.raises(
        InputError, match=r"odd\.json: category 1 \('ellipse'\) is not .* the same categories$"
    ):
        module(folder, val_split="odd").setup("fit")

    # With one more category: the shards of both splits have it, so both have a label for it.
    content["categories"][0]["name"] = "disc"
    content["categories"].append({"id": 2, "name": "ellipse", "supercategory": ""})
    (annotations / "instances_odd.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"category 2 \('ellipse'\) .* join them with autotimm-sh"):
        module(folder, val_split="odd").setup("fit")
    shard(folder, tmp_path / "shards", splits=["train", "odd"])
    joined = module(tmp_path / "shards", val_split="odd")
    joined.setup("fit")
    assert joined.class_names == ["disc", "ellipse", "square", "triangle", "star"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_category_that_the_manifest_lacks_is_no_damage(
    shard_folder: Path, tmp_path: Path, workers: int
) -> None:
    folder = shutil.copytree(shard_folder, tmp_path / "shards")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["sha256"]
    manifest["categories"] = [c for c in manifest["categories"] if c["id"] != 7]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    data = module(folder, num_workers=workers, max_corrupt=1.0, augmentation_preset="light")
    match = r"\(in .*shards/.*\.tar\): .* has category id 7, which .*manifest\.json"
    with warnings.catch_warnings(), pytest.raises(InputError, match=match) as error:
        warnings.simplefilter("error")  # nothing is skipped
        list(data.train_dataloader())
    assert "max_corrupt" not in str(error.value)


def test_what_a_folder_leaves_out_is_reported(
    coco_folder: Path, shard_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(coco_folder, tmp_path / "coco")
    images = sorted((folder / "train2017").iterdir())
    images[0].unlink()
    with pytest.warns(UserWarning, match=f"coco, split 'train': .*: 1 .*{images[0].name}") as got:
        data = module(folder)
        data.setup("fit")
        assert data.num_classes == 4
    ours = [str(w.message) for w in got if "split 'train'" in str(w.message)]
    assert len(ours) == 1
    assert ours[0].startswith(str(folder))
    assert "autotimm-shard also counts problems in annotations" in ours[0]
    assert "\n" not in ours[0]
    assert not [w for w in got if "split 'val'" in str(w.message)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(coco_folder).setup()
        module(shard_folder).setup()


def test_a_split_of_crowds_is_nothing_to_train_on(coco_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(coco_folder, tmp_path / "coco")
    file = folder / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    file.write_text(json.dumps(content))
    shard(folder, tmp_path / "shards")
    for data in (module(folder), module(tmp_path / "shards")):
        with pytest.raises(InputError, match="the 'train' split has no instance that is not a cr"):
            data.setup("fit")
        for stage in ("validate", "test", "predict"):
            data.setup(stage)
        module(Path(data.data_dir), train_split="val").setup("fit")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"data_dir": "/nowhere"}, "data_dir: /nowhere: no such folder"),
        ({"data_dir": "ftp://host/shards"}, "ftp URLs are not read"),
        ({"image_size": 16}, "image_size is 16, but must be a number of pixels"),
        ({"image_size": (64, 64, 3)}, "image_size is"),
        ({"image_size": 64.5}, "image_size is 64.5"),
        ({"batch_size": 0}, "batch_size is 0, but must be a whole number, 1 or more"),
        ({"batch_size": 10**9}, "batch_size is 1000000000, but must be 65536 or less"),
        ({"val_batch_size": 0}, "val_batch_size is 0"),
        ({"val_batch_size": 65537}, "val_batch_size is 65537, but must be 65536 or less"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"prefetch_factor": 0}, "prefetch_factor is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"augmentation_preset": "heavy"}, "must be one of light, default, strong"),
        ({"resize": "crop"}, "resize is 'crop', but must be one of letterbox, stretch"),
        ({"interpolation": "area"}, "interpolation is 'area', but must be one of bilinear, bic"),
        ({"mean": (1, 2)}, "mean is"),
        ({"std": (1, 1, 0)}, "std is"),
        ({"std": (float("nan"), 1, 1)}, r"std is \(nan, 1, 1\), but must be three finite numbers"),
        ({"mean": (0, float("inf"), 0)}, "mean is .* must be three finite numbers"),
        ({"mean": (float("-inf"), float("inf"), 0)}, "mean is .* must be three finite numbers"),
        ({"max_corrupt": 1.5}, "max_corrupt is 1.5, but must be a number from 0 to 1"),
        ({"max_corrupt": float("nan")}, "max_corrupt is nan"),
        ({"max_corrupt": True}, "max_corrupt is True"),
        ({"aspect_buckets": "yes"}, "aspect_buckets is 'yes', but must be true, false or a list"),
        ({"aspect_buckets": []}, "aspect_buckets has no canvas besides that of image_size, 640 x"),
        ({"aspect_buckets": [[640, 640]]}, "aspect_buckets has no canvas besides"),
        ({"aspect_buckets": [[512, 512]]}, "aspect_buckets: 512 x 512 must have one side of image"),
        ({"aspect_buckets": [[512, 800]]}, "aspect_buckets: 512 x 800 must have one side of image"),
        ({"aspect_buckets": [[512, "640"]]}, "a canvas of aspect_buckets is .512, '640'., but"),
        (
            {"aspect_buckets": [[32 * n, 640] for n in range(1, 9)]},
            "aspect_buckets has 8 canvases besides that of image_size, but fewer than 8",
        ),
        ({"aspect_buckets": True, "image_size": 64}, "aspect_buckets has no canvas besides"),
        (
            {"aspect_buckets": True, "image_size": (512, 640)},
            r"aspect_buckets=True needs a square image_size, not 512 x 640: give the list",
        ),
        ({"aspect_buckets": True, "resize": "stretch"}, "aspect_buckets needs resize='letterbox'"),
        (
            {"aspect_buckets": True, "custom_train_transforms": dict},
            "custom_train_transforms decide on their images' size themselves: leave out aspect_b",
        ),
    ],
)
def test_bad_arguments_are_refused_at_once(
    coco_folder: Path, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        InstanceSegmentationDataModule(**({"data_dir": coco_folder} | options))


def test_aspect_buckets(mixed_folder: Path) -> None:
    """Wide, tall and square images come on matching canvases, each once, at full size."""
    options = {"image_size": 96, "aspect_buckets": True, "augmentation_preset": Augmentation()}
    data = module(mixed_folder, **options)
    assert data.canvases == ((96, 96), (64, 96), (96, 64))
    batches = list(data.train_dataloader())
    seen = [i for batch in batches for i in batch["image_id"].tolist()]
    assert len(seen) == 14
    assert len(set(seen[:IMAGES])) == IMAGES
    shapes = set()
    for batch in batches:
        canvas = tuple(batch["image"].shape[2:])
        shapes.add(canvas)
        for (height, width), (across, down) in zip(
            batch["original_size"].tolist(), batch["scale"].tolist(), strict=True
        ):
            assert canvas in ((96, 96), (height, width))
            assert across == down == pytest.approx(96 / max(height, width))
        inside = batch["boxes"] <= torch.tensor([canvas[1], canvas[0]] * 2)
        assert inside.all()
    assert shapes == set(data.canvases)
    assert {b["image"].shape[2:] for b in data.val_dataloader()} == {(96, 96)}


def test_an_augmentation_of_ones_own(coco_folder: Path) -> None:
    data = module(coco_folder, augmentation_preset={"flip": 1.0})
    assert data.augmentation == Augmentation(flip=1.0)
    plain = module(coco_folder, augmentation_preset=Augmentation())
    for a, b in zip(data.train_dataloader(), plain.train_dataloader(), strict=True):
        # 96 x 64 pixels become 64 x 43, padded above or below at random.
        assert torch.equal(a["image"].flip(-1), b["image"])
