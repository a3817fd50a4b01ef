"""``autotimm.predict`` and its verb: any image, in its own pixels, as evaluation finds it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import SAMPLE
from PIL import Image
from pycocotools.coco import COCO
from servers import serve

import autotimm
from autotimm import masks
from autotimm.cli import evaluate
from autotimm.cli import predict as verb
from autotimm.inference.predict import Options, predictions
from autotimm.inference.sources import find, pixels_of
from autotimm.structures import Detections, InputError, Preprocessing


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the sample's training split, in the order of their names."""
    folder = tmp_path_factory.mktemp("photos")
    with tarfile.open(SAMPLE / "train-000000.tar") as tar:
        for member in tar.getmembers():
            if not member.name.endswith(".json"):
                content = tar.extractfile(member)
                assert content is not None
                (folder / member.name).write_bytes(content.read())
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> autotimm.ObjectDetector:
    return autotimm.load(checkpoint)


def run(*words: object) -> int:
    return verb.run(verb.parser().parse_args([str(word) for word in words]))


def key(one: dict[str, Any]) -> Any:
    return one["image_id"], -one["score"], one["bbox"]


# ---------------------------------------------------------------- what is found


def test_finds_what_evaluation_finds(
    photos: Path, checkpoint: Path, model: Any, tmp_path: Path
) -> None:
    words = ["--checkpoint", checkpoint, "--data", SAMPLE, "--split", "train", "--out", tmp_path]
    arguments = [str(word) for word in [*words, "--num-workers", 0]]
    evaluate.run(evaluate.parser().parse_args(arguments))
    expected: dict[int, list[Any]] = {}
    for one in json.loads((tmp_path / "results.json").read_text()):
        expected.setdefault(one["image_id"], []).append(one)
    with tarfile.open(SAMPLE / "train-000000.tar") as tar:
        ids = {}
        for member in tar.getmembers():
            if member.name.endswith(".json"):
                record = tar.extractfile(member)
                assert record is not None
                ids[Path(member.name).stem] = json.load(record)["image_id"]
    paths = find([str(photos)])
    assert len(paths) == len(ids) == 8
    for path, found in zip(paths, autotimm.predict(model, paths, batch_size=3), strict=True):
        own = expected.get(ids[Path(path).stem], [])
        assert len(found["scores"]) == len(own) > 0
        torch.testing.assert_close(
            found["scores"], torch.tensor([one["score"] for one in own]), atol=1e-4, rtol=0
        )
        overlaps = [
            masks._coco.iou([rle], [one["segmentation"]], [0])[0, 0] if one["segmentation"] else 1
            for rle, one in zip(found["rles"], own, strict=True)
            if masks.area(rle)
        ]
        assert np.mean(overlaps) > 0.95


def test_one_image_dense_masks_and_names(photos: Path, model: Any) -> None:
    path = find([str(photos)])[0]
    (found,) = autotimm.predict(model, path)
    (dense,) = autotimm.predict(model, Image.open(path), dense=True)
    with Image.open(path) as picture:
        width, height = picture.size
    assert dense["masks"].shape == (len(found["scores"]), height, width)
    assert dense["masks"].dtype == torch.uint8
    np.testing.assert_array_equal(dense["masks"][0], masks.decode(found["rles"][0]))
    assert model.class_names == ["disc", "square", "triangle", "star"]
    assert float(found["boxes"][:, 2].max()) <= width
    assert not model.training


