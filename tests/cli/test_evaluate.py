"""``autotimm evaluate``: its files and numbers against pycocotools, on one rank and on two."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from coco_folder import SQUARE, annotation, image, mixed, picture, write
from conftest import SAMPLE
from official import coco_of, official
from PIL import Image
from pycocotools import mask as coco_mask
from ranks import on_ranks

import autotimm
from autotimm import visualize
from autotimm.cli import evaluate, run_checkpoint
from autotimm.coco import masks
from autotimm.coco.index import Category, shown_names
from autotimm.data.whole import WholeImages
from autotimm.evaluation import output
from autotimm.evaluation.coco_eval import ERRORS, STATS
from autotimm.evaluation.truth import Truth
from autotimm.sharding.cli import shard
from autotimm.streaming.store import open_source
from autotimm.structures import InputError
from autotimm.visualize import class_colour

TWO_FOLDERS = ("--annotations", __file__, "--images", ".") * 2
ARTEFACTS = {"metrics.json", "precision_recall.png", "confusion.png", "report.html"}


def run(*words: object) -> int:
    return evaluate.run(evaluate.parser().parse_args([str(word) for word in words]))


def through_pycocotools(truth: dict[str, Any], results: Path, iou_type: str) -> dict[str, float]:
    coco = coco_of(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        found = coco.loadRes(str(results))
    if iou_type == "segm":  # loadRes takes the boxes' areas
        for one in found.anns.values():
            one["area"] = float(coco_mask.area(one["segmentation"]))
    return official(coco, found, iou_type)


@pytest.fixture(scope="module")
def evaluated(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation of the checkpoint on the sample's training images."""
    out = tmp_path_factory.mktemp("evaluated")
    words = ("--checkpoint", checkpoint, "--data", SAMPLE, "--split", "train", "--out", out)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert run(*words, "--num-workers", 0, "--min-score", 0.1, "--batch-size", 4) == 0
    out.with_name("said.txt").write_text(said.getvalue())
    return out


@pytest.mark.slow
def test_the_last_line_names_the_page_and_every_other_file(
    evaluated: Path, checkpoint: Path
) -> None:
    *_, last = evaluated.with_name("said.txt").read_text().splitlines()
    page, _, others = last.partition(" in a browser; beside it: ")
    assert page == f"open {evaluated / 'report.html'}"
    content = (evaluated / "report.html").read_text()
    facts = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", content))
    assert facts["checkpoint"] == str(checkpoint.resolve())
    assert facts["model"].startswith("InstanceSegmentor, ") and re.fullmatch(
        r"\d+ x \d+", facts["image size"]
    )
    assert date.fromisoformat(facts["date"])
    heads = re.findall('<th scope="col">(.*?)</th>', content)
    by_class = heads[heads.index("class") :]
    assert by_class[:6] == ["class", "objects", "mask AP", "mask AP50", "box AP", "box AP50"]
    there = {one.name for one in evaluated.iterdir()}
    named = {name.removesuffix(" (only images with mistakes)") for name in others.split(", ")}
    assert named == there - {"report.html"}


def test_the_page_names_the_checkpoint_that_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "step_1200.ckpt").touch()
    (tmp_path / "best.ckpt").symlink_to("step_1200.ckpt")
    model = SimpleNamespace(settings=SimpleNamespace(backbone="resnet50"))
    facts = run_checkpoint._facts(str(tmp_path / "best.ckpt"), model, (64, 96))
    assert facts == {
        "checkpoint": str(tmp_path / "step_1200.ckpt"),
        "step": "1,200",
        "model": "SimpleNamespace, resnet50",
        "image size": "64 x 96",
    }
    url = run_checkpoint._facts("https://host/best.ckpt", model, (64, 96))
    assert url["checkpoint"] == "https://host/best.ckpt" and "step" not in url


