"""A run starts from the weights of another model: what it takes of them, and what it reports."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import random_batch, small
from lightning import LightningDataModule
from lightning.pytorch import Callback
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from autotimm import AutoTrainer, InputError, InstanceSegmentor, ObjectDetector
from autotimm.checkpoints.convert import convert
from autotimm.checkpoints.sources import read_source
from autotimm.coco.categories import Category
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.tasks.transfer import match_classes, take

LAYERS = ("head.classes", "mask_head.masks")
OLD = ("cat", "traffic light", "Dog")


def content_of(model: Any, names: tuple[str, ...] | None = OLD, **more: Any) -> dict[str, Any]:
    """The content of a checkpoint of ``model``, with the keys that a start needs."""
    categories = names and [{"id": 5 * i, "name": name} for i, name in enumerate(names)]
    return {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "categories": categories,
        "preprocessing": asdict(model.preprocessing),
        "pytorch-lightning_version": "2.6.4",
        "epoch": 4,
        "global_step": 100,
        **more,
    }


def trained(**options: Any) -> Any:
    """A model with other weights than every fresh one."""
    model = small(**options)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1.0)
    model.preprocessing = replace(model.preprocessing, mean=(0.5, 0.4, 0.3), pixel_range=(0.0, 9.0))
    return model


@pytest.mark.parametrize(
    ("own", "others", "pairs", "new", "twice"),
    [
        (["a", "b"], ["b", "a"], [(0, 1), (1, 0)], [], []),
        (["Traffic_Light", "x"], ["dog", "traffic light"], [(0, 1)], ["x"], []),
        (["hot-dog", "T V"], ["Hot Dog", "tv"], [(0, 0), (1, 1)], [], []),
        (["straße"], ["STRASSE"], [(0, 0)], [], []),
        (["a", "A", "b"], ["a", "b"], [(2, 1)], ["a", "A"], ["a", "A"]),
        (["a", "b"], ["a", "a ", "b"], [(1, 2)], ["a"], ["a"]),
        (["c", "c"], ["a"], [], ["c", "c"], []),
    ],
)
def test_classes_are_matched_by_name(
    own: list[str],
    others: list[str],
    pairs: list[tuple[int, int]],
    new: list[str],
    twice: list[str],
) -> None:
    rows = match_classes(own, others)
    assert (rows.pairs, rows.new, rows.twice) == (pairs, new, twice)
    assert [own[row] for row, _ in pairs] == rows.kept


def test_all_but_the_rows_of_new_classes_is_taken() -> None:
    old, new = trained(), small(num_classes=4)
    fresh = {key: value.clone() for key, value in new.network.state_dict().items()}
    line = take(new, content_of(old), "old.ckpt", ["dog", "bird", "Traffic_Light", "tree"])
    count = len(fresh)
    assert line == (
        f"weights: {count} of {count} tensors from old.ckpt; classes kept: dog, Traffic_Light; "
        f"new: bird, tree"
    )
    source, here = old.network.state_dict(), new.network.state_dict()
    for key, value in here.items():
        if key.startswith(LAYERS):
            for row, origin in enumerate((2, None, 1, None)):
                wanted = fresh[key][row] if origin is None else source[key][origin]
                assert torch.equal(value[row], wanted), (key, row)
        else:
            assert torch.equal(value, source[key]), key
    prior = torch.sigmoid(here["head.classes.bias"][[1, 3]])
    assert torch.allclose(prior, torch.tensor(0.01))
    # The pixels are scaled as the weights need it; the range of their values is the data's.
    assert new.preprocessing.mean == (0.5, 0.4, 0.3)
    assert new.preprocessing.pixel_range is None
    assert new.settings.num_classes == 4


@pytest.mark.parametrize(
    ("names", "classes", "told"),
    [
        (OLD, ["a", "b", "c"], "nothing of the class layers was taken: no class has the name"),
        (None, ["cat", "dog", "x"], "nothing of the class layers was taken: the file does not"),
        (OLD, None, "all 3 classes kept, by number"),
        (None, None, "all 3 classes kept, by number"),
        (("dog", "dog", "cat"), ["dog", "cat", "x"], "that occurs twice: dog"),
    ],
)
def test_what_is_told_of_the_classes(
    names: tuple[str, ...] | None, classes: list[str] | None, told: str
) -> None:
    old, new = trained(), small()
    fresh = new.network.head.classes.weight.clone()
    assert told in take(new, content_of(old, names), "old.ckpt", classes)
    kept = (new.network.head.classes.weight != fresh).flatten(1).any(1)
    assert kept.sum() == (0 if "nothing" in told else 3 if "number" in told else 1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"backbone": "resnet18"}, "backbone=resnet18"),
        ({"fpn_channels": 16}, "fpn_channels=16"),
        ({"head_convs": 2}, "head_convs=2"),
        ({"mask_size": 14}, "mask_size=14"),
        ({"layout": "torchvision"}, "layout=torchvision"),
    ],
)
def test_another_structure_is_refused_by_name_or_taken_where_it_fits(
    options: dict[str, Any], named: str
) -> None:
    old, new = trained(**options), small()
    fresh = {key: value.clone() for key, value in new.network.state_dict().items()}
    content = content_of(old)
    with pytest.raises(InputError) as error:
        take(new, content, "old.ckpt", list(OLD))
    flag = named.replace("=", " ")
    assert named in str(error.value)
    assert f"--model.init_args.{flag}" in str(error.value)
    assert "--weights-only-fitting" in str(error.value)
    assert all(torch.equal(v, fresh[k]) for k, v in new.network.state_dict().items())
    line = take(new, content, "old.ckpt", list(OLD), only_fitting=True)
    source = old.network.state_dict()
    fitting = [k for k, v in fresh.items() if k in source and source[k].shape == v.shape]
    assert line.startswith(f"weights: {len(fitting)} of {len(fresh)} tensors from old.ckpt; ")
    for key, value in new.network.state_dict().items():
        assert torch.equal(value, source[key] if key in fitting else fresh[key]), key


def test_a_tag_of_the_backbone_is_no_other_backbone() -> None:
    content = content_of(trained())
    content["hyper_parameters"]["backbone"] = "resnet10t.c3_in1k"
    take(small(), content, "old.ckpt", list(OLD))


def test_settings_that_do_not_tell_the_shapes_are_found_out() -> None:
    content = content_of(trained(fpn_channels=16))
    content["hyper_parameters"]["fpn_channels"] = 32
    with pytest.raises(
        InputError, match=r"fpn.*is \(32, .*\) in the model and \(16, .*more differ"
    ):
        take(small(), content, "old.ckpt", list(OLD))
    content = content_of(trained())
    del content["state_dict"]["network.head.scales"]
    with pytest.raises(InputError, match=r"head.scales is \(5,\) in the model and missing in old"):
        take(small(), content, "old.ckpt", list(OLD))


def test_detectors_and_segmentors_start_from_each_other() -> None:
    line = take(small(), content_of(trained(cls=ObjectDetector)), "old.ckpt", list(OLD))
    assert line.endswith("; starting anew: fpn.fine, mask_head")
    detector = small(cls=ObjectDetector)
    line = take(detector, content_of(trained()), "old.ckpt", list(OLD))
    count = len(detector.network.state_dict())
    assert line.startswith(f"weights: {count} of {count} tensors")


def test_the_average_is_what_a_model_starts_from() -> None:
    old, new = trained(), small()
    average = {key: torch.full_like(value, 3) for key, value in old.state_dict().items()}
    ema = {"decay": 0.9, "state_dict": average}
    take(new, content_of(old, ema=ema), "old.ckpt", list(OLD))
    assert all((value == 3).all() for value in new.network.state_dict().values())


def test_files_that_no_model_can_start_from() -> None:
    bad = content_of(trained())
    bad["state_dict"]["network.head.scales"][2] = torch.nan
    with pytest.raises(InputError, match=r"old.ckpt: head.scales is not finite"):
        take(small(), bad, "old.ckpt", list(OLD))
    other = {"state_dict": {"fc.weight": torch.ones(2)}, "hyper_parameters": {}}
    with pytest.raises(InputError, match=r"x.ckpt does not hold the weights of a model"):
        take(small(), other, "x.ckpt", list(OLD))
    elsewhere = content_of(trained(backbone="test_vit", fpn_channels=16))
    with pytest.raises(InputError, match=r"no layer of old.ckpt fits the model"):
        take(small(), elsewhere, "old.ckpt", list(OLD), only_fitting=True)
    fewer = content_of(trained())
    fewer["categories"].pop()
    with pytest.raises(InputError, match=r"has 2 categories for 3 classes"):
        take(small(), fewer, "old.ckpt", list(OLD))


def test_files_of_another_kind_and_parts_of_files_are_one_line(tmp_path: Path) -> None:
    torch.save(content_of(trained()), tmp_path / "whole.ckpt")
    convert(tmp_path / "whole.ckpt", tmp_path / "whole.safetensors")
    torch.save({"backbone.body.conv1.weight": torch.ones(9)}, tmp_path / "whole.pth")
    for kind in ("ckpt", "safetensors", "pth"):
        whole = (tmp_path / f"whole.{kind}").read_bytes()
        for size in (0, 8, len(whole) // 2, len(whole) - 3):
            (tmp_path / f"{size}.{kind}").write_bytes(whole[:size])
    torch.save(torch.nn.Linear(2, 2), tmp_path / "code.pth")
    (tmp_path / "page.ckpt").write_text("<html>404</html>")
    (tmp_path / "picture.jpg").write_bytes(b"\xff\xd8\xff" * 99)
    (tmp_path / "folder").mkdir()
    save_file({"fc.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    torch.save({"conv1.weight": torch.ones(2)}, tmp_path / "backbone.pth")
    paths = [one for one in tmp_path.iterdir() if one.stem != "whole"]
    assert len(paths) == 12 + 6
    for path in paths:
        with pytest.raises(InputError) as error:
            read_source(path)
        assert path.name in str(error.value) and "\n" not in str(error.value)
        if path.name == "backbone.pth":
            assert "weights of a backbone alone are for pretrained=" in str(error.value)


class Data(LightningDataModule):
    """One batch, of classes that have names."""

    num_classes, data_dir, image_size = 3, "data", (64, 64)
    categories = tuple(Category(i, name) for i, name in enumerate(("dog", "tree", "cat")))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader([random_batch([2], 64, 64)], batch_size=None)


class Look(Callback):
    """What a run begins with."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.weights = {k: v.clone() for k, v in pl_module.network.state_dict().items()}
        self.step, self.state = trainer.global_step, trainer.optimizers[0].state_dict()["state"]
        self.epoch = trainer.current_epoch


