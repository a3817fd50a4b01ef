"""``autotimm predict``: its files, its flags, and what it does about what goes wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from pycocotools.coco import COCO
from servers import serve

from autotimm import visualize
from autotimm.checkpoints.convert import convert
from autotimm.cli import predict as verb
from autotimm.files.checksums import KEY
from autotimm.inference.predict import Options
from autotimm.inference.sources import pixels_of
from autotimm.structures import InputError


def run(*words: object) -> int:
    return verb.run(verb.parser().parse_args([str(word) for word in words]))


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
    assert re.search(
        r": 8 images, \d+ detections, [1-9]\d* of them with a score of at least 0\.1 "
        r"\(--draw-score\); 3 left out$",
        said.out,
        re.MULTILINE,
    )
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
            assert max(source.size) < 640
            assert picture.size == tuple(round(640 / max(source.size) * s) for s in source.size)
            plain = visualize.enlarged(np.asarray(source.convert("RGB")))
            assert np.any(np.asarray(picture) != plain)


def test_weights_of_before_are_used_with_a_word_about_their_checksum(
    photos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    new, old = convert(checkpoint, tmp_path / "new.safetensors"), tmp_path / "old.safetensors"
    with safetensors.safe_open(new, "pt") as file:
        metadata = dict(file.metadata())
    del metadata[KEY]  # as the version before wrote it
    safetensors.torch.save_file(safetensors.torch.load_file(new), old, metadata)
    photo = sorted(photos.iterdir())[0]
    found = []
    for path, said in ((new, 0), (old, 1)):
        out = tmp_path / path.stem
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert run(photo, "--checkpoint", path, "--out", out, "--format", "json") == 0
        words = [str(one.message) for one in caught if "has no checksum" in str(one.message)]
        assert len(words) == said and all(f"{path} has" in one for one in words)
        found.append((out / "results.json").read_bytes())
    assert found[0] == found[1]


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


@pytest.mark.slow
def test_min_score_is_of_what_is_found(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Also below what the model itself leaves out, which is by the class alone."""
    scores = {}
    for least in (0.01, 0.2, None):
        words = () if least is None else ("--min-score", least)
        words = (*words, "--format", "json")
        run(photos, "--checkpoint", checkpoint, "--out", tmp_path, *words)
        results = json.loads((tmp_path / "results.json").read_text())
        scores[least] = sorted(one["score"] for one in results)
    assert scores[0.2] == [score for score in scores[None] if score >= 0.2]
    assert 0 < len(scores[0.2]) < len(scores[None]) <= len(scores[0.01])
    assert scores[0.01][0] >= 0.01