def test_numbers_are_those_of_pycocotools_over_the_results_file(evaluated: Path) -> None:
    truth = Truth(open_source(SAMPLE, "train")).content
    written = json.loads((evaluated / "metrics.json").read_text())
    for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
        expected = through_pycocotools(truth, evaluated / "results.json", iou_type)
        measured = {name: written[kind][name] for name in STATS}
        assert measured == pytest.approx(expected, abs=1e-9)
        assert measured["AR100"] > 0
        assert set(written[kind]["AP50_lost_to"]) == set(ERRORS.values())
    names = [one["name"] for one in written["box"]["classes"]]
    assert names == [one["name"] for one in truth["categories"]]
    by_id = {one["id"]: one["name"] for one in truth["categories"]}
    for one in json.loads((evaluated / "results.json").read_text()):
        assert one["category_name"] == by_id[one["category_id"]]


def test_pictures_are_written(evaluated: Path) -> None:
    assert {path.name for path in evaluated.iterdir()} == {
        *ARTEFACTS,
        "results.json",
        "images.json",
        "worst.png",
    }
    for path in evaluated.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("RGB").getcolors(2**24) or ()) > 10


@pytest.mark.slow
def test_a_results_file_alone_gives_the_same(evaluated: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(Truth(open_source(SAMPLE, "train")).content))
    results = ("--results", evaluated / "results.json", "--min-score", 0.1)
    assert run(*results, "--annotations", truth, "--out", tmp_path / "a") == 0
    assert run(*results, "--data", SAMPLE, "--split", "train", "--out", tmp_path / "b") == 0
    assert {path.name for path in (tmp_path / "a").iterdir()} == ARTEFACTS
    assert (tmp_path / "b" / "worst.png").exists()
    for out in (tmp_path / "a", tmp_path / "b"):
        assert (out / "metrics.json").read_bytes() == (evaluated / "metrics.json").read_bytes()


@pytest.mark.filterwarnings("ignore:.*not a whole number")
def test_text_ids_are_written_as_results_hold_them(tmp_path: Path) -> None:
    """Of whole images, in tiles or mirrored, and in the images.json beside the results."""
    folder = write(
        tmp_path / "coco",
        [image(id="b-1"), image(id="a-1", file_name="b.jpg")],
        [annotation(image_id="b-1", category_id="d")],
        categories=[{"id": "s", "name": "star"}, {"id": "d", "name": "disc"}],
        files={"a.jpg": picture(), "b.jpg": picture()},
    )
    whole = WholeImages(folder, batch_size=2, num_workers=0, test_split="train", image_size=64)
    whole.setup("predict")
    (batch,) = whole.predict_dataloader()
    assert batch["given_id"] == ["b-1", "a-1"]
    output.write_images(tmp_path, Truth(open_source(folder, "train")).truth)
    content = json.loads((tmp_path / "images.json").read_text())
    assert [one["id"] for one in content["images"]] == ["b-1", "a-1"]
    assert [one["id"] for one in content["categories"]] == ["s", "d"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"flip": True}, {"tile": 64}])
def test_tiles_and_the_mirror_image_find_what_predict_finds(
    checkpoint: Path, tmp_path: Path, photos: Path, how: dict[str, Any]
) -> None:
    words = ("--checkpoint", checkpoint, "--data", SAMPLE, "--split", "train", "--num-workers", 0)
    flags = [str(v) for k, value in how.items() for v in (f"--{k}", value) if v is not True]
    assert run(*words, "--out", tmp_path, "--score-thresh", 0.1, *flags) == 0
    model = autotimm.load(checkpoint, metrics=None)
    model.hparams.update(score_thresh=0.1)
    found = json.loads((tmp_path / "results.json").read_text())
    images = json.loads((tmp_path / "images.json").read_text())["images"]
    by_name = {path.stem: path for path in photos.iterdir()}
    for entry in images[:3]:
        [wanted] = autotimm.predict(model, [by_name[Path(entry["file_name"]).stem]], **how)
        scores = [one["score"] for one in found if one["image_id"] == entry["id"]]
        assert scores == pytest.approx(wanted["scores"].tolist(), abs=1e-4)