@pytest.mark.parametrize("published", [False, True])
def test_a_fit_starts_anew_from_the_weights(published: bool, tmp_path: Path) -> None:
    old, model, look = trained(), small(), Look()
    path = tmp_path / "old.ckpt"
    torch.save(content_of(old), path)
    if published:
        path = convert(path, tmp_path / "old.safetensors")
    trainer = AutoTrainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        default_root_dir=tmp_path,
        callbacks=[look],
        ema_decay=0.5,
        limit_val_batches=0,
    )
    trainer.fit(model, datamodule=Data(), weights=path)
    assert (look.step, look.epoch, look.state) == (0, 0, {})
    source = old.network.state_dict()
    for key, value in look.weights.items():
        rows = ((0, 2), (2, 0)) if key.startswith(LAYERS) else ((..., ...),)
        assert all(torch.equal(value[here], source[key][there]) for here, there in rows), key
    saved = read_checkpoint(next(tmp_path.glob("**/checkpoints/last.ckpt")))
    assert not [key for key in saved["hyper_parameters"] if "weights" in key and "loss" not in key]
    # One step of the average with a half or less of what it began with, which were the weights.
    key = "network.head.classes.bias"
    share = min(0.5, 2 / 11)
    expected = share * look.weights["head.classes.bias"] + (1 - share) * saved["state_dict"][key]
    assert torch.allclose(saved["ema"]["state_dict"][key], expected, atol=1e-6)
    again = InstanceSegmentor.load_from_checkpoint(next(tmp_path.glob("**/last.ckpt")))
    assert again.categories == [{"id": c.id, "name": c.name} for c in Data.categories]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"layout": "torchvision"}, "layout=torchvision, but the model has layout=autotimm"),
        ({"fpn_channels": 16, "mask_size": 14}, "fpn_channels=16 and mask_size=14, but"),
        ({"num_classes": 5}, "num_classes=5, but the model has num_classes=3"),
    ],
)
def test_a_resume_names_the_settings_that_are_not_the_checkpoints(
    options: dict[str, Any], named: str, tmp_path: Path
) -> None:
    torch.save(
        content_of(trained(**options), None, optimizer_states=[{"param_groups": []}]),
        tmp_path / "old.ckpt",
    )
    trainer = AutoTrainer(accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path)
    with pytest.raises(InputError) as error:
        trainer.fit(small(), datamodule=Data(), ckpt_path=tmp_path / "old.ckpt")
    way = " ".join(f"--model.init_args.{key} {value}" for key, value in options.items())
    if "num_classes" in options:  # which the data decide
        way = "train on the data of the checkpoint"
    assert named in str(error.value) and way in str(error.value)
    assert "--weights" in str(error.value) and "\n" not in str(error.value)


def test_arguments_that_contradict_each_other(tmp_path: Path) -> None:
    trainer = AutoTrainer(accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path)
    for options, told in (
        ({"weights": "a.ckpt", "ckpt_path": "b.ckpt"}, "resumes a run and --weights starts a new"),
        ({"weights_only_fitting": True}, "no effect without --weights"),
        ({"weights": ""}, "--weights is empty"),
        ({"weights": tmp_path / "nowhere.ckpt"}, "there is no checkpoint at .*nowhere.ckpt"),
        ({"weights": tmp_path}, str(tmp_path)),
    ):
        with pytest.raises(InputError, match=told):
            trainer.fit(small(), datamodule=Data(), **options)
