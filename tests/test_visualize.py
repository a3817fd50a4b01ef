"""Pictures of instances: drawn pixels have exact values, and all others stay as they are."""

from __future__ import annotations

import colorsys
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autotimm import visualize
from autotimm.coco import masks
from autotimm.structures import InputError
from autotimm.visualize import class_colour, draw_instances, grid, instances, save_png
from autotimm.visualize.scaling import scaled_window

GREY = np.full((120, 160, 3), 100, np.uint8)


def square(height: int = 120, width: int = 160) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[40:80, 50:110] = 1
    return mask


def draw(**changes: Any) -> np.ndarray:
    arguments = {"boxes": [[50, 40, 110, 80]], "labels": [2], "masks": [masks.encode(square())]}
    return draw_instances(GREY, **(arguments | changes))


def test_mask_pixels_are_blended_and_others_left_alone() -> None:
    before = GREY.copy()
    picture = draw(draw_boxes=False, draw_labels=False, alpha=0.25)
    np.testing.assert_array_equal(GREY, before)
    inside = np.round(0.75 * 100 + 0.25 * np.array(class_colour(2)))
    np.testing.assert_allclose(picture[43:77, 53:107], np.broadcast_to(inside, (34, 54, 3)), atol=1)
    outside = np.ones((120, 160), bool)
    outside[39:81, 49:111] = False
    assert (picture[outside] == 100).all()
    outline = np.abs(picture[40, 50:110].astype(int) - inside).max(axis=1)
    assert outline.min() > 20, "the outline stands out from the blended mask"


def test_an_object_keeps_its_colours_and_has_an_outline_on_any_background() -> None:
    for size, line in (((120, 160), 1), ((1200, 1600), 3)):
        scale = size[0] // 120
        photo = np.full((*size, 3), class_colour(2), np.uint8)
        photo[50 * scale : 70 * scale, 60 * scale : 100 * scale] = (30, 60, 90)  # in the object
        picture = draw_instances(
            photo, [[50, 40, 110, 80]], [2], masks=[masks.encode(square())], size=(120, 160),
            draw_boxes=False, draw_labels=False,
        )  # fmt: skip
        row = picture[60 * scale].astype(int)
        tint = np.abs(row[80 * scale] - (30, 60, 90))
        assert 0 < tint.max() <= 0.2 * 225 + 1
        dark = (row < 60).all(axis=1)
        edge = 50 * scale
        assert dark[edge - line - 1 : edge].any() and not dark[: edge - line - 2].any()
        assert np.abs(row[edge] - class_colour(2)).max() < 40


def test_rle_dense_and_tensor_masks_give_the_same_picture() -> None:
    expected = draw()
    for stack in (square()[None], square()[None] > 0, square()[None].astype(np.float32)):
        np.testing.assert_array_equal(draw(masks=stack), expected)
    tensors = draw(
        boxes=torch.tensor([[50.0, 40, 110, 80]]),
        labels=torch.tensor([2]),
        masks=torch.from_numpy(square()[None]),
        scores=None,
    )
    np.testing.assert_array_equal(tensors, expected)


def test_a_box_alone_changes_its_border_alone() -> None:
    picture = draw(masks=None, draw_labels=False)
    changed = (picture != 100).any(axis=2)
    rows, cols = np.nonzero(changed)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (40, 79, 50, 109)
    assert (picture[40, 50:110] == class_colour(2)).all()
    assert not changed[41:79, 51:109].any()


def test_small_instances_lie_over_large_ones() -> None:
    whole = np.ones((120, 160), np.uint8)
    stack = np.stack([square(), whole])
    boxes = [[50, 40, 110, 80], [0, 0, 160, 120]]
    options: Any = {"draw_boxes": False, "draw_labels": False, "alpha": 1.0}
    for order in ([0, 1], [1, 0]):
        picture = draw_instances(
            GREY, np.array(boxes)[order], np.array([3, 1])[order], masks=stack[order], **options
        )
        assert tuple(picture[60, 80]) == class_colour(3)
        assert tuple(picture[20, 20]) == class_colour(1)


