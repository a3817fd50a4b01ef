"""``autotimm.predict``: any image, in its own pixels, as evaluation finds it."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import SAMPLE
from PIL import Image
from pycocotools import mask as coco_mask

import autotimm
from autotimm.cli import evaluate
from autotimm.cli import predict as verb
from autotimm.coco import masks
from autotimm.inference.predict import Options, predictions
from autotimm.inference.sources import find, pixels_of
from autotimm.structures import Detections, InputError, Preprocessing


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> autotimm.ObjectDetector:
    return autotimm.load(checkpoint)


def run(*words: object) -> int:
    return verb.run(verb.parser().parse_args([str(word) for word in words]))


def key(one: dict[str, Any]) -> Any:
    return one["image_id"], -one["score"], one["bbox"]


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
            coco_mask.iou([rle], [one["segmentation"]], [0])[0, 0] if one["segmentation"] else 1
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
    settings = SimpleNamespace(nms_thresh=0.5, max_detections_per_image=100)

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
    settings = SimpleNamespace(nms_thresh=0.5, max_detections_per_image=1)

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


def test_of_a_canvas_and_its_mirror_image_the_models_limit_tells_what_overlaps() -> None:
    class Shifted(Seen):
        def detect(self, image: torch.Tensor) -> list[Detections]:
            (found,) = super().detect(image)
            mirrored = len(self.canvases) == 2
            # Turned back 16, 10, 36, 30: an IoU of 0.54.
            box = [28.0, 10.0, 48.0, 30.0] if mirrored else [10.0, 10.0, 30.0, 30.0]
            return [found | {"boxes": torch.tensor([box])}]  # type: ignore[list-item]

    for limit, count in ((0.5, 1), (0.6, 2)):
        model = Shifted()
        model.settings = SimpleNamespace(nms_thresh=limit, max_detections_per_image=9)
        (found,) = autotimm.predict(model, np.zeros((64, 64, 3), np.uint8), flip=True)  # type: ignore[arg-type]
        assert len(found["scores"]) == count


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


def test_the_canvas_is_interpolated_as_in_the_training() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    mean = torch.tensor([0.25, 0.5, 0.75]).view(3, 1, 1)
    for how, flag in (("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)):
        model = Seen(interpolation=how)
        autotimm.predict(model, image)  # type: ignore[arg-type]
        wanted = torch.from_numpy(cv2.resize(image, (64, 64), interpolation=flag))
        torch.testing.assert_close(model.canvases[0][0] + mean, wanted.permute(2, 0, 1) / 255)


def test_what_is_found_on_a_stretched_canvas_lies_on_the_pixels() -> None:
    """Twice as wide and four times as high there."""
    picture, truth = np.zeros((32, 64, 3), np.uint8), np.zeros((32, 64), np.uint8)
    picture[4:12, 8:24], truth[4:12, 8:24] = 255, 1
    (found,) = autotimm.predict(Bright(), picture, resize="stretch")  # type: ignore[arg-type]
    assert found["boxes"].tolist() == [[8, 4, 24, 12]]
    np.testing.assert_array_equal(masks.decode(found["rles"][0]), truth)


def test_tiles_keep_a_box_that_is_thinner_than_a_pixel() -> None:
    class Thin(Bright):
        with_masks = False

        def detect(self, image: torch.Tensor) -> list[Detections]:
            return [
                Detections(
                    boxes=torch.tensor([[10.2, 10.0, 10.8, 30.0]] * seen).reshape(-1, 4),
                    labels=torch.zeros(seen, dtype=torch.int64),
                    scores=torch.full((seen,), 0.9),
                )
                for seen in (int(one[0, 20, 10] > 0.5) for one in image)
            ]

    picture = np.zeros((128, 200, 3), np.uint8)
    picture[20, 10] = 255
    (found,) = autotimm.predict(Thin(), picture, tile=128)  # type: ignore[arg-type]
    torch.testing.assert_close(found["boxes"], torch.tensor([[10.2, 10.0, 10.8, 30.0]]))


@pytest.mark.slow
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
        *("box", "confusion", "label_errors", "max_detections", "remarks", "worst")
    }


def test_half_precision_finds_about_the_same(photos: Path, model: Any) -> None:
    path = find([str(photos)])[:2]
    full, half = autotimm.predict(model, path), autotimm.predict(model, path, half=True)
    for one, other in zip(full, half, strict=True):
        assert other["boxes"].dtype == other["scores"].dtype == torch.float32
        assert float(one["scores"][0]) == pytest.approx(float(other["scores"][0]), abs=0.05)
        assert not torch.equal(one["scores"][:1], other["scores"][:1])


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