def test_an_image_that_cannot_be_read_is_told_and_the_others_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [image(), image(id=2, file_name="b.jpg")]
    annotations = [annotation(), annotation(id=2, image_id=2)]
    files = {"a.jpg": picture(), "b.jpg": b"no picture"}
    folder = write(tmp_path / "coco", images, annotations, files=files)
    (tmp_path / "r.json").write_text("[]")
    words = ("--results", tmp_path / "r.json", "--data", folder, "--split", "train")
    assert run(*words, "--out", tmp_path / "out") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "not drawn" in line]
    assert len(told) == 1
    assert "b.jpg" in told[0]
    with Image.open(tmp_path / "out" / "worst.png") as drawn:
        assert drawn.size[1] < 2 * drawn.size[0]  # one row


def test_an_image_that_changed_inside_of_a_shard_is_told_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [image(), image(id=2, file_name="b.jpg")]
    annotations = [annotation(), annotation(id=2, image_id=2)]
    files = {"a.jpg": picture(), "b.jpg": picture(kind="PNG")}
    shard(write(tmp_path / "coco", images, annotations, files=files), tmp_path / "shards")
    [tar] = (tmp_path / "shards").glob("*.tar")
    content = tar.read_bytes()
    tar.write_bytes(content.replace(files["b.jpg"][100:120], bytes(20)))
    (tmp_path / "r.json").write_text("[]")
    words = ("--results", tmp_path / "r.json", "--data", tmp_path / "shards", "--split", "train")
    assert run(*words, "--out", tmp_path / "out") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "not drawn" in line]
    assert len(told) == 1
    assert "its bytes have changed" in told[0]


@pytest.mark.parametrize("form", ["RLE", "counts", "polygons", "boxes"])
def test_every_form_of_results_is_measured_and_drawn(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    grid = visualize.grid
    monkeypatch.setattr(
        visualize, "grid", lambda pairs, **k: drawn.extend(pairs) or grid(pairs, **k)
    )
    black = io.BytesIO()
    Image.new("RGB", (64, 48)).save(black, "PNG")
    folder = write(tmp_path / "coco", files={"a.jpg": black.getvalue()})
    wrong = [[40.0, 30.0, 60.0, 30.0, 60.0, 40.0, 40.0, 40.0]]
    masks_of = {
        "RLE": masks.to_rle(wrong, 48, 64),
        "counts": {"size": [48, 64], "counts": [48 * 40 + 30, 10, *[38, 10] * 19, 8 + 48 * 4]},
        "polygons": wrong,
    }
    one: dict[str, Any] = {"image_id": 1, "category_id": 3, "score": 0.9}
    one |= {"bbox": [40, 30, 20, 10]} if form == "boxes" else {"segmentation": masks_of[form]}
    (tmp_path / "r.json").write_text(json.dumps([one]))
    words = ("--results", tmp_path / "r.json", "--data", folder, "--split", "train")
    assert run(*words, "--out", tmp_path / "out") == 0
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert ("mask" in written) == (form != "boxes")
    assert written["box"]["AP"] == 0
    [pair] = drawn
    for part, (x, y, w, h) in zip(pair, ((40, 30, 20, 10), (10, 8, 20, 20)), strict=True):
        assert part.shape == (480, 640, 3)
        # The lowest line of the box; the label lies above.
        line = np.abs(part[round(10 * y + 20) :].astype(int) - class_colour(0)).sum(-1) < 30
        rows, columns = np.nonzero(line)
        assert rows.max() + round(10 * y + 20) == pytest.approx(10 * (y + h), abs=3)
        assert columns.min() == pytest.approx(10 * x, abs=3)
        assert columns.max() == pytest.approx(10 * (x + w), abs=3)


def test_what_is_drawn_is_what_counts_as_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    draw = visualize.draw_instances

    def noted(image: Any, boxes: Any, labels: Any, scores: Any, *rest: Any, **names: Any) -> Any:
        drawn.append(scores)
        return draw(image, boxes, labels, scores, *rest, **names)

    monkeypatch.setattr(visualize, "draw_instances", noted)
    folder = write(tmp_path / "coco")
    one = {"image_id": 1, "category_id": 3, "bbox": [40, 30, 20, 10]}
    results = [{**one, "score": score} for score in (0.9, 0.7, 0.6, 0.2)]
    (tmp_path / "r.json").write_text(json.dumps(results))
    words = ("--results", tmp_path / "r.json", "--data", folder, "--split", "train")
    assert run(*words, "--out", tmp_path / "out", "--min-score", 0.7) == 0
    assert drawn[:2] == [[0.9, 0.7], None]  # and the truth; then suspect labels, one by one


def test_masks_of_some_results_alone_are_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "coco")
    one = {"image_id": 1, "category_id": 3, "score": 0.9, "bbox": [10, 8, 20, 20]}
    (tmp_path / "r.json").write_text(json.dumps([one, {**one, "segmentation": SQUARE}]))
    words = ("--results", tmp_path / "r.json", "--data", folder, "--split", "train")
    words = (*words, "--out", tmp_path / "out")
    with pytest.raises(InputError, match=r"r\.json: result 1 has no segmentation: .*--boxes-only"):
        run(*words)
    assert run(*words, "--boxes-only") == 0
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["box"]["AP50"] == pytest.approx(1)
    assert "mask" not in written


