"""Images of 12 bits keep one range from the COCO folder to the prediction: every verb's pixels
against a shift of the values that were written."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from coco_folder import annotation, image, picture, write
from line import quiet
from PIL import Image

from autotimm import ObjectDetector
from autotimm.cli import evaluate, predict, preview
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.data.preview import sheet
from autotimm.data.whole import WholeImages
from autotimm.evaluation.truth import Truth
from autotimm.export.card import card
from autotimm.format.manifest_file import read_manifest
from autotimm.images.depths import Depths
from autotimm.inference import predict as inference
from autotimm.inference.sources import pixels_of
from autotimm.sharding import cli
from autotimm.sharding.destinations import journal
from autotimm.sharding.outcome import Written
from autotimm.sharding.verify import verify
from autotimm.streaming.shards import ShardSource
from autotimm.streaming.store import open_source
from autotimm.streaming.webdataset_pipeline import webdataset_pipeline
from autotimm.structures import UPPER_BITS, InputError, Preprocessing
from autotimm.tasks.checkpoint import preprocessing_of, read_checkpoint

# Both splits have the same images, which training and shard remark on.
pytestmark = pytest.mark.filterwarnings("ignore:.*image is in split 'train', too:UserWarning")

SIDE = 64
VALUES = {
    f"{n}.png": (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) // (2 * n + 1)).astype(np.uint16)
    for n in range(3)
}  # up to 4095, 1365 and 819


def encoded(values: np.ndarray, kind: str = "PNG") -> bytes:
    Image.fromarray(values).save(file := io.BytesIO(), kind)
    return file.getvalue()


def made(root: Path, files: dict[str, bytes], split: str = "train") -> Path:
    images = [
        image(id=n, file_name=name, width=SIDE, height=SIDE) for n, name in enumerate(files, 1)
    ]
    annotations = [annotation(id=n, image_id=n) for n in range(1, len(files) + 1)]
    return write(root, images, annotations, files=files, split=split)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("deep") / "coco"
    for split in ("train", "val"):
        made(root, {name: encoded(values) for name, values in VALUES.items()}, split)
    return root


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "out"
    cli.shard(folder, out)
    return out


def data(root: Path, **options: Any) -> InstanceSegmentationDataModule:
    given = {"image_size": SIDE, "batch_size": 3, "num_workers": 0, "masks": False}
    return InstanceSegmentationDataModule(root, **{**given, **options})


def loaded(module: InstanceSegmentationDataModule) -> dict[str, np.ndarray]:
    """The pixels that evaluation sees, by the image's name."""
    module.setup("validate")
    (batch,) = module.val_dataloader()
    pixels = batch["image"].permute(0, 2, 3, 1).numpy()
    return dict(zip(batch["file_name"], pixels, strict=True))


def check(found: dict[str, np.ndarray], shift: int = 4) -> None:
    assert set(found) == set(VALUES)
    for name, pixels in found.items():
        truth = np.repeat((VALUES[name] >> shift).astype(np.uint8)[..., None], 3, axis=2)
        assert np.array_equal(pixels, truth), name


