"""``autotimm.predict`` and its verb: any image, in its own pixels, as evaluation finds it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from coco_folder import picture
from conftest import SAMPLE
from PIL import Image
from pycocotools.coco import COCO
from servers import serve

import autotimm
from autotimm import masks, visualize
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


class Seen:
    """Tells what it is shown, and finds one object that is not its own mirror image."""

    with_masks, training, device = True, True, torch.device("cpu")
    preprocessing = Preprocessing((0.25, 0.5, 0.75), (1.0,) * 3, "bilinear", (64, 64))
    hparams = SimpleNamespace(nms_thresh=0.5, max_detections_per_image=1)

    def __init__(self, **how: Any) -> None:
        self.preprocessing = replace(self.preprocessing, **how)
        self.canvases: list[torch.Tensor] = []

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def detect(self, image: torch.Tensor) -> list[Detections]:
        """A corner, where it is dark: the left half in the canvas, the right one mirrored."""
        assert not self.training
        self.canvases.append(image)
        mirrored = len(self.canvases) == 2
        part = torch.zeros(1, 28, 28)
        part[:, :, 14 * mirrored : 14 + 14 * mirrored] = 1
        # Surer of the mirror image; far enough apart for both to stay.
        box = [40.0, 8.0, 56.0, 24.0] if mirrored else [40.0, 40.0, 56.0, 56.0]
        one = Detections(
            boxes=torch.tensor([box]),
            labels=torch.tensor([0]),
            scores=torch.tensor([0.9 if mirrored else 0.4]),
        )
        return [one | {"masks": part}]  # type: ignore[list-item]


def test_what_the_mirror_image_shows_is_turned_back_and_counted() -> None:
    """The limit is of both together; the mask's half is on the other side again."""
    model = Seen()
    (found,) = autotimm.predict(model, np.zeros((64, 64, 3), np.uint8), flip=True)  # type: ignore[arg-type]
    torch.testing.assert_close(model.canvases[1], model.canvases[0].flip(-1))
    assert found["scores"].tolist() == pytest.approx([0.9])
    assert found["boxes"].tolist() == [[8, 8, 24, 24]]
    mask = masks.decode(found["rles"][0])
    assert mask[10:22, 8:16].all() and not mask[:, 17:].any()
    assert model.training, "left as it was"


def test_the_canvas_is_that_of_the_training() -> None:
    white = np.full((32, 64, 3), 255, np.uint8)
    letterbox, stretch, told = Seen(), Seen(resize="stretch"), Seen()
    autotimm.predict(letterbox, white)  # type: ignore[arg-type]
    autotimm.predict(stretch, white)  # type: ignore[arg-type]
    autotimm.predict(told, white, resize="stretch")  # type: ignore[arg-type]
    mean = torch.tensor([0.25, 0.5, 0.75]).view(3, 1, 1)
    [canvas] = letterbox.canvases[0]
    assert (canvas + mean)[:, :32].min() == 1
    assert canvas[:, 32:].abs().max() < 0.01, "what is left free is the mean, which is taken off"
    for one in (stretch, told):
        assert (one.canvases[0][0] + mean).min() == 1


def test_boxes_alone(boxes_only: Path, tmp_path: Path) -> None:
    """Of an ObjectDetector: whole, in tiles, by the verbs."""
    model = autotimm.load(boxes_only)
    assert not model.with_masks
    torch.nn.init.constant_(model.network.head.classes.bias, 0.0)
    image = np.random.default_rng(0).integers(0, 255, (150, 200, 3), np.uint8)
    for how in ({}, {"tile": 96}, {"flip": True}):
        (found,) = autotimm.predict(model, image, **how)
        assert set(found) == {"boxes", "labels", "scores"}
        assert 0 < len(found["boxes"]) == len(found["labels"]) == len(found["scores"])
        assert (found["boxes"][:, 2] <= 200).all() and (found["boxes"][:, 3] <= 150).all()
    (found,) = autotimm.predict(model, image, tile=96)
    assert (found["boxes"] != found["boxes"].round()).any(), "not in whole pixels"
    Image.fromarray(image).save(tmp_path / "a.png")
    words = ("--checkpoint", boxes_only, "--out", tmp_path / "out", "--min-score", 0)
    assert run(tmp_path / "a.png", *words) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results and all("segmentation" not in one for one in results)
    assert (
        evaluate.run(
            evaluate.parser().parse_args(
                [
                    *("--checkpoint", str(boxes_only), "--data", str(SAMPLE), "--num-workers", "0"),
                    *("--out", str(tmp_path / "measured")),
                ]
            )
        )
        == 0
    )
    assert set(json.loads((tmp_path / "measured" / "metrics.json").read_text())) == {
        *("box", "confusion", "label_errors", "worst")
    }


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
    nothing = [f"{tmp_path}/*.gif", str(tmp_path / "empty")]
    (tmp_path / "empty").mkdir()
    assert find(nothing) == nothing  # who opens them says so
    for word in nothing:
        with pytest.raises(InputError, match=rf"^{re.escape(word)}: no image there"):
            pixels_of(word)
    (tmp_path / "a*b.png").write_bytes(picture(kind="PNG"))
    assert pixels_of(tmp_path / "a*b.png").shape == (48, 64, 3)
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
        ({"overlap": "x"}, "overlap is 'x'"),
        ({"min_score": -1}, "min_score is -1"),
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
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    words = [photos, tmp_path / "bad.jpg", photos / "nowhere.png", tmp_path / "loop.png"]
    code = run(*words, "--checkpoint", checkpoint, "--out", tmp_path / "o", "--draw-score", 0.1)
    assert code == 1
    said = capsys.readouterr()
    left_out = [line for line in said.err.splitlines() if "left out" in line]
    assert len(left_out) == 3
    assert "bad.jpg" in left_out[0]
    assert "images: 8, instances: " in said.out
    assert "(score from 0.1)" in said.out
    assert "3 left out" in said.out
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