class Bright:
    """Finds the bright objects of the red channel, by their pixels, at the canvas' size."""

    with_masks = True
    training = False
    device = torch.device("cpu")
    preprocessing = Preprocessing((0.0,) * 3, (1.0,) * 3, "bilinear", (128, 128))
    hparams = SimpleNamespace(nms_thresh=0.5, max_detections_per_image=100)

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def detect(self, image: torch.Tensor) -> list[Detections]:
        found = []
        for one in image[:, 0].numpy():
            count, numbers = cv2.connectedComponents((one > 0.5).astype(np.uint8))
            boxes, parts = [], []
            for number in range(1, count):
                x, y, w, h = cv2.boundingRect((numbers == number).astype(np.uint8))
                boxes.append([x, y, x + w, y + h])
                part = (numbers[y : y + h, x : x + w] == number).astype(np.float32)
                parts.append(cv2.resize(part, (28, 28), interpolation=cv2.INTER_AREA))
            found.append(
                Detections(
                    boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                    labels=torch.zeros(len(boxes), dtype=torch.int64),
                    scores=torch.linspace(0.9, 0.5, len(boxes)),
                    masks=torch.tensor(np.array(parts)).reshape(-1, 28, 28),
                )
            )
        return found


def discs() -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """A picture of 500 x 700, and x, y, radius of its discs; some lie across the tiles' borders."""
    places = [(60, 60, 30), (128, 300, 40), (350, 250, 90), (600, 100, 20), (640, 440, 50)]
    picture = np.zeros((500, 700, 3), np.uint8)
    for x, y, radius in places:
        cv2.circle(picture, (x, y), radius, (255, 255, 255), -1)
    return picture, places


@pytest.mark.parametrize("how", [{"tile": 128, "overlap": 0.4}, {"tile": 128, "flip": True}])
def test_tiles_find_each_object_once_and_whole(how: dict[str, Any]) -> None:
    picture, places = discs()
    (found,) = autotimm.predict(Bright(), picture, **how)  # type: ignore[arg-type]
    assert len(found["rles"]) == len(places)
    for x, y, radius in places:
        truth = np.zeros(picture.shape[:2], np.uint8)
        cv2.circle(truth, (x, y), radius, 1, -1)
        best = max(
            (masks.decode(rle) & truth).sum() / (masks.decode(rle) | truth).sum()
            for rle in found["rles"]
        )
        assert best > 0.9


def test_the_mirror_image_finds_the_mirror_image(photos: Path, model: Any) -> None:
    pixels = pixels_of(find([str(photos)])[1])
    side = min(pixels.shape[:2])
    square = np.ascontiguousarray(pixels[:side, :side])
    how = {"flip": True, "image_size": 128}
    (found,), (mirrored,) = (
        autotimm.predict(model, [image], **how)
        for image in (square, np.ascontiguousarray(square[:, ::-1]))
    )
    assert len(found["scores"]) > 0
    torch.testing.assert_close(found["scores"], mirrored["scores"], atol=2e-3, rtol=0)
    x1, y1, x2, y2 = mirrored["boxes"].unbind(-1)
    turned = torch.stack([side - x2, y1, side - x1, y2], -1)
    torch.testing.assert_close(found["boxes"][:3], turned[:3], atol=1.0, rtol=0)
    (plain,) = autotimm.predict(model, [square], image_size=128)
    assert not torch.equal(plain["boxes"], found["boxes"])


def test_half_precision_finds_about_the_same(photos: Path, model: Any) -> None:
    path = find([str(photos)])[:2]
    full, half = autotimm.predict(model, path), autotimm.predict(model, path, half=True)
    for one, other in zip(full, half, strict=True):
        assert other["boxes"].dtype == other["scores"].dtype == torch.float32
        assert float(one["scores"][0]) == pytest.approx(float(other["scores"][0]), abs=0.05)
        assert not torch.equal(one["scores"][:1], other["scores"][:1])


# ---------------------------------------------------------------- images of any kind


