"""Decoding, geometry and colour: against PIL, torchvision's colours, and tracked points."""

from __future__ import annotations

import io
import queue
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as tv

from autotimm.augmentation import presets
from autotimm.augmentation.presets import (
    PRESETS,
    Augmentation,
    augmentation_of,
    color_matrix,
    recolor,
)
from autotimm.augmentation.sample import evaluation_sample, training_sample
from autotimm.augmentation.transforms import Placement, fit, jitter, place_boxes, render
from autotimm.coco import index as coco
from autotimm.coco import masks
from autotimm.images import decode
from autotimm.images.decode import DataError, decode_image
from autotimm.structures import InputError, Record

FILL = (124, 116, 104)
LABELS = {3: 0, 5: 1}


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    """A smooth image whose values differ in every place and channel."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 2], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# --- decoding


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_what_pil_makes_of_it(mode: str) -> None:
    data = encoded(Image.fromarray(picture()).convert(mode), "JPEG", quality=95)
    truth = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    found = decode_image(memoryview(data), 60, 40)
    assert found.dtype == np.uint8
    assert np.array_equal(found, truth)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_of_any_mode(mode: str) -> None:
    colour = Image.fromarray(picture())
    if mode == "I;16":
        grey = np.array(colour.convert("L")).astype(np.uint16) * 256 + 77
        image, truth = Image.fromarray(grey), np.repeat((grey >> 8)[..., None], 3, 2)
    else:
        image = colour.convert(mode)
        truth = np.array(image.convert("RGB"))
    found = decode_image(encoded(image, "PNG"), 60, 40)
    assert found.dtype == np.uint8
    assert np.array_equal(found, truth)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_where_the_record_asks_for_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(picture()), "JPEG", exif=exif, quality=95)
    stored = Image.open(io.BytesIO(data))
    assert np.array_equal(decode_image(data, 60, 40), np.array(stored))
    if orientation > 4:
        turned = np.array(ImageOps.exif_transpose(stored))
        assert np.array_equal(decode_image(data, 40, 60), turned)
    else:
        with pytest.raises(DataError, match="is 60 x 40 pixels, its annotations say 40 x 60"):
            decode_image(data, 40, 60)


@pytest.mark.parametrize(
    "data",
    [b"", b"nothing", b"\xff\xd8\xff", encoded(Image.fromarray(picture()), "JPEG")[:500]],
)
def test_what_does_not_decode_is_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError, match="the image cannot be decoded") as error:
        decode_image(data, 60, 40)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("error")
def test_threads_that_decode_leave_warnings_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    data, real, within = encoded(Image.fromarray(picture()), "PNG"), decode.rgb, queue.Queue()

    def waits(image: Image.Image, *rest: Any) -> np.ndarray:
        within.put(go_on := threading.Event())
        go_on.wait()
        warnings.warn("odd metadata", stacklevel=1)
        return real(image, *rest)

    monkeypatch.setattr(decode, "rgb", waits)
    before = [*warnings.filters]
    with ThreadPoolExecutor(2) as pool:
        results, events = [], []
        for _ in range(2):
            results.append(pool.submit(decode_image, data, 60, 40))
            results[-1].add_done_callback(lambda _: within.put(threading.Event()))  # it failed
            events.append(within.get())
        for event, result in zip(events, results, strict=True):  # in the order of arrival
            event.set()
            assert np.array_equal(result.result(), picture())
    assert warnings.filters == before


def test_a_program_that_draws_pictures_is_never_run() -> None:
    """PIL runs Ghostscript for EPS files."""
    with pytest.raises(DataError, match="not an image of a known format"):
        decode_image(encoded(Image.fromarray(picture()), "EPS"), 60, 40)


def in_rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


# Every file there that can be read, and the mode in which PIL opens it.
ODD_IMAGES = {
    "mmcv/color.jpg": "RGB",
    "mmcv/color_exif.jpg": "RGB",
    "mmcv/gray_alpha.png": "LA",
    "mmcv/grayscale.jpg": "L",
    "mmcv/grayscale_dim3.jpg": "L",
    "pillow/hopper_bw_500.png": "1",
    "pillow/hopper_orientation_2.jpg": "RGB",
    "pillow/hopper_orientation_3.jpg": "RGB",
    "pillow/hopper_orientation_5.jpg": "RGB",
    "pillow/hopper_orientation_6.jpg": "RGB",
    "pillow/hopper_orientation_8.jpg": "RGB",
    "pillow/i_trns.png": "I;16",  # its values fit into 8 bits
    "pillow/pil_sample_cmyk.jpg": "CMYK",
    "pillow/uncompressed_la.png": "LA",
    "pillow/xmp_tags_orientation.png": "RGBA",
}
REFUSED = {"mmcv/uint16-5channel.tif": "the image cannot be decoded"}


def test_the_table_of_odd_images_is_whole(shared_data: Path) -> None:
    folder = shared_data / "odd" / "image_modes"
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")}
    assert files == set(ODD_IMAGES) | set(REFUSED)


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_an_odd_image_is_what_pil_makes_of_it_as_stored(shared_data: Path, name: str) -> None:
    path = shared_data / "odd" / "image_modes" / name
    with Image.open(path) as image:
        assert image.mode == ODD_IMAGES[name]
        truth = in_rgb(image)
    found = decode_image(path.read_bytes(), *truth.shape[1::-1])
    assert found.dtype == np.uint8
    assert np.array_equal(found, truth)
    assert found.std() > 1


def test_an_odd_image_is_turned_where_the_record_is(shared_data: Path) -> None:
    path = shared_data / "odd/image_modes/mmcv/color_exif.jpg"
    with Image.open(path) as image:
        truth = in_rgb(ImageOps.exif_transpose(image))
    assert truth.shape == (400, 300, 3)
    assert np.array_equal(decode_image(path.read_bytes(), 300, 400), truth)


@pytest.mark.parametrize("name", REFUSED)
def test_an_odd_image_that_cannot_be_read_is_refused(shared_data: Path, name: str) -> None:
    with pytest.raises(DataError, match=REFUSED[name]):
        decode_image((shared_data / "odd/image_modes" / name).read_bytes(), 100, 100)


# --- geometry


def test_letterbox_keeps_the_aspect_at_the_top_left() -> None:
    placement = fit(640, 480, (320, 512), "letterbox")
    assert placement == Placement((0, 0, 640, 480), (0, 0, 427, 320))
    assert placement.scale == (427 / 640, 320 / 480)
    assert placement.matrix.tolist() == [[427 / 640, 0, 0], [0, 320 / 480, 0]]
    canvas = render(np.full((480, 640, 3), 9, np.uint8), placement, (320, 512), FILL)
    assert (canvas[:, :427] == 9).all()
    assert (canvas[:, 427:] == FILL).all()
    assert fit(640, 480, (320, 512), "stretch").place == (0, 0, 512, 320)
    assert fit(3000, 1, (64, 64), "letterbox").place == (0, 0, 64, 1)


def test_a_placement_takes_pixels_where_its_matrix_says() -> None:
    """A dot in the image appears on the canvas where the matrix maps it."""
    rng = np.random.default_rng(0)
    wild = Augmentation(flip=0.5, scale=(0.4, 2.5))
    seen = flipped = 0
    for _ in range(200):
        width, height = (int(side) for side in rng.integers(50, 200, 2))
        canvas = (96, 128)
        placement = jitter(width, height, canvas, "letterbox", wild, rng)
        x, y = rng.integers(8, width - 8), rng.integers(8, height - 8)
        image = np.zeros((height, width, 3), np.uint8)
        image[y - 6 : y + 7, x - 6 : x + 7] = 255
        out = render(image, placement, canvas, (0, 0, 0))
        at = placement.matrix @ (x + 0.5, y + 0.5, 1)
        reach = 7 * np.array(placement.scale)
        if not ((at > reach + 1) & (at < np.array(canvas[::-1]) - reach - 1)).all():
            continue
        rows, columns = np.nonzero(out[..., 0] > 127)
        assert np.allclose((columns.mean() + 0.5, rows.mean() + 0.5), at, atol=0.6)
        seen += 1
        flipped += placement.flip
    assert seen > 60
    assert 0.3 < flipped / seen < 0.7


def test_jitter_covers_its_range_and_stays_on_the_canvas() -> None:
    rng = np.random.default_rng(1)
    scales, places = [], set()
    for _ in range(500):
        placement = jitter(
            100, 50, (64, 64), "letterbox", Augmentation(flip=0, scale=(0.5, 2)), rng
        )
        assert not placement.flip
        (wx1, wy1, wx2, wy2), (px1, py1, px2, py2) = placement.window, placement.place
        assert 0 <= wx1 < wx2 <= 100
        assert 0 <= wy1 < wy2 <= 50
        assert 0 <= px1 < px2 <= 64
        assert 0 <= py1 < py2 <= 64
        sx, sy = placement.scale
        assert abs(sx / sy - 1) < 0.08  # sizes are whole pixels
        scales.append(np.log2(sx / 0.64))
        places.add((wx1, px1, py1))
    assert min(scales) < -0.9
    assert max(scales) > 0.9
    assert abs(np.mean(scales)) < 0.1  # log-uniform
    assert len(places) > 200


def test_render_matches_cv2() -> None:
    image = picture(100, 120)
    cropped = render(image, Placement((20, 10, 80, 70), (0, 0, 90, 90), flip=True), (96, 96), FILL)
    truth = cv2.resize(image[10:70, 20:80], (90, 90), interpolation=cv2.INTER_LINEAR)[:, ::-1]
    assert np.array_equal(cropped[:90, :90], truth)
    cubic = render(image, fit(120, 100, (200, 240), "stretch"), (200, 240), FILL, "bicubic")
    assert np.array_equal(cubic, cv2.resize(image, (240, 200), interpolation=cv2.INTER_CUBIC))
    for how in ("bilinear", "bicubic"):
        shrunk = render(image, fit(120, 100, (32, 32), "stretch"), (32, 32), FILL, how)
        assert np.array_equal(shrunk, cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA))
    same = render(image, fit(120, 100, (100, 120), "letterbox"), (100, 120), FILL)
    assert np.array_equal(same, image)
    assert same is not image


def test_boxes_are_clipped_and_what_is_hardly_seen_counts_as_gone() -> None:
    boxes = np.array(
        [
            [10, 10, 20, 20],  # inside
            [25, 10, 10, 10],  # half outside the window
            [29.5, 10, 10, 10],  # a twentieth
            [-10, 0, 20, 10],  # half outside the image, the rest visible
            [15, 15, 0.4, 10],  # less than a pixel wide on the canvas
            [50, 30, 5, 5],  # not visible
        ],
        dtype=float,
    )
    placement = Placement((0, 0, 30, 40), (4, 0, 64, 80))
    found, share = place_boxes(boxes, placement, 60, 40)
    assert found[0].tolist() == [24, 20, 64, 60]
    assert found[1].tolist() == [54, 20, 64, 40]
    assert found[3].tolist() == [4, 0, 24, 20]
    assert np.allclose(share, [1, 0.5, 0.05, 1, 0, 0])
    flipped, _ = place_boxes(boxes[:2], Placement((0, 0, 30, 40), (4, 0, 64, 80), True), 60, 40)
    assert flipped.tolist() == [[4, 20, 44, 60], [4, 20, 14, 40]]
    assert place_boxes(np.zeros((0, 4)), placement, 60, 40)[0].shape == (0, 4)


def shape_record(mask: np.ndarray, iscrowd: int = 0, category: int = 5) -> Record:
    rle = masks.encode(mask)
    x1, y1, x2, y2 = masks.box(rle)
    return {
        "image_id": 1,
        "file_name": "a.jpg",
        "width": mask.shape[1],
        "height": mask.shape[0],
        "annotations": [
            {
                "id": 1,
                "category_id": category,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(mask.sum()),
                "iscrowd": iscrowd,
                "segmentation": rle,
            }
        ],
    }


def test_training_targets_lie_on_the_pixels() -> None:
    """A white object on black: the canvas itself gives the true box and mask."""
    y, x = np.mgrid[:120, :160]
    mask = ((x - 70) ** 2 / 900 + (y - 60) ** 2 / 1600 < 1) & ~((x > 60) & (y > 70))
    image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    kept = 0
    for seed in range(60):
        sample = training_sample(
            image,
            shape_record(mask),
            LABELS,
            (128, 96),
            resize="letterbox",
            augmentation=Augmentation(flip=0.5, scale=(0.5, 2.5)),
            rng=np.random.default_rng(seed),
            fill=(0, 0, 0),
            with_masks=True,
        )
        truth = sample.image[..., 0] > 127
        if not len(sample.labels):
            assert truth.mean() < 0.02
            continue
        kept += 1
        assert sample.labels.tolist() == [1]
        rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
        tight = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        x1, y1, x2, y2 = sample.boxes[0]
        assert np.abs(sample.boxes[0] - tight).max() <= 1.6
        assert sample.masks is not None
        grid = cv2.resize(
            sample.masks[0],
            (round(x2) - round(x1), round(y2) - round(y1)),
            interpolation=cv2.INTER_AREA,
        )
        pasted = np.zeros_like(truth)
        pasted[round(y1) : round(y2), round(x1) : round(x2)] = grid > 0
        assert (pasted & truth).sum() / (pasted | truth).sum() > 0.9
    assert kept > 40


def test_colours_are_varied_in_the_picture_alone() -> None:
    """Padding has the colour that it has in evaluation."""
    image = picture()
    for seed in range(5):
        sample = training_sample(
            image,
            shape_record(np.ones((40, 60), bool)),
            LABELS,
            (128, 128),
            resize="letterbox",
            augmentation=Augmentation(scale=(0.5, 0.5), brightness=1.0),
            rng=np.random.default_rng(seed),
            fill=FILL,
            with_masks=False,
        )
        assert sample.placement is not None
        plain = render(image, sample.placement, (128, 128), FILL)
        x1, y1, x2, y2 = sample.placement.place
        assert not np.array_equal(sample.image[y1:y2, x1:x2], plain[y1:y2, x1:x2])
        sample.image[y1:y2, x1:x2] = plain[y1:y2, x1:x2]
        assert np.array_equal(sample.image, plain)


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_training_and_evaluation_interpolate_alike(how: str) -> None:
    image, record = picture(), shape_record(np.ones((40, 60), bool))
    given = (image, record, LABELS, (80, 120))
    options: dict[str, Any] = {"resize": "letterbox", "fill": FILL, "with_masks": False}
    rng = np.random.default_rng(0)
    trained = training_sample(*given, Augmentation(), rng, interpolation=how, **options)
    evaluated = evaluation_sample(*given, interpolation=how, **options)
    assert np.array_equal(trained.image, evaluated.image)
    plain = evaluation_sample(*given, **options)
    assert np.array_equal(trained.image, plain.image) == (how == "bilinear")


def test_an_object_whose_seen_part_is_empty_is_dropped() -> None:
    """The box overlaps the window, the object does not."""
    mask = np.zeros((40, 80), bool)
    mask[:8, :] = mask[:, :8] = True
    record = shape_record(mask)
    for seed in range(30):
        sample = training_sample(
            np.repeat(mask[..., None] * np.uint8(255), 3, axis=2),
            record,
            LABELS,
            (64, 64),
            resize="letterbox",
            augmentation=Augmentation(scale=(3, 3)),
            rng=np.random.default_rng(seed),
            fill=(0, 0, 0),
            with_masks=False,
        )
        assert sample.masks is None
        assert len(sample.labels) == (sample.image > 127).any()


def test_crowd_is_no_training_target_and_unknown_categories_are_named() -> None:
    mask = np.ones((20, 20), bool)
    options: dict[str, Any] = {"resize": "letterbox", "fill": FILL, "with_masks": True}
    image = np.zeros((20, 20, 3), np.uint8)
    crowd = evaluation_sample(image, shape_record(mask, iscrowd=1), LABELS, (32, 32), **options)
    assert crowd.boxes.shape == (0, 4)
    assert crowd.masks is not None
    assert crowd.masks.shape == (0, 112, 112)
    record = shape_record(mask)
    record["annotations"][0]["ignore"] = 1
    assert evaluation_sample(image, record, LABELS, (32, 32), **options).boxes.shape == (0, 4)
    with pytest.raises(InputError, match="category id 9") as error:
        evaluation_sample(image, shape_record(mask, category=9), LABELS, (32, 32), **options)
    assert not isinstance(error.value, DataError)  # a DataError would be skipped


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_evaluation_boxes_map_back_exactly(resize: str, shared_data: Path) -> None:
    index = coco.load(
        shared_data / "coco_mini/annotations/instances_val2017.json",
        shared_data / "coco_mini/val2017",
    )
    for i in range(10):
        record = index.record(i)
        image = decode_image(index.image_path(i).read_bytes(), record["width"], record["height"])
        sample = evaluation_sample(
            image,
            record,
            coco.label_of(index.categories),
            (416, 512),
            resize=resize,
            fill=FILL,
            with_masks=False,
        )
        assert sample.offset == (0, 0)
        back = (sample.boxes.reshape(-1, 2, 2) / sample.scale).reshape(-1, 4)
        truth = [a["bbox"] for a in record["annotations"] if not a["iscrowd"]]
        corners = np.array([[x, y, x + w, y + h] for x, y, w, h in truth]).reshape(-1, 4)
        corners = corners.clip(0, [record["width"], record["height"]] * 2)
        big = ((corners[:, 2:] - corners[:, :2]) * sample.scale).min(axis=1, initial=9) >= 1
        assert np.allclose(back, corners[big], atol=0.01)


# --- colour


def test_colours_are_torchvisions() -> None:
    image = picture()
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    import torch

    tensor = torch.from_numpy(planes)
    for matrix, truth in [
        (color_matrix(brightness=0.7), tv.adjust_brightness(tensor, 0.7)),
        (color_matrix(saturation=0.3), tv.adjust_saturation(tensor, 0.3)),
        (color_matrix(saturation=0.0), tv.rgb_to_grayscale(tensor, 3)),
    ]:
        found = cv2.transform(image, matrix).transpose(2, 0, 1)
        assert np.abs(found.astype(int) - truth.numpy().astype(int)).max() <= 2


def test_color_matrices() -> None:
    assert np.array_equal(color_matrix(), np.eye(3, 4))
    grey = np.array([80.0, 80, 80, 1])
    for turn in (0.1, -0.3):
        assert np.allclose(color_matrix(turn=turn) @ grey, 80, atol=0.5)  # greys have no hue
    third = color_matrix(turn=1 / 3)[:, :3]
    assert np.allclose(np.linalg.matrix_power(third, 3), np.eye(3), atol=1e-9)  # a full circle
    assert np.allclose(color_matrix(contrast=0.5) @ (114, 114, 114, 1), 114)
    assert np.allclose(color_matrix(contrast=0.5) @ (214, 114, 14, 1), (164, 114, 64))


def test_every_strength_is_used() -> None:
    for name in ("brightness", "contrast", "saturation", "hue", "grayscale", "blur"):
        image = picture()
        strength = 0.5 if name == "hue" else 1.0
        recolor(image, Augmentation(**{name: strength}), np.random.default_rng(0))
        assert not np.array_equal(image, picture()), name
    image = picture()
    recolor(image, Augmentation(), np.random.default_rng(0))
    assert np.array_equal(image, picture())


def test_colours_are_varied_to_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, float]] = []
    matrix = presets.color_matrix
    monkeypatch.setattr(
        presets, "color_matrix", lambda **given: drawn.append(given) or matrix(**given)
    )
    strengths = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 0.1}
    for seed in range(200):
        recolor(picture(), Augmentation(**strengths), np.random.default_rng(seed))
    for name, strength in strengths.items():
        middle, key = (0, "turn") if name == "hue" else (1, name)
        found = [given[key] - middle for given in drawn]
        assert -strength <= min(found) < -0.9 * strength, name
        assert 0.9 * strength < max(found) <= strength, name


def test_presets_differ_and_grow() -> None:
    assert list(PRESETS) == ["light", "default", "strong", "lsj"]
    light, default, strong, _ = (augmentation_of(name) for name in PRESETS)
    assert light.scale[1] < default.scale[1] < strong.scale[1]
    assert light.brightness < default.brightness < strong.brightness


def test_large_scale_jitter_is_that_of_its_paper() -> None:
    """Sizes from 0.1 to 2, drawn uniformly: a quarter of them below 0.575."""
    rng = np.random.default_rng(0)
    made = [jitter(640, 480, (640, 640), "letterbox", PRESETS["lsj"], rng) for _ in range(4000)]
    found = np.quantile([one.scale[0] for one in made], [0, 0.25, 0.5, 0.75, 1])
    assert np.allclose(found, [0.1, 0.575, 1.05, 1.525, 2.0], atol=0.05)
    assert 0.45 < np.mean([one.flip for one in made]) < 0.55


def test_an_augmentation_of_ones_own() -> None:
    own = augmentation_of({"flip": 0.25, "scale": [0.9, 1.5]})
    assert own == Augmentation(flip=0.25, scale=(0.9, 1.5))
    assert augmentation_of(own) is own


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("medium", "'medium', but must be one of light, default, strong"),
        (["light"], "must be one of light, default, strong"),
        ({"fip": 0.5}, "no field 'fip', only flip, scale"),
        ({"flip": 1.5}, "flip is 1.5, but must be 0 to 1"),
        ({"hue": 0.6}, "hue is 0.6, but must be 0 to 0.5"),
        ({"blur": "much"}, "blur is 'much', but must be a number"),
        ({"linear_scale": 1}, "linear_scale is 1, but must be true or false"),
        ({"scale": 2}, r"scale is 2, but must be \[lowest, highest\]"),
        ({"scale": [2, 1]}, r"scale is \[2, 1\], but"),
        ({"scale": [0, 1]}, r"scale is \[0, 1\], but"),
    ],
)
def test_bad_augmentations_are_refused(value: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        augmentation_of(value)