def test_min_score_is_of_what_is_found(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Also below what the model itself leaves out, which is by the class alone."""
    scores = {}
    for least in (0.01, 0.2, None):
        words = () if least is None else ("--min-score", least)
        run(photos, "--checkpoint", checkpoint, "--out", tmp_path, *words)
        results = json.loads((tmp_path / "results.json").read_text())
        scores[least] = sorted(one["score"] for one in results)
    assert scores[0.2] == [score for score in scores[None] if score >= 0.2]
    assert 0 < len(scores[0.2]) < len(scores[None]) <= len(scores[0.01])
    assert scores[0.01][0] >= 0.01


def test_what_is_drawn_is_what_scores_enough(
    photos: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []
    draw = visualize.draw_instances

    def noted(image: Any, boxes: Any, labels: Any, scores: Any, *rest: Any, **names: Any) -> Any:
        drawn.extend(scores.tolist())
        return draw(image, boxes, labels, scores, *rest, **names)

    monkeypatch.setattr(visualize, "draw_instances", noted)
    run(photos, "--checkpoint", checkpoint, "--out", tmp_path, "--draw-score", 0.2)
    results = json.loads((tmp_path / "results.json").read_text())
    expected = sorted(one["score"] for one in results if one["score"] >= 0.2)
    assert sorted(drawn) == expected != []
    assert len(expected) < len(results)


def test_the_verbs_flags_are_the_options(
    photos: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Options] = []

    def noted(model: Any, names: Any, how: Options) -> Any:
        seen.append(how)
        seen.append(model.hparams.compile_model)
        return ((InputError("not looked at"), None) for _ in names)

    monkeypatch.setattr("autotimm.inference.predict.predictions", noted)
    words = [photos, "--checkpoint", checkpoint, "--out", tmp_path]
    flags = ["--tile", 256, "--overlap", 0.4, "--flip", "--half", "--batch-size", 9]
    for more in ([*flags, "--image-size", 64, 96, "--min-score", 0.3], ["--compile", "yes"]):
        with pytest.raises(InputError, match="none of the images"):
            run(*words, *more)
    told = Options(9, (64, 96), None, 256, 0.4, flip=True, half=True, min_score=0.3)
    assert seen == [told, False, Options(), True]


def test_own_pictures_are_not_looked_at_again(photos: Path, checkpoint: Path) -> None:
    out = photos / "found"
    for _ in range(2):
        assert run(photos, "--checkpoint", checkpoint, "--out", out) == 0
        images = json.loads((out / "images.json").read_text())["images"]
        assert len(images) == 8
    shutil.rmtree(out)


def test_names_too_long_for_a_picture_are_cut(checkpoint: Path, tmp_path: Path) -> None:
    names = ["\u00e9" * 125 + end for end in (".png", ".bmp")]
    for name in names:
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    words = [tmp_path / name for name in names]
    assert run(*words, "--checkpoint", checkpoint, "--out", tmp_path / "out") == 0
    drawn = sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir())
    assert drawn == ["\u00e9" * 100 + "-2.png", "\u00e9" * 100 + ".png"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_what_was_found_before_a_signal_is_kept(
    number: int, photos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    code = (
        "import os, sys\n"
        "from autotimm.inference import write\n"
        "add = write.Writer.add\n"
        "def signalled(self, *given):\n"
        "    add(self, *given)\n"
        f"    if len(self.images) == 3: os.kill(os.getpid(), {int(number)})\n"
        "write.Writer.add = signalled\n"
        "from autotimm.cli.main import main\n"
        "main()\n"
    )
    words = ["predict", photos, "--checkpoint", checkpoint, "--out", tmp_path, "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    assert len(json.loads((tmp_path / "images.json").read_text())["images"]) == 3
    found = {one["image_id"] for one in json.loads((tmp_path / "results.json").read_text())}
    assert found <= {1, 2, 3}
    assert {path.name for path in tmp_path.iterdir()} == {"images.json", "results.json"}


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