@pytest.mark.parametrize(("workers", "per_shard"), [(1, 1), (2, 1), (1, 1000)])
def test_the_range_is_that_of_all_images_however_they_are_written(
    folder: Path, tmp_path: Path, workers: int, per_shard: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    manifest = cli.shard(folder, out, workers=workers, samples_per_shard=per_shard)
    assert manifest.pixel_range == (0, 4095)
    assert json.loads((out / "manifest.json").read_text())["pixel_range"] == [0, 4095]
    told = capsys.readouterr().out
    line = "images of more than 8 bits a channel: 3 (such as 0.png) with values from 0 to 4095; "
    assert told.count(f"{line}0 to 4095 become 0 to 255") == 2  # train and val
    assert not verify(out).faults
    again = cli.shard(folder, out, workers=workers, samples_per_shard=per_shard)
    assert again.pixel_range == (0, 4095)


def test_parts_that_were_written_apart_have_one_range(folder: Path, tmp_path: Path) -> None:
    out, parts = str(tmp_path / "out"), ["--samples-per-shard", "1", "--workers", "1"]
    for part in ("2/3", "1/3", "3/3"):
        with pytest.raises(SystemExit) as code:
            cli.main([str(folder), out, *parts, "--part", part])
        assert code.value.code == 0
    with pytest.raises(SystemExit):
        cli.main([str(folder), out, *parts])
    assert read_manifest(tmp_path / "out").pixel_range == (0, 4095)


def test_the_journal_keeps_what_a_shard_has() -> None:
    for depths in (Depths(), Depths(2, 1, -3.5, 4.25, True, "a.tif")):
        written = Written(depths=depths)
        found = journal.read_entry(journal.entry_bytes(written, "stamp"), "train-000000.tar")
        assert found is not None
        assert found[0].depths == depths


def test_training_and_evaluation_see_the_same_pixels(folder: Path, shards: Path) -> None:
    check(loaded(data(shards)))
    with pytest.warns(UserWarning, match=r"split 'train': images of more than 8 bits a channel: 0"):
        check(loaded(data(folder)))
    check(loaded(data(shards, pixel_range=[0, 8191])), 5)
    plain = data(shards, augmentation_preset={}, seed=3)
    plain.setup("fit")
    (batch,) = plain.train_dataloader()
    check(dict(zip(batch["file_name"], batch["image"].permute(0, 2, 3, 1).numpy(), strict=True)))
    (row,) = [p for p in webdataset_pipeline(shards, "val") if p["record"]["image_id"] == 2]
    check({**loaded(data(shards)), "1.png": row["image"]})
    drawn, _ = Truth(open_source(shards, "val")).pair(1, [])
    assert drawn.mean() == pytest.approx((VALUES["0.png"] >> 4).mean(), abs=1)


def test_images_as_they_are_have_the_range_too(shards: Path) -> None:
    whole = WholeImages(shards, batch_size=3, num_workers=0, masks=False, test_split="val")
    whole.setup("predict")
    (batch,) = whole.predict_dataloader()
    check(dict(zip(sorted(VALUES), batch["pixels"], strict=True)))


@pytest.mark.parametrize("given", [None, (0.0, 8191.0)])
def test_predictions_read_with_the_range(
    given: tuple[float, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def noted(images: Any, **how: Any) -> Any:
        seen.append(how["pixel_range"])
        return iter(())

    monkeypatch.setattr(inference, "read_ahead", noted)
    model = ObjectDetector(
        "resnet10t", 2, pretrained=False, fpn_channels=16, head_convs=1, compile_model=False
    )
    model.preprocessing = dataclasses.replace(model.preprocessing, pixel_range=(0.0, 4095.0))
    assert [
        *inference.predictions(model, [], inference.Options(image_size=64, pixel_range=given))
    ] == []
    assert seen == [given or (0, 4095)]


def test_a_preview_shows_what_training_sees(shards: Path) -> None:
    shown, _ = sheet({"a": data(shards, batch_size=1, augmentation_preset={})}, samples=1)
    dark, _ = sheet(
        {"a": data(shards, batch_size=1, augmentation_preset={}, pixel_range=[0, 65535])}, samples=1
    )
    corner = np.s_[36 + 40 : 36 + 60, 8 + 40 : 8 + 60]  # of the picture, off its instance
    assert np.mean(shown[corner]) > 8 * np.mean(dark[corner])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_checkpoint_keeps_the_range_of_its_training(
    folder: Path, shards: Path, tmp_path: Path
) -> None:
    model = ObjectDetector(
        num_classes=2,
        backbone="resnet10t",
        pretrained=False,
        fpn_channels=16,
        head_convs=1,
        compile_model=False,
    )
    trainer = quiet(tmp_path, max_steps=1, logger=False, enable_checkpointing=False)
    trainer.fit(model, datamodule=data(shards, val_split=None))
    assert model.preprocessing.pixel_range == (0, 4095)
    trainer.save_checkpoint(path := tmp_path / "model.ckpt")
    loaded_again = ObjectDetector.load_from_checkpoint(path)
    wanted = loaded_again.preprocessing
    assert wanted.pixel_range == (0, 4095)
    found = {name: pixels_of(folder / "val" / name, wanted.pixel_range) for name in VALUES}
    check(found)
    assert "values from 0 to 4095 become 0 to 255" in card("a.safetensors", loaded_again, {})

    # Data of another range are evaluated in that of the training.
    other = made(tmp_path / "other", {n: encoded(v * 4) for n, v in VALUES.items()}, "val")
    module = data(other, train_split="val")
    module.trainer = trainer
    trainer.strategy._lightning_module = loaded_again
    assert module.preprocessing.pixel_range == (0, 4095)

    old = read_checkpoint(path)
    del old["preprocessing"]["pixel_range"]
    assert preprocessing_of(old).pixel_range == UPPER_BITS
    torch.save(old, path)
    assert ObjectDetector.load_from_checkpoint(path).preprocessing.pixel_range == UPPER_BITS


def test_what_was_looked_at_and_what_stretches_the_range_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a folder and by its shards; -9999 stands for no data without a tag that says so."""
    files = {}
    for n, values in enumerate(VALUES.values()):
        heights = values.astype(np.float32) + 200
        heights[:4] = -9999
        files[f"{n}.tif"] = encoded(heights, "TIFF")
    root = made(tmp_path / "coco", files)
    with pytest.warns(
        UserWarning, match=r"as found in 3 of its 3 images.*-9999 \(3 images\)"
    ) as all_:
        assert data(root, val_split=None).preprocessing.pixel_range == (-9999, 4295)
    assert sum("-9999" in str(one.message) for one in all_) == 1
    cli.shard(root, tmp_path / "out")
    said = capsys.readouterr().out
    assert "-9999 (3 images); --pixel-range 328,4295 " in said.replace("\n", " ") or (
        "-9999 (3 images); --pixel-range" in said
    )
    cli.shard(root, tmp_path / "given", pixel_range=(200, 4295))
    assert "-9999 (3" not in capsys.readouterr().out


def test_a_model_of_an_older_version_is_told_once(folder: Path) -> None:
    module = data(folder, val_split=None)
    model = SimpleNamespace(
        preprocessing=dataclasses.replace(Preprocessing(), pixel_range=UPPER_BITS)
    )
    module.trainer = SimpleNamespace(lightning_module=model)  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="the checkpoint is of an older version") as all_:
        for _ in range(3):
            assert module.preprocessing.pixel_range == UPPER_BITS
    assert len(all_) == 1


def test_older_shards_keep_their_numbers_and_are_told(shards: Path, tmp_path: Path) -> None:
    content = json.loads((shards / "manifest.json").read_text())
    del content["pixel_range"], content["sha256"]
    for path in shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "manifest.json").write_bytes(orjson.dumps(content))
    assert ShardSource(tmp_path, "train").pixel_range() == UPPER_BITS
    with pytest.warns(UserWarning, match=r"keep the upper 8 of 16, .* older autotimm-shard"):
        check(loaded(data(tmp_path)), 8)
    check(loaded(data(tmp_path, pixel_range=[0, 4095])))


def test_older_shards_that_are_written_again_have_the_range(folder: Path, tmp_path: Path) -> None:
    """The way out that the message names."""
    cli.shard(folder, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    del content["pixel_range"], content["sha256"]
    (tmp_path / "out" / "manifest.json").write_bytes(orjson.dumps(content))
    with pytest.warns(UserWarning, match="run it again with --overwrite"):
        loaded(data(tmp_path / "out"))
    cli.shard(folder, tmp_path / "out", overwrite=True)
    check(loaded(data(tmp_path / "out")))


def test_floats_are_read_and_what_is_no_picture_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ramp = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 256 / 255).astype(np.float32)
    files = {
        "a.tif": encoded(ramp, "TIFF"),
        "b.tif": encoded(np.full_like(ramp, np.nan), "TIFF"),
        "c.tif": encoded(np.where(ramp < 0.5, np.nan, ramp).astype(np.float32), "TIFF"),
        "d.jpg": picture(SIDE, SIDE),
    }
    manifest = cli.shard(made(tmp_path / "coco", files), tmp_path / "out")
    assert manifest.splits["train"].images == 3
    assert manifest.pixel_range == (0, 1)
    assert "none of the image's pixels is a number (image left out): 1 (b.tif)" in (
        capsys.readouterr().out
    )
    found = loaded(data(tmp_path / "out", val_split="train"))
    truth = np.rint(255 * ramp)
    assert np.array_equal(found["a.tif"][..., 0], truth)
    assert np.array_equal(found["c.tif"][..., 1], np.where(ramp < 0.5, 0, truth))


def test_a_given_range_goes_into_the_manifest_and_is_part_of_the_job(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*flags: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as code:
            cli.main([str(folder), str(tmp_path / "out"), "--workers", "1", *flags])
        return int(code.value.code or 0), capsys.readouterr().err

    assert run("--pixel-range", "0,16383") == (0, "")
    assert read_manifest(tmp_path / "out").pixel_range == (0, 16383)
    code, said = run()
    assert (code, "--pixel-range was 0,16383, now not given" in said) == (2, True), said
    code, said = run("--pixel-range", "9")
    assert (code, "--pixel-range is '9'" in said) == (2, True), said
    for verb in (predict, evaluate, preview):
        with pytest.raises(InputError, match=r"--pixel-range is '5,5', but must be"):
            verb.parser().parse_args(["--pixel-range", "5,5"])


def test_orientations_that_no_size_shows_are_counted(tmp_path: Path) -> None:
    def turned(which: int, width: int) -> bytes:
        exif = Image.Exif()
        exif[0x0112] = which
        return picture(width, SIDE, exif=exif.tobytes())

    files = {f"{n}-{w}.jpg": turned(n, w) for n in range(1, 9) for w in (48, SIDE)}
    images = [
        image(id=n, file_name=name, width=int(name[2:4]), height=SIDE)
        for n, name in enumerate(files, 1)
    ]
    write(tmp_path / "coco", images, [annotation(bbox=[10, 8, 20, 20])], files=files)
    problems = cli.shard(tmp_path / "coco", tmp_path / "out").splits["train"].problems
    (kind,) = problems
    assert kind.startswith("picture's orientation does not show in its width and height (taken as")
    assert problems[kind] == 3 + 7  # 2 to 4 of any shape, all of a square