def test_images_are_fitted_as_in_training(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = autotimm.load(checkpoint, metrics=None)
    model.preprocessing = replace(model.preprocessing, resize="stretch", image_size=(64, 96))
    seen: list[Any] = []
    monkeypatch.setattr("autotimm.tasks.load.load", lambda *_, **__: model)
    monkeypatch.setattr(
        "autotimm.training.evaluate.find_all", lambda _, data, *__, **___: seen.append(data)
    )
    words = ("--checkpoint", checkpoint, "--data", SAMPLE, "--out", tmp_path)
    assert run(*words) == run(*words, "--image-size", 128) == 0
    assert [(one.resize, one.image_size) for one in seen] == [
        ("stretch", (64, 96)),
        ("stretch", (128, 128)),
    ]


def test_a_checkpoint_is_measured_on_the_only_split_and_on_what_cannot_be_read(
    checkpoint: Path, tmp_path: Path
) -> None:
    """An image that is out of reach counts as missed."""
    images = [image(), image(id=2, file_name="b.jpg")]
    annotations = [annotation(), annotation(id=2, image_id=2)]
    files = {"a.jpg": picture(), "b.jpg": b"no picture"}
    made = {"categories": autotimm.load(checkpoint).categories, "split": "val", "files": files}
    annotations = [one | {"category_id": made["categories"][0]["id"]} for one in annotations]
    folder = write(tmp_path / "coco", images, annotations, **made)
    words = ("--checkpoint", checkpoint, "--data", folder, "--num-workers", 0)
    with pytest.warns(UserWarning, match="1 of 2 samples were skipped.* not evaluated"):
        assert run(*words, "--out", tmp_path / "out") == 0
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["box"]["classes"][0]["instances"] == 2
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {one["image_id"] for one in found} == {1}


@pytest.mark.slow
def test_a_checkpoint_looks_at_images_elsewhere(
    checkpoint: Path, evaluated: Path, tmp_path: Path
) -> None:
    """``--annotations`` and ``--images`` name what ``--data`` finds: the same files, results and
    pictures, also of two files whose images lie in two folders."""
    source, samples = open_source(SAMPLE, "train"), []
    for index in range(int(source.shard_sizes.sum())):
        data, record = source.read(0, index)
        samples.append((bytes(data), record))
    content = Truth(source).content
    half = len(samples) // 2
    words: list[object] = []
    for n, part in enumerate((samples[:half], samples[half:])):
        folder, ids = tmp_path / f"images {n}", {record["image_id"] for _, record in part}
        folder.mkdir()
        for data, record in part:
            (folder / record["file_name"]).write_bytes(data)
        file = tmp_path / f"part{n}.json"
        images = [one for one in content["images"] if one["id"] in ids]
        annotations = [one for one in content["annotations"] if one["image_id"] in ids]
        file.write_text(json.dumps(content | {"images": images, "annotations": annotations}))
        words += ["--annotations", file, "--images", folder]
    how = ("--num-workers", 0, "--min-score", 0.1, "--batch-size", 4)
    assert run("--checkpoint", checkpoint, *words, *how, "--out", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in evaluated.iterdir()
    }
    told, before = (
        json.loads((folder / "metrics.json").read_text())
        for folder in (tmp_path / "out", evaluated)
    )
    assert [told[kind]["AP"] for kind in ("box", "mask")] == pytest.approx(
        [before[kind]["AP"] for kind in ("box", "mask")], abs=1e-6
    )
    results = ("--results", tmp_path / "out" / "results.json")
    assert run(*results, *words, "--worst", 2, "--out", tmp_path / "again") == 0
    assert (tmp_path / "again" / "worst.png").is_file()
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert again["mask"]["AP"] == pytest.approx(told["mask"]["AP"], abs=1e-9)


@pytest.mark.slow
def test_images_elsewhere_are_looked_at_in_tiles(
    checkpoint: Path, tmp_path: Path, photos: Path
) -> None:
    categories = autotimm.load(checkpoint).categories
    photo = min(photos.iterdir())
    with Image.open(photo) as opened:
        width, height = opened.size
    entry = image(file_name=photo.name, width=width, height=height)
    made = {"categories": categories, "split": "val", "files": {photo.name: photo.read_bytes()}}
    one = annotation(category_id=categories[0]["id"])
    folder = write(tmp_path / "coco", [entry], [one], **made)
    file = folder / "annotations/instances_val.json"
    words = ("--checkpoint", checkpoint, "--annotations", file, "--images", folder / "val")
    out = ("--out", tmp_path / "out", "--num-workers", 0, "--worst", 0)
    assert run(*words, *out, "--tile", 64, "--score-thresh", 0.1) == 0
    scores = [one["score"] for one in json.loads((tmp_path / "out/results.json").read_text())]
    model = autotimm.load(checkpoint, metrics=None)
    model.hparams.update(score_thresh=0.1)
    [tiles], [whole] = (autotimm.predict(model, [photo], **how) for how in ({"tile": 64}, {}))
    assert scores == pytest.approx(tiles["scores"].tolist(), abs=1e-4)
    assert scores != pytest.approx(whole["scores"].tolist(), abs=1e-4)


def test_a_model_that_finds_nothing_is_said_to(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    categories = autotimm.load(checkpoint).categories
    made = {"categories": categories, "split": "val", "files": {"a.jpg": picture()}}
    one = annotation(category_id=categories[0]["id"])
    folder = write(tmp_path / "coco", [image()], [one], **made)
    words = ("--checkpoint", checkpoint, "--data", folder, "--num-workers", 0, "--worst", 0)
    assert run(*words, "--score-thresh", 1, "--out", tmp_path / "out") == 0
    assert "the model found no object" in capsys.readouterr().out


@pytest.mark.slow
def test_three_ranks_give_what_one_gives(evaluated: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Eight images on three: one is a repeat that evens out the ranks, and must not count."""
    words = ["--checkpoint", checkpoint, "--data", SAMPLE, "--split", "train", "--num-workers", 0]
    code = "from autotimm.cli.main import main\nmain()"
    arguments = ["evaluate", *words, "--min-score", 0.1, "--batch-size", 3, "--out", tmp_path]
    done = on_ranks(code, tmp_path, *arguments, ranks=3)
    assert done.returncode == 0, done.stderr
    one, three = (
        sorted(
            json.loads((out / "results.json").read_text()),
            key=lambda r: (r["image_id"], -r["score"], r["bbox"]),
        )
        for out in (evaluated, tmp_path)
    )
    assert len(one) == len(three)
    places = [(r["image_id"], r["category_id"], r["score"], *r["bbox"]) for r in three]
    assert len(set(places)) == len(places)
    assert [r["image_id"] for r in one] == [r["image_id"] for r in three]
    assert [r["score"] for r in one] == pytest.approx([r["score"] for r in three], abs=1e-4)
    first, second = (
        json.loads((out / "metrics.json").read_text())["mask"]["AP"]
        for out in (evaluated, tmp_path)
    )
    assert first == pytest.approx(second, abs=1e-3)
    assert done.stdout.count("class by class") == done.stdout.count("AP50 lost to") == 1


@pytest.mark.filterwarnings("ignore:Glyph")  # the charts' font has no cats
def test_names_that_look_like_markup_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["[bold]x[/nope]", "$x^$", "\U0001f431 & co", "_x"]
    categories = [{"id": id_, "name": name} for id_, name in enumerate(names)]
    annotations = [annotation(id=id_, category_id=id_) for id_ in range(len(names))]
    folder = write(tmp_path / "coco", [image()], annotations, categories)
    file = next(folder.rglob("*.json"))
    (tmp_path / "r.json").write_text("[]")
    words = ("--results", tmp_path / "r.json", "--annotations", file)
    assert run(*words, "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert all(name in told for name in names)
    assert (tmp_path / "out" / "confusion.png").is_file()


def test_what_is_printed_may_fail_when_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Console, "print", fail)
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(OSError, match="No space"):
        run("--results", tmp_path / "r.json", "--data", SAMPLE, "--out", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*ARTEFACTS, "worst.png"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--checkpoint, or --results"),
        (("--checkpoint", "a.ckpt", "--results", "b.json"), "one of the two"),
        (("--checkpoint", "a.ckpt"), "--data, or --annotations"),
        (("--checkpoint", "a.ckpt", "--annotations", "b.json"), "--annotations has no images"),
        (("--checkpoint", "missing.ckpt", "--data", SAMPLE), "no checkpoint at missing.ckpt"),
        (("--results", "missing.json", "--data", SAMPLE), "missing.json: cannot be read"),
        (("--results", "r.json", "--data", SAMPLE, "--min-score", 2), "--min-score 2"),
        (("--results", "r.json", "--data", SAMPLE, "--worst", -1), "--worst -1"),
        (("--results", "r.json", "--data", SAMPLE, "--worst", 501), "--worst 501"),
        (("--results", "r.json", "--data", SAMPLE, "--split", "no"), "no split 'no'"),
        (("--results", "r.json", "--data", SAMPLE, "--image-size", 64), "--image-size is for"),
        (("--results", "r.json", "--data", SAMPLE, "--flip"), "--flip is for --checkpoint"),
        (("--results", "r.json", "--data", SAMPLE, "--score-thresh", 0.1), "--score-thresh is for"),
        (("--checkpoint", "a", "--data", SAMPLE, "--overlap", 0.5), "--overlap is for tiles"),
        (("--checkpoint", "a", "--data", SAMPLE, "--score-thresh", 2), "--score-thresh 2"),
        (("--results", "r.json", "--data", SAMPLE, "--max-detections", 5), "must be 10 to"),
        (("--results", "r.json", "--data", SAMPLE, "--batch-size", 1), "--batch-size is for"),
        (("--results", "r.json", "--data", SAMPLE, "--num-workers", 0), "--num-workers is for"),
        (("--results", "r.json", "--data", SAMPLE, "--accelerator", "cpu"), "--accelerator is for"),
        (
            ("--results", "r.json", "--data", SAMPLE, "--precision", "32-true"),
            "--precision is for --checkpoint",
        ),
        (("--results", "r.json", "--annotations", "t.json", "--split", "a"), "--split is for"),
        (("--results", "r.json", "--annotations", "t.json", "--worst", 1), "--worst is for images"),
        (("--results", "r.json", "--data", SAMPLE, "--images", "x"), "--images: needs --annot"),
        (
            ("--results", "r.json", "--annotations", __file__, "--images", "x"),
            "--images: x: no such folder",
        ),
        (
            ("--results", "r.json", "--annotations", "no.json", "--images", "."),
            "--annotations: no.json: no such file",
        ),
        (
            ("--results", "r.json", *TWO_FOLDERS, "--annotations", __file__),
            "--images: 2 folders for 3 files",
        ),
        (("--results", "r.json", "--data", SAMPLE, "--out", __file__), "--out: cannot make"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_by_name(
    words: Any, message: str, tmp_path: Path
) -> None:
    out = () if "--out" in words else ("--out", tmp_path / "out")
    with pytest.raises(InputError, match=message):
        run(*words, *out)


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    words = ["-m", "autotimm", "evaluate", "--results", "none.json", "--annotations", "none.json"]
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: none.json: cannot be read: No such file or directory"
    ]
    assert done.stdout == ""


def test_data_of_other_classes_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = mixed(tmp_path / "coco")
    for file in (folder / "annotations").glob("*.json"):
        file.write_text(file.read_text().replace('"star"', '"comet"'))
    with pytest.raises(InputError, match="do not have the same classes"):
        run("--checkpoint", checkpoint, "--data", folder, "--out", tmp_path / "out")


@pytest.mark.filterwarnings("ignore:.*not a whole number")
def test_data_of_the_same_classes_are_taken_by_name(checkpoint: Path, tmp_path: Path) -> None:
    """Text ids in another order: the same AP, and results with the data's own ids."""
    folder = mixed(tmp_path / "coco", (1, 1, 1))
    whole = (folder / "annotations/instances_val2017.json").read_text()
    words = ("--checkpoint", checkpoint, "--data", folder, "--num-workers", 0, "--worst", 0)
    assert run(*words, "--out", tmp_path / "plain") == 0
    content = json.loads(whole)
    texts = {one["id"]: f"{one['name']}!" for one in content["categories"]}
    content["categories"].reverse()
    for one in content["categories"]:
        one["id"] = texts[one["id"]]
    for one in content["annotations"]:
        one["category_id"] = texts[one["category_id"]]
    (folder / "annotations/instances_val2017.json").write_text(json.dumps(content))
    assert run(*words, "--out", tmp_path / "texts") == 0
    plain, other = (
        [
            json.loads((tmp_path / out / file).read_text())
            for file in ("results.json", "metrics.json")
        ]
        for out in ("plain", "texts")
    )
    assert [texts[one["category_id"]] for one in plain[0]] == [o["category_id"] for o in other[0]]
    assert plain[1]["box"]["AP"] == pytest.approx(other[1]["box"]["AP"], abs=1e-6)
    assert plain[1]["box"]["AP"] > 0.01


def test_classes_of_one_name_are_told_apart_by_their_ids() -> None:
    categories = [Category(0, "cat"), Category(3, "dog"), Category(7, "cat"), Category(9, "")]
    assert shown_names(categories) == ["cat (0)", "dog", "cat (7)", " (9)"]


def test_nothing_found_is_zero_for_masks_too(tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("[]")
    words = ("--results", tmp_path / "none.json", "--data", SAMPLE, "--out", tmp_path / "out")
    assert run(*words) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["box"]["AP"] == metrics["mask"]["AP"] == 0