def test_words_mean_files_folders_patterns_and_urls(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "below/c.webp", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    told = [tmp_path / "a.JPG", tmp_path / "b.png", tmp_path / "below" / "c.webp"]
    assert find([str(tmp_path)]) == [str(path) for path in told]
    assert find([f"{tmp_path}/*"]) == [str(path) for path in told[:2]]
    assert find([f"{tmp_path}/**/*.webp"]) == [str(told[2])]
    assert find([tmp_path.as_uri()]) == [str(path) for path in told]
    twice = [str(told[1]), str(tmp_path), "http://host/x.jpg?s=1"]
    assert find(twice) == [str(told[1]), str(told[0]), str(told[2]), "http://host/x.jpg?s=1"]
    with pytest.raises(InputError, match=r"no image there"):
        find([f"{tmp_path}/*.gif"])
    with pytest.raises(InputError, match=r"^ftp://host/\*.jpg: ftp URLs are not read"):
        find(["ftp://host/*.jpg"])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK", "I;16"])
def test_every_mode_of_picture_becomes_rgb(mode: str, tmp_path: Path) -> None:
    grey = np.tile(np.arange(0, 250, 10, dtype=np.uint8), (20, 1))
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(grey).convert("RGB").convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    picture.save(path)
    pixels = pixels_of(path)
    assert pixels.shape == (20, 25, 3)
    if mode in ("P", "1"):  # what colours are left, PIL says
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(path).convert("RGB")))
    else:
        np.testing.assert_allclose(pixels[..., 1], grey, atol=1)
    np.testing.assert_array_equal(pixels, pixels_of(Image.open(path)))


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    upright = np.zeros((30, 50, 3), np.uint8)
    upright[:10, :10] = 255
    stored = Image.fromarray(np.rot90(upright, 1).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.png"), upright)


def cut_off() -> bytes:
    """Half a JPEG."""
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)
    Image.fromarray(noise).save(content, "JPEG")
    return content.getvalue()[: content.tell() // 2]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "not ndarray of float32"),
        (np.zeros((4, 4, 2), np.uint8), r"uint8 \[4, 4, 2\]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        ("none.jpg", "none.jpg: cannot be read: No such file"),
        (__file__, "test_predict.py: image cannot be opened"),
        ("gs://bucket/a.jpg", "gs://bucket/a.jpg: gs URLs are not read"),
        (Image.open(io.BytesIO(cut_off())), "a PIL image cannot be read: image file is truncated"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, message: str, model: Any) -> None:
    with pytest.raises(InputError, match=message):
        autotimm.predict(model, image)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"tile": 3}, "tile is 3"),
        ({"overlap": 1.0}, "overlap=1.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"resize": "crop"}, "resize is 'crop'"),
        ({"typo": 1}, "typo"),
    ],
)
def test_options_that_cannot_be_used_are_refused(
    how: dict[str, Any], message: str, model: Any
) -> None:
    with pytest.raises(InputError, match=message):
        autotimm.predict(model, [], **how)


def test_an_unreadable_image_comes_as_its_error_in_its_place(photos: Path, model: Any) -> None:
    paths = find([str(photos)])
    items = [paths[0], "none.jpg", paths[1]]
    out = list(predictions(model, items, Options(batch_size=8)))
    assert [isinstance(pixels, InputError) for pixels, _ in out] == [False, True, False]
    assert out[1][1] is None


# ---------------------------------------------------------------- the verb


def test_the_verb_writes_coco_json_and_pictures(
    photos: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff no picture")
    words = [photos, tmp_path / "bad.jpg", photos / "nowhere.png"]
    code = run(*words, "--checkpoint", checkpoint, "--out", tmp_path / "o", "--draw-score", 0.1)
    assert code == 1
    said = capsys.readouterr()
    left_out = [line for line in said.err.splitlines() if "left out" in line]
    assert len(left_out) == 2
    assert "bad.jpg" in left_out[0]
    assert "8 images" in said.out
    assert "2 left out" in said.out
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "o" / "images.json"))
        found = coco.loadRes(str(tmp_path / "o" / "results.json"))
    assert len(coco.imgs) == 8
    assert found.anns
    for one in found.anns.values():
        assert coco.cats[one["category_id"]]["name"] == one["category_name"]
        image = coco.imgs[one["image_id"]]
        assert one["segmentation"]["size"] == [image["height"], image["width"]]
    for image in coco.imgs.values():
        drawn = tmp_path / "o" / "pictures" / f"{Path(image['file_name']).stem}.png"
        with Image.open(drawn) as picture, Image.open(image["file_name"]) as source:
            assert picture.size == source.size
            assert np.any(np.asarray(picture) != np.asarray(source.convert("RGB")))