@pytest.mark.parametrize("x", [-30, 0, 70, 150, 400])
@pytest.mark.parametrize("y", [-30, 0, 60, 115, 400])
def test_labels_stay_inside_and_can_be_read(x: float, y: float) -> None:
    name = "wine glass"
    picture = draw_instances(
        GREY, [[x, y, x + 9, y + 9]], [4], scores=[0.934], class_names=[name] * 5, draw_boxes=False
    )
    colour = np.array(class_colour(4))
    rows, cols = np.nonzero((picture != 100).any(axis=2))
    plate = picture[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1].astype(int)
    # All four edges of the plate are visible: the picture's border cuts nothing off.
    for edge in (plate[0], plate[-1], plate[:, 0], plate[:, -1]):
        assert (edge == colour).all()
    contrast = np.abs(plate - colour).max(axis=2)
    assert contrast.max() > 100, "there are letters"
    assert plate.shape[1] > 8 * len(name) / 2


def test_labels_of_neighbours_do_not_cover_each_other() -> None:
    boxes = [[60, 50, 120, 90], [62, 52, 118, 88], [64, 53, 116, 87]]
    image = np.zeros((300, 400, 3), np.uint8)
    options: Any = {"draw_boxes": False}
    alone = sum(
        int((draw_instances(image, [box], [6 * i], **options) != 0).any(axis=2).sum())
        for i, box in enumerate(boxes)
    )
    together = draw_instances(image, boxes, [0, 6, 12], **options)
    assert (together != 0).any(axis=2).sum() == pytest.approx(alone, rel=0.02)


