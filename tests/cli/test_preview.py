"""``autotimm preview``: the picture against the images and annotations that it shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from autotimm import visualize
from autotimm.augmentation.presets import PRESETS, Augmentation, summary
from autotimm.cli import preview
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.data.preview import sheet
from autotimm.data.synthetic import make_dataset
from autotimm.structures import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("preview") / "coco"
    make_dataset(root, train=3, val=1, size=96)
    return root


def module(folder: Path, **options: object) -> InstanceSegmentationDataModule:
    given: dict = {"image_size": 96, **options}
    return InstanceSegmentationDataModule(folder, batch_size=2, num_workers=0, **given)


def test_what_is_drawn_is_what_is_annotated(folder: Path) -> None:
    page, names = sheet({"as it is": module(folder, augmentation_preset=Augmentation())}, 3)
    assert page.shape == (8 + 28 + 3 * 488, 480 + 16, 3)  # five times as large
    truth = COCO(str(next((folder / "annotations").glob("*train*.json"))))
    classes = sorted(truth.cats)
    by_name = {image["file_name"]: image["id"] for image in truth.imgs.values()}
    assert sorted(names) == sorted(by_name)
    for row, name in enumerate(names):
        every = truth.loadAnns(truth.getAnnIds([by_name[name]], iscrowd=0))
        xywh = np.array([a["bbox"] for a in every]).reshape(-1, 4)
        image = np.array(Image.open(next(folder.glob(f"train*/{name}"))).convert("RGB"))
        expected = visualize.draw_instances(
            visualize.resized(image, 5),
            np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
            [classes.index(a["category_id"]) for a in every],
            masks=[truth.annToMask(a) for a in every],
            class_names=[truth.cats[c]["name"] for c in classes],
            size=(96, 96),
        )
        found = page[36 + row * 488 : 36 + row * 488 + 480, 8 : 8 + 480]
        same = (np.abs(found.astype(int) - expected).max(axis=2) < 8).mean()
        assert same > 0.95  # masks went through the squares of training


def test_a_pipeline_of_ones_own_can_be_shown(folder: Path) -> None:
    A = pytest.importorskip("albumentations")
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    own = A.Compose(
        [A.Normalize(mean, std)],
        bbox_params=A.BboxParams(format="coco", label_fields=["labels"]),
    )
    plain = module(folder, augmentation_preset=Augmentation())
    mine = module(folder, custom_train_transforms=own, mean=mean, std=std)
    page, _ = sheet({"plain": plain, "mine": mine}, 2, cell=96)
    left, right = page[36:, 8:104].astype(int), page[36:, 112:208].astype(int)
    assert (np.abs(left - right).max(axis=2) <= 8).mean() > 0.95


def test_large_pictures_are_made_smaller(folder: Path) -> None:
    page, _ = sheet({"a": module(folder), "b": module(folder, seed=1)}, 1, cell=48)
    assert page.shape == (8 + 28 + 48 + 8, 2 * 48 + 3 * 8, 3)
    sizes = {"a": module(folder), "b": module(folder, image_size=64)}
    page, _ = sheet(sizes, 1, cell=48)
    assert page.shape == (8 + 28 + 48 + 8, 48 + 32 + 3 * 8, 3)  # the smaller stays the smaller


def test_the_command_shows_every_preset(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "preview.png"
    words = ["-m", "autotimm", "preview", "--data", folder, "--out", out]
    done = forked.run(*words, "--image-size", 64, 96, "--samples", 2)
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.endswith(f"each as it is, {', '.join(PRESETS)}")
    assert " ".join(rest).startswith(
        "each row is an image, each column an augmentation; fit trains"
    )
    assert Image.open(out).size == (8 + 488 * (1 + len(PRESETS)), 36 + 2 * 328)


def test_a_title_says_what_its_column_is_and_fits_above_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert summary(Augmentation()) == "no augmentation"
    assert summary(PRESETS["default"]) == "flips, size x 0.8 to 1.25, colours"
    assert summary(PRESETS["lsj"]) == "flips, size x 0.1 to 2"
    written: list[tuple[str, float]] = []
    text = ImageDraw.ImageDraw.text

    def noted(pen: ImageDraw.ImageDraw, place: object, words: str, **how: Any) -> None:
        written.append((words, how["font"].getlength(words)))
        text(pen, place, words, **how)  # type: ignore[arg-type]

    title = f"strong: {summary(PRESETS['strong'])}"
    for cell in (480, 240):
        data = {title: module(folder, augmentation_preset="strong")}
        with monkeypatch.context() as patch:
            patch.setattr(ImageDraw.ImageDraw, "text", noted)
            sheet(data, 1, cell=cell)
        [wide] = [length for words, length in written if words == title]
        assert cell / 2 < wide <= cell
        written.clear()


def shown(folder: Path, *words: object) -> np.ndarray:
    """The picture that the command writes of two samples, as they are and with ``light``."""
    out = folder.parent / "shown.png"
    given = ["--data", folder, "--out", out, "--preset", "light", "--samples", 2]
    given += ["--image-size", 64, 96, *words]
    assert preview.run(preview.parser().parse_args(list(map(str, given)))) == 0
    return np.array(Image.open(out))


def test_every_flag_of_the_command_tells(folder: Path) -> None:
    plain = shown(folder)
    np.testing.assert_array_equal(shown(folder), plain)
    first = np.s_[36:, : 8 + 480]  # the column without any augmentation
    for words in (("--seed", 1), ("--resize", "stretch")):
        assert np.any(shown(folder, *words)[first] != plain[first])
    pasted = shown(folder, "--copy-paste", 1)
    np.testing.assert_array_equal(pasted[first], plain[first])
    assert np.any(pasted != plain)
    scaled = shown(folder, "--multi-scale")
    assert not np.array_equal(scaled, plain)  # smaller, or of other sides


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("--out a.jpg", "must end in .png"),
        ("--out a.png --samples 0", "--samples is 0"),
        ("--out a.png --preset weak", "invalid choice: 'weak'"),
        ("--out a.png --split else", "no split 'else', only train, val"),
        ("--out a.png --image-size 64 64 64", "--image-size takes one side, or height and width"),
        ("--samples 1 --image-size 64 --out no/such/a.png", "cannot write no/such/a.png"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    words: str, match: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=match):
        preview.run(preview.parser().parse_args(["--data", str(folder), *words.split()]))
    assert not list(tmp_path.iterdir())


def test_the_help_needs_no_torch() -> None:
    code = "import sys; from autotimm.cli import preview; preview.parser().format_help()"
    code += "; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_cannot_be_read_is_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "coco"
    make_dataset(root, train=4, val=1, size=96)
    images = sorted(root.glob("train*/*"))
    nothing = np.full((96, 96), np.nan, np.float32)
    Image.fromarray(nothing).save(images[1], "TIFF")
    images[2].write_bytes(b"\0\0\0\x18ftypheic" + bytes(400))
    words = ["--data", root, "--out", tmp_path / "a.png", "--preset", "light", "--samples", 4]
    words += ["--image-size", 96]
    assert preview.run(preview.parser().parse_args([str(word) for word in words])) == 0
    page = Image.open(tmp_path / "a.png")
    assert page.height == 8 + 28 + 2 * 488  # the two that can be read, each once
    said = capsys.readouterr()
    [shown, *_], [told] = said.out.splitlines(), said.err.splitlines()
    assert images[0].name in shown and images[3].name in shown
    assert told.startswith("autotimm preview: left out, as unusable: 2: ")
    for image, reason in (
        (images[1], "none of the image's pixels is a number"),
        (images[2], "file is not an image (HEIC): save it as PNG first"),
    ):
        assert any(one.startswith(image.name) for one in told.split(": ", 3)[3].split("; "))
        assert reason in told
    for image in images:
        image.write_bytes(b"")
    with pytest.raises(InputError, match=r"no sample can be used: .*file is empty"):
        preview.run(preview.parser().parse_args([str(word) for word in words]))