def test_formats_urls_and_equal_names(
    photos: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = sorted(path.name for path in photos.iterdir())[0]
    with serve(photos) as server:
        with pytest.raises(InputError, match=r"none.jpg: cannot be read: the server has no such"):
            pixels_of(f"{server.url}/none.jpg")
        words = [f"{server.url}/{name}?token=secret", photos / name]
        assert run(*words, "--checkpoint", checkpoint, "--out", tmp_path, "--format", "both") == 0
    drawn = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    stem = Path(name).stem
    assert drawn == sorted([f"{stem}.png", f"{stem}-2.png"])
    results = json.loads((tmp_path / "results.json").read_text())
    first, second = ([r["bbox"] for r in results if r["image_id"] == i] for i in (1, 2))
    assert first == second
    assert "secret" not in (tmp_path / "images.json").read_text() + capsys.readouterr().out
    out = tmp_path / "json"
    assert run(photos / name, "--checkpoint", checkpoint, "--out", out, "--format", "json") == 0
    assert {path.name for path in out.iterdir()} == {"results.json", "images.json"}
    out = tmp_path / "seen"
    assert run(photos / name, "--checkpoint", checkpoint, "--out", out, "--format", "pictures") == 0
    assert {path.name for path in out.iterdir()} == {"pictures"}


def test_min_score_is_the_models_threshold(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    for score in (0.02, 0.2):
        run(photos, "--checkpoint", checkpoint, "--out", tmp_path, "--min-score", score)
        results = json.loads((tmp_path / "results.json").read_text())
        assert results
        assert min(one["score"] for one in results) >= score * 0.5
        if score == 0.02:
            count = len(results)
    assert len(results) < count


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min-score", 2], "--min-score 2 must be 0 to 1"),
        (["--draw-score", -1], "--draw-score -1"),
        (["--image-size", 1, 2, 3], "--image-size takes one side"),
        (["--device", "tpu9"], "--device tpu9 cannot be had"),
        (["--device", "meta"], "--device meta cannot be had"),
        (["--overlap", 0.3], "--overlap is of tiles"),
        (["--format", "json", "--draw-score", 0.3], "--draw-score is of pictures"),
        (["--checkpoint", "none.ckpt"], "no checkpoint at none.ckpt"),
        (["--out", __file__], "--out: cannot make"),
    ],
)
def test_flags_that_cannot_be_used_are_refused(
    flags: list[Any], message: str, photos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    words = ["--checkpoint", checkpoint, "--out", tmp_path, *flags]
    with pytest.raises(InputError, match=message):
        run(photos, *words)


def test_nothing_usable_is_an_error_and_leaves_what_was_there(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text("an earlier run's")
    os.mkfifo(tmp_path / "endless.jpg")
    images = [tmp_path / "a.jpg", tmp_path / "endless.jpg"]
    with pytest.raises(InputError, match="none of the images"):
        run(*images, "--checkpoint", checkpoint, "--out", tmp_path)
    assert (tmp_path / "results.json").read_text() == "an earlier run's"
    assert "endless.jpg: is no regular file" in capsys.readouterr().err


def test_a_name_that_is_not_utf8_loses_nothing(checkpoint: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"lat\xe9in.png")
    Image.new("RGB", (40, 30)).save(odd)
    assert run(odd, "--checkpoint", checkpoint, "--out", tmp_path / "out") == 0
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert images[0]["file_name"].endswith("lat\\xe9in.png")
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 1