def test_labels_lie_beside_objects_and_not_on_them() -> None:
    """Also at the upper border, where there is no space above, and beside neighbours."""
    boxes = [[100, 0, 180, 60], [100, 60, 180, 120], [200, 100, 280, 160]]
    stack = np.zeros((3, 300, 400), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(stack, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    image = np.zeros((300, 400, 3), np.uint8)
    for masked in (stack, None):
        options: Any = {"masks": masked, "alpha": 0, "draw_boxes": False}
        plain = draw_instances(image, boxes, [0, 6, 12], draw_labels=False, **options)
        picture = draw_instances(image, boxes, [0, 6, 12], **options)
        written = (picture != plain).any(axis=2)
        assert written.sum() > 300
        assert not written[stack.any(axis=0)].any()


def test_a_label_without_space_beside_its_object_lies_on_it() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    picture = draw_instances(image, [[0, 0, 80, 60]], [3], draw_boxes=False)
    assert (picture[:5, :5] == class_colour(3)).all(axis=2).any()


def twice(**changes: Any) -> np.ndarray:
    """The square, and again a little to the right of it with a lower score."""
    arguments: dict[str, Any] = {
        "boxes": [[50, 40, 110, 80], [58, 40, 118, 80]],
        "labels": [2, 2],
        "masks": np.stack([square(), np.roll(square(), 8, axis=1)]),
        "scores": [0.9, 0.4],
        "draw_labels": False,
    }
    return draw_instances(GREY, **(arguments | changes))


def test_an_object_that_is_found_twice_is_dashed_and_not_tinted_the_second_time() -> None:
    def coloured(picture: np.ndarray, column: int) -> float:
        return float((picture[42:78, column] == class_colour(2)).all(axis=1).mean())

    place = [[50, 40, 110, 80]] * 2  # the very same: its lines lie over the first one's
    for given in ({}, {"masks": None}, {"labels": [2, 5]}, {"boxes": place, "masks": None}):
        picture = twice(**given)
        right = 109 if given.get("boxes") is place else 117
        side = picture[42:78, right]
        colour = class_colour(given.get("labels", [2, 2])[1])
        shares = [float((side == one).all(axis=1).mean()) for one in (colour, (255, 255, 255))]
        assert min(shares) > 0.3 and sum(shares) == 1
        assert given.get("boxes") is place or coloured(picture, 50) == 1  # the first one's side
    assert (twice()[60, 112:116] == 100).all(), "no tint"
    apart = [[50, 40, 110, 80], [95, 40, 155, 80]]
    others: list[dict[str, Any]] = [
        {"scores": None},  # the ground truth has each once
        {"boxes": apart, "masks": None},
        # The boxes overlap, and the masks do not.
        {"masks": np.stack([square() * (np.arange(160) < 84), square() * (np.arange(160) > 84)])},
    ]
    for given in others:
        picture = twice(**given)
        right = 154 if given.get("boxes") is apart else 117
        assert coloured(picture, right) == 1


def test_what_is_found_twice_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr(instances, "write_label", lambda *words: texts.append(words[1]))
    twice(draw_labels=True, class_names=["a", "b", "disc"])
    assert sorted(texts) == ["again: disc 0.40", "disc 0.90"]


def test_a_small_image_is_drawn_larger_and_its_objects_with_it() -> None:
    large = visualize.enlarged(GREY)
    assert large.shape == (480, 640, 3)
    assert visualize.enlarged(large) is large
    box = [[50, 40, 110, 80]]
    for mask in (square()[None], [masks.encode(square())]):
        given: dict[str, Any] = {"masks": mask, "draw_boxes": False, "draw_labels": False}
        picture = draw_instances(large, box, [2], size=(120, 160), alpha=1.0, **given)
        rows, columns = np.nonzero((picture == class_colour(2)).all(axis=2))
        assert (rows.min(), rows.max() + 1) == pytest.approx((160, 320), abs=3)
        assert (columns.min(), columns.max() + 1) == pytest.approx((200, 440), abs=3)
    # A mask's pixels are the old ones at their centres, also where it becomes smaller.
    rng = np.random.default_rng(0)
    mask = np.zeros((30, 40), np.uint8)
    mask[4:25, 7:31] = rng.integers(0, 2, (21, 24))
    for wanted in ((90, 120), (15, 20), (31, 77), (1, 1)):
        x, y, part = scaled_window(7, 4, mask[4:25, 7:31], (30, 40), wanted)
        whole = np.zeros(wanted, np.uint8)
        whole[y : y + part.shape[0], x : x + part.shape[1]] = part
        rows, columns = (
            [int((k + 0.5) * old / new) for k in range(new)]
            for new, old in zip(wanted, mask.shape, strict=True)
        )
        np.testing.assert_array_equal(whole, mask[np.ix_(rows, columns)])
    picture = draw_instances(large, box, [2], masks=None, draw_labels=False, size=(120, 160))
    assert (picture[160, 200:440] == class_colour(2)).all()
    with pytest.raises(ValueError, match="does not fit an image"):
        draw_instances(large, box, [2], masks=[masks.encode(square())])


def test_scores_names_and_numbers_are_written() -> None:
    texts = []
    original = instances.write_label

    def note(pen: Any, text: str, *others: Any) -> Any:
        texts.append(text)
        return original(pen, text, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instances, "write_label", note)
        draw(scores=[0.934], class_names=["a", "b", "c"])
        draw(scores=torch.tensor([1.0]), class_names=["a"])
        draw(class_names=["a", "b", "c"])
    assert texts == ["c 0.93", "2 1.00", "c"]


def test_colours_are_stable_and_apart() -> None:
    assert class_colour(5) == class_colour(5)
    colours = np.array([class_colour(label) for label in range(80)], float)
    gaps = np.abs(colours[:, None] - colours[None]).max(axis=2) + 1e3 * np.eye(80)
    assert gaps.min() >= 10
    assert min(gaps[i, i + 1] for i in range(79)) > 80
    assert all(colorsys.rgb_to_hsv(*colour / 255)[2] > 0.5 for colour in colours)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (20, 1500), (1200, 1600)])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_any_size_and_number(size: tuple[int, int], count: int) -> None:
    image = np.zeros((*size, 3), np.uint8)
    mask = np.ones((count, *size), np.uint8)
    mask[count // 2 :] = 0  # an empty mask too
    boxes = np.tile([0.0, 0, size[1], size[0]], (count, 1))
    picture = draw_instances(image, boxes, np.arange(count), np.ones(count), mask)
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8
    assert picture.any() == (count > 0)


@pytest.mark.slow
def test_thousands_of_instances() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 100, (5000, 2))
    boxes = np.hstack([corners, corners + rng.uniform(1, 40, (5000, 2))])
    rles = []
    for x1, y1, x2, y2 in boxes.astype(int):
        mask = np.zeros((120, 160), np.uint8)
        mask[y1:y2, x1:x2] = 1
        rles.append(masks.encode(mask))
    draw_instances(GREY, boxes, rng.integers(0, 80, 5000), rng.uniform(size=5000), rles)


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="1 boxes, but 2 labels"):
        draw(labels=[1, 2])
    with pytest.raises(ValueError, match="1 boxes, but 0 masks"):
        draw(masks=[])
    with pytest.raises(ValueError, match="does not fit an image"):
        draw(masks=[masks.encode(square(130, 160))])
    with pytest.raises(ValueError, match="does not fit an image"):
        draw(masks=np.ones((1, 4, 4)))
    with pytest.raises(ValueError, match="not finite"):
        draw(boxes=[[0, 0, np.nan, 3]])
    with pytest.raises(ValueError, match="not uint8"):
        draw_instances(GREY.astype(np.float32), [], [])
    with pytest.raises(ValueError, match="at least one pair"):
        grid([])