def test_min_score_is_what_is_found_with_whatever_the_models_limit(
    photos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    found = {}
    for limit in (1e-4, 0.5):
        content = torch.load(checkpoint, weights_only=True)
        content["hyper_parameters"]["score_thresh"] = limit
        torch.save(content, tmp_path / "model.ckpt")
        words = ["--checkpoint", tmp_path / "model.ckpt", "--out", tmp_path, "--format", "json"]
        for least in (("--min-score", 0.2), ()):
            run(min(photos.iterdir()), *words, *least)
            found[limit, *least] = json.loads((tmp_path / "results.json").read_text())
    assert found[0.5, "--min-score", 0.2] == found[1e-4, "--min-score", 0.2]
    assert len(found[0.5,]) < len(found[0.5, "--min-score", 0.2]) < len(found[1e-4,])


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
    flags += ["--pixel-range", "0,4095"]
    for more in ([*flags, "--image-size", 64, 96, "--min-score", 0.3], ["--compile", "yes"]):
        with pytest.raises(InputError, match="none of the images"):
            run(*words, *more)
    chosen = {"batch_size": 9, "image_size": (64, 96), "tile": 256, "overlap": 0.4}
    chosen |= {"flip": True, "half": True, "min_score": 0.3, "pixel_range": (0, 4095)}
    assert seen == [Options(**chosen), False, Options(), True]


def test_own_pictures_are_not_looked_at_again(
    photos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "photos"
    mine.mkdir()
    for photo in sorted(photos.iterdir())[:2]:
        shutil.copy(photo, mine)
    out = mine / "found"
    for _ in range(2):
        assert run(mine, "--checkpoint", checkpoint, "--out", out) == 0
        images = json.loads((out / "images.json").read_text())["images"]
        assert len(images) == 2


def test_videos_beside_images_and_what_is_skipped(
    photos: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A frame's detections are those of an image of its pixels; the times are the file's."""
    av = pytest.importorskip("av")
    mine = tmp_path / "mine"
    mine.mkdir()
    first, second = (pixels_of(one)[:96, :128] for one in sorted(photos.iterdir())[:2])
    with av.open(str(mine / "clip.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for pixels in (first, second, first, second, first):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    shutil.copy(sorted(photos.iterdir())[0], mine / "photo")
    (mine / "notes.txt").write_text("hello")
    (mine / "bad.mp4").write_bytes((mine / "clip.mp4").read_bytes()[:900])
    out = mine / "found"
    for _ in range(2):
        words = [mine, "--checkpoint", checkpoint, "--out", out, "--draw-score", 0.1]
        assert run(*words, "--every", 2, "--batch-size", 2) == 1
        said = capsys.readouterr()
        assert "autotimm predict: skipped, as no images: 1 text\n" in said.err
        assert "bad.mp4: is a video that cannot be opened" in said.err
        assert f"{out}: left out in all: 1 of 3 images and videos\n" in said.out
        assert f"{out}: videos/clip.{{json,mp4}}: 3 frames, " in said.out
        assert ": 1 image, " in said.out
    told = json.loads((out / "videos" / "clip.json").read_text())
    assert [(one["frame"], one["time"]) for one in told["frames"]] == [(0, 0), (2, 0.2), (4, 0.4)]
    with av.open(str(mine / "clip.mp4")) as file:
        decoded = [one.to_ndarray(format="rgb24") for one in file.decode(video=0)][::2]
    for number, pixels in enumerate(decoded):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    alone = [tmp_path / f"{number}.png" for number in range(3)]
    words = ["--checkpoint", checkpoint, "--out", tmp_path / "alone", "--format", "json"]
    assert run(*alone, *words, "--batch-size", 2) == 0
    results = json.loads((tmp_path / "alone" / "results.json").read_text())
    for number, one in enumerate(told["frames"], 1):
        found = [{"image_id": number, **detection} for detection in one["detections"]]
        assert found == [result for result in results if result["image_id"] == number] != []
    with av.open(str(out / "videos" / "clip.mp4")) as file:
        assert [one.time for one in file.decode(video=0)] == pytest.approx([0, 0.2, 0.4])


def test_a_large_image_is_read_in_tiles_and_drawn_smaller(
    photos: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from autotimm.inference import bands, large, sources

    photo = max(photos.iterdir(), key=lambda one: pixels_of(one).size)
    height, width, _ = pixels_of(photo).shape
    Image.fromarray(pixels_of(photo)).save(tmp_path / "a.png")
    words = [tmp_path / "a.png", "--checkpoint", checkpoint, "--tile", 96, "--min-score", 0.2]
    assert run(*words, "--out", tmp_path / "plain", "--format", "json") == 0
    monkeypatch.setattr(large, "LARGEST", 1000)
    monkeypatch.setattr(sources, "LARGE", 1000)
    monkeypatch.setattr(large, "_LONGEST", 60)
    monkeypatch.setattr(bands, "_BAND", 4096)
    capsys.readouterr()
    assert run(*words, "--out", tmp_path / "parts", "--draw-score", 0.2) == 0
    assert "; 1 pictures drawn smaller than their images" in capsys.readouterr().out
    found, truth = (
        json.loads((tmp_path / folder / "results.json").read_text())
        for folder in ("parts", "plain")
    )
    assert found == truth != []
    factor = -(-max(height, width) // 60)
    with Image.open(tmp_path / "parts" / "pictures" / "a.png") as drawn:
        assert drawn.size == (width // factor, height // factor)


def test_names_too_long_for_a_picture_are_cut(checkpoint: Path, tmp_path: Path) -> None:
    names = ["\u00e9" * 125 + end for end in (".png", ".bmp")]
    for name in names:
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    words = [tmp_path / name for name in names]
    assert run(*words, "--checkpoint", checkpoint, "--out", tmp_path / "out") == 0
    drawn = sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir())
    assert drawn == ["\u00e9" * 100 + "-2.png", "\u00e9" * 100 + ".png"]


@pytest.mark.slow
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
    done = forked.run("-c", code, *words)
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
        (["--device", "tpu9"], "--device tpu9 is not available"),
        (["--device", "meta"], "--device meta is not available"),
        (["--overlap", 0.3], "--overlap is for tiles"),
        (["--every", 2], "--every is for videos: there is none"),
        (["--every", 0], "--every 0 must be 1 or more"),
        (["--format", "json", "--draw-score", 0.3], "--draw-score is for pictures"),
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