def test_a_grid_shows_every_picture_once() -> None:
    pairs = [
        (np.full((40, 60, 3), 10 * i + 10, np.uint8), np.full((40, 60, 3), 10 * i + 15, np.uint8))
        for i in range(3)
    ]
    sheet = grid(pairs, titles=("", ""), columns=2, gap=4)
    assert sheet.shape == (4 + 2 * 44, 4 + 2 * (2 * 60 + 4) + 8 + 4, 3)
    for value in (10, 15, 20, 25, 30, 35):
        assert (sheet == value).all(axis=2).sum() == 40 * 60
    assert (sheet[:, :4] == 255).all()
    assert (sheet == 255).all(axis=2).sum() == sheet.shape[0] * sheet.shape[1] - 6 * 2400

    titled = grid(pairs, titles=("ours", "theirs"), columns=2, gap=4)
    extra = titled.shape[0] - sheet.shape[0]
    assert extra > 0
    np.testing.assert_array_equal(titled[extra + 4 :], sheet[4:])
    assert (titled[:extra] < 100).any()


def test_a_grid_is_no_wider_than_allowed_and_keeps_aspects() -> None:
    pair = (np.zeros((100, 400, 3), np.uint8), np.zeros((300, 200, 3), np.uint8))
    sheet = grid([pair], max_width=300, gap=10, titles=("", ""))
    assert sheet.shape[1] == 300
    cell = (300 - 30) // 2
    dark = (sheet == 0).all(axis=2)
    assert dark[:, 10].sum() == round(cell / 4)
    assert dark[:, 20 + cell].sum() == round(cell * 1.5)
    with pytest.raises(ValueError, match="do not fit into 20 pixels"):
        grid([pair], max_width=20)


def test_png_appears_whole(tmp_path: Path) -> None:
    picture = draw()
    save_png(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "a.png")), picture)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(InputError, match=r"cannot write .*missing/a\.png: No such file"):
        save_png(tmp_path / "missing/a.png", picture)


def test_torch_is_not_imported() -> None:
    code = "import sys, autotimm.visualize; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


FOUND: dict[str, Any] = {
    "boxes": torch.tensor([[50.0, 40, 110, 80], [0, 0, 20, 20]]),
    "labels": torch.tensor([2, 0]),
    "scores": torch.tensor([0.9, 0.2]),
    "masks": torch.from_numpy(np.stack([square(), np.zeros((120, 160), np.uint8)])),
}


def test_draw_takes_any_image_and_leaves_out_low_scores(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    expected = draw(scores=[0.9], class_names=names)
    save_png(tmp_path / "grey.png", GREY)
    tensor = torch.from_numpy(GREY).permute(2, 0, 1)
    given: list[Any] = [tmp_path / "grey.png", str(tmp_path / "grey.png"), Image.fromarray(GREY)]
    given += [GREY, GREY[..., 0], tensor, tensor / 255, tensor.contiguous()]
    given += [np.asfortranarray(GREY), GREY[::-1][::-1], (tensor / 255).double()]
    for image in given:
        picture = visualize.draw(image, FOUND, names)
        assert isinstance(picture, Image.Image)
        np.testing.assert_array_equal(np.asarray(picture), expected)
    small = {k: v for k, v in FOUND.items() if k != "masks"}
    small["rles"] = [masks.encode(mask.numpy()) for mask in FOUND["masks"]]
    np.testing.assert_array_equal(np.asarray(visualize.draw(GREY, small, names)), expected)
    both = visualize.draw(GREY, FOUND, names, threshold=float(FOUND["scores"][1]))
    assert (np.asarray(both)[0, :20] != 100).any(), "a score that equals the threshold is drawn"
    everything = np.asarray(visualize.draw(GREY, FOUND, threshold=0))
    assert (everything[0, :20] != 100).any()
    truth = {"boxes": FOUND["boxes"][:1], "labels": FOUND["labels"][:1]}
    np.testing.assert_array_equal(np.asarray(visualize.draw(GREY, truth)), draw(masks=None))


def test_draw_refuses_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no image")
    broken = tmp_path / "broken.png"
    save_png(broken, np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8))
    broken.write_bytes(broken.read_bytes()[:2000] + bytes(200))
    for image, message in [
        (tmp_path / "none.png", "none.png: No such file"),
        (tmp_path / "a.txt", r"a.txt: .*not an image of a known format"),
        (torch.full((3, 120, 160), -2.0), "values outside of 0 to 1: give the photo"),
        (np.zeros((50, 50, 3), np.uint8), "does not fit an image"),
        (np.zeros((4, 120, 160), np.uint8), "not uint8"),
        (np.zeros((0, 160, 3), np.uint8), "image is 0 x 160 pixels"),
        (broken, r"broken.png: the image cannot be decoded \(image file is truncated"),
    ]:
        with pytest.raises(InputError, match=message):
            visualize.draw(image, FOUND)
    with pytest.raises(InputError, match="no labels"):
        visualize.draw(GREY, {"boxes": []})
    short = FOUND["masks"][:1]
    no_size = [{"counts": "1"}] * 2
    for found, message in [
        (None, "found is a NoneType"),
        ({"boxes": np.zeros((4, 5)), "labels": [0] * 4}, "not \\[N, 4\\]"),
        ({**FOUND, "masks": short}, "2 boxes, but 1 masks"),
        ({**FOUND, "masks": no_size}, "does not fit an image"),
    ]:
        with pytest.raises(InputError, match=message):
            visualize.draw(GREY, found)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="colour"):
        visualize.draw(GREY, FOUND, colour="red")
    half = {**FOUND, "boxes": FOUND["boxes"].bfloat16(), "scores": FOUND["scores"].bfloat16()}
    assert visualize.draw(GREY, half).size == (160, 120)


def test_photos_are_drawn_upright(tmp_path: Path) -> None:
    photo = Image.new("RGB", (160, 120), (100, 100, 100))
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.jpg", exif=exif)
    nothing = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0)}
    assert visualize.draw(tmp_path / "turned.jpg", nothing).size == (120, 160)
