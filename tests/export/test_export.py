"""What is exported finds what the model finds: as a graph, in onnxruntime, as a program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import trained
from torchvision.ops import batched_nms

import autotimm
from autotimm.cli import export
from autotimm.export import write
from autotimm.export.card import card
from autotimm.export.graph import Graph, survivors
from autotimm.redaction import redacted
from autotimm.structures import InputError


def run(*words: object) -> int:
    return export.run(export.parser().parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> autotimm.ObjectDetector:
    return autotimm.load(checkpoint)


def images(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height + width)
    noise = torch.rand(count, 3, height // 8, width // 8, generator=generator) * 255
    return torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")


def found_by(model: Any, image: torch.Tensor) -> list[Any]:
    wanted = model.preprocessing
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (wanted.mean, wanted.std))
    return model.predict((image / 255 - mean) / std)


def assert_same(outputs: list[np.ndarray], expected: list[Any], masks_differ: float) -> None:
    """Padded outputs against detections of each image, of which those of one score to 1e-5 may
    stand in any order."""
    boxes, labels, scores, masks = outputs
    assert sum(len(one["scores"]) for one in expected) > 0
    for i, one in enumerate(expected):
        count = len(one["scores"])
        np.testing.assert_allclose(scores[i, :count], one["scores"], atol=1e-4)
        same = np.cumsum(np.diff(one["scores"].numpy(), prepend=np.inf) < -1e-5)
        ours = np.lexsort((boxes[i, :count, 0], labels[i, :count], same))
        theirs = np.lexsort((one["boxes"][:, 0].numpy(), one["labels"].numpy(), same))
        assert (labels[i, ours] == one["labels"].numpy()[theirs]).all()
        np.testing.assert_allclose(boxes[i, ours], one["boxes"].numpy()[theirs], atol=1e-2)
        assert masks.shape[2:] == one["masks"].shape[1:]
        differ = masks[i, ours] != one["masks"].numpy()[theirs]
        assert differ.sum() <= masks_differ * differ.size
        assert (labels[i, count:] == -1).all()
        assert not scores[i, count:].any()
        assert not masks[i, count:].any()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(128, 128), (96, 224), (160, 64)])
def test_the_graph_finds_what_predict_finds(model: Any, size: tuple[int, int]) -> None:
    options = model.hparams
    image = images(3, *size)
    expected = found_by(model, image)
    low, high = torch.cat([one["scores"] for one in expected]).sort().values[-6:-4].tolist()
    middle = (low + high) / 2
    for least in (0.0, middle):
        graph = Graph(
            model.network, model.preprocessing, 0.02, options.nms_thresh, 100, least
        ).eval()
        with torch.no_grad():
            outputs = [part.numpy() for part in graph(image)]
        assert outputs[3].dtype == np.uint8
        good = [{k: v[one["scores"] >= least] for k, v in one.items()} for one in expected]
        assert_same(outputs, good, 1e-5)


@pytest.fixture(scope="module")
def as_torchvision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentor of torchvision's layout, whose masks depend on where RoIs are pooled."""
    folder = tmp_path_factory.mktemp("torchvision")
    options = {"layout": "torchvision", "score_thresh": 0.005, "mask_rois": 8}
    path = trained(autotimm.InstanceSegmentor, folder, 2, **options)
    content = torch.load(path, weights_only=True)
    masks = content["state_dict"]["network.mask_head.masks.weight"]
    torch.nn.init.normal_(masks, generator=torch.Generator().manual_seed(0))
    torch.save(content, folder / "model.ckpt")
    return folder / "model.ckpt"


@pytest.mark.slow
def test_the_graph_of_torchvisions_layout(as_torchvision: Path) -> None:
    model = autotimm.load(as_torchvision)
    image = images(2, 96, 160)  # which P6 and P7 do not divide
    options, network = model.settings, model.network
    assert not network.half_stride and not network.aligned
    given = (network, model.preprocessing, options.score_thresh, options.nms_thresh, 100)
    with torch.no_grad():
        outputs = [part.numpy() for part in Graph(*given, 0.0, False, False).eval()(image)]
    assert_same(outputs, found_by(model, image), 1e-4)
    with torch.no_grad():  # the masks of the other way to pool are others
        aligned = Graph(*given, 0.0, False, True).eval()(image)[3].numpy()
    assert (aligned != outputs[3]).mean() > 1e-4


@pytest.mark.release
@pytest.mark.parametrize(
    ("flags", "size"), [(["--image-size", 96, 160], (96, 160)), (["--dynamic"], (256, 384))]
)
def test_onnx_of_torchvisions_layout(
    flags: list[Any], size: tuple[int, int], as_torchvision: Path, tmp_path: Path
) -> None:
    import onnxruntime

    model, out = autotimm.load(as_torchvision), tmp_path / "model.onnx"
    assert run("--checkpoint", as_torchvision, "--out", out, *flags) == 0
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    image = images(2, *size)
    outputs = session.run(None, {"image": image.numpy()})
    assert_same(outputs, found_by(model, image), 1e-4)


@pytest.mark.slow
def test_boxes_without_extent_and_scores_that_are_no_number_are_left_out(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``models.decode`` has it."""

    class Broken(torch.nn.Module):
        finest, mask_head = model.network.finest, None

        def forward(self, image: torch.Tensor) -> Any:
            outputs = model.network(image)
            head = outputs.head
            nothing = torch.full_like(head.distances, 0.0)
            half = torch.arange(head.centerness.shape[1]) % 2 == 0
            nan = torch.where(half, torch.nan, head.centerness)
            head = head._replace(distances=nothing) if broken == "extent" else head
            head = head._replace(centerness=nan) if broken == "number" else head
            return outputs._replace(head=head)

    graph = Graph(Broken(), model.preprocessing, 0.02, 0.5, 1500).eval()  # type: ignore[arg-type]
    counts = {}
    for broken in ("nothing", "extent", "number"):
        with torch.no_grad():
            _, labels, scores = graph(images(1, 128, 128))
        assert scores.isfinite().all()
        counts[broken] = int((labels >= 0).sum())
    assert counts["extent"] == 0
    assert 0 < counts["number"] < counts["nothing"]


def test_min_score_is_what_is_found_with_whatever_the_models_limit(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's limit is of the class alone, a score the root of it and the centre's."""
    monkeypatch.setattr(torch.export, "export", lambda graph, *_, **__: graph)
    image, least, found = images(1, 128, 128), 0.2, {}
    for limit in (1e-4, 0.5):
        monkeypatch.setitem(model.hparams, "score_thresh", limit)
        graph: Any = write.program(model, (128, 128), min_score=least)
        with torch.no_grad():
            _, labels, scores, _ = graph(image)
            plain: Any = write.program(model, (128, 128))(image)
        found[limit] = labels.tolist(), scores.tolist()
        assert (scores[labels >= 0] >= least).all()
    assert found[0.5] == found[1e-4]
    assert (plain[1] >= 0).sum() < (labels >= 0).sum(), "the limit of 0.5 alone leaves out some"


def test_the_flags_and_the_models_settings_reach_the_graph(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"] |= {"nms_thresh": 0.3, "score_thresh": 0.01}
    torch.save(content, tmp_path / "model.ckpt")
    made: list[Any] = []

    def export(graph: Graph, example: Any, **_: Any) -> Any:
        made.append((graph, tuple(example[0].shape[2:])))

    monkeypatch.setattr(torch.export, "export", export)
    monkeypatch.setattr(write, "to_program", lambda *_: None)
    words = ("--checkpoint", tmp_path / "model.ckpt", "--out", tmp_path / "a.pt2")
    flags = ("--min-score", 0.2, "--max-detections", 7, "--image-size", 64, 96)
    for given in ((), flags):
        assert run(*words, *given) == 0
    assert [
        (one.score_thresh, one.nms_thresh, one.max_detections, one.min_score, size)
        for one, size in made
    ] == [(0.01, 0.3, 100, 0.0, (128, 128)), (0.01, 0.3, 7, 0.2, (64, 96))]


def test_nothing_found_is_padding_alone(model: Any) -> None:
    graph = Graph(model.network, model.preprocessing, 0.999, 0.5, 7).eval()
    with torch.no_grad():
        boxes, labels, scores, masks = graph(images(2, 64, 96))
    assert boxes.shape == (2, 7, 4)
    assert (labels == -1).all()
    assert not boxes.any()
    assert not scores.any()
    assert not masks.any()


@pytest.mark.parametrize(("count", "side"), [(2000, 400), (2000, 100), (500, 40), (1, 10)])
def test_survivors_are_those_of_torchvision(count: int, side: int) -> None:
    generator = torch.Generator().manual_seed(count + side)
    low = torch.rand(2, count, 2, generator=generator) * side
    boxes = torch.cat([low, low + torch.rand(2, count, 2, generator=generator) * 60 + 4], -1)
    labels = torch.randint(0, 3, (2, count), generator=generator)
    scores = torch.rand(2, count, generator=generator).sort(-1, descending=True).values
    scores[:, count * 9 // 10 :] = -1
    kept = survivors(boxes, labels, scores, 0.5)
    for i in range(2):
        real = scores[i] >= 0
        expected = torch.zeros(count, dtype=torch.bool)
        expected[batched_nms(boxes[i][real], scores[i][real], labels[i][real], 0.5)] = True
        torch.testing.assert_close(kept[i], expected)


# ---------------------------------------------------------------- files


@pytest.mark.slow
def test_onnx_of_any_size_and_batch(checkpoint: Path, model: Any, tmp_path: Path) -> None:
    import onnxruntime

    out = tmp_path / "model.onnx"
    assert run("--checkpoint", checkpoint, "--out", out, "--dynamic") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for count, height, width in ((1, 256, 256), (2, 256, 384), (1, 384, 256)):
        image = images(count, height, width)
        outputs = session.run(None, {"image": image.numpy()})
        assert_same(outputs, found_by(model, image), 1e-4)
    blank = np.zeros((1, 3, 256, 256), np.float32)
    assert [part.shape for part in session.run(None, {"image": blank})][3] == (1, 100, 256, 256)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["fill"]) == [124, 116, 104]  # ImageNet's mean
    assert json.loads(facts["interpolation"]) == "bilinear"
    assert json.loads(facts["names"]) == ["disc", "square", "triangle", "star"]
    assert json.loads(facts["category_ids"]) == [1, 3, 7, 18]


@pytest.mark.slow
def test_a_program_of_one_size(checkpoint: Path, model: Any, tmp_path: Path) -> None:
    out = tmp_path / "model.pt2"
    words = ("--checkpoint", checkpoint, "--out", out, "--image-size", 96, 160)
    assert run(*words, "--max-detections", 20) == 0
    code = """
        import sys, torch, torchvision
        program = torch.export.load(sys.argv[1]).module()
        image, out = torch.load(sys.argv[2]), program(torch.load(sys.argv[2]))
        torch.save([part for part in out], sys.argv[2])
        assert "autotimm" not in sys.modules
    """
    image = images(1, 96, 160)
    torch.save(image, tmp_path / "tensors.pt")
    words = [sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines())]
    subprocess.run([*words, out, tmp_path / "tensors.pt"], check=True, cwd=tmp_path)
    outputs = [part.numpy() for part in torch.load(tmp_path / "tensors.pt")]
    assert outputs[0].shape == (1, 20, 4)
    expected = [{k: v[:20] for k, v in one.items()} for one in found_by(model, image)]
    assert_same(outputs, expected, 1e-5)


@pytest.mark.release
def test_boxes_alone_in_onnx(boxes_only: Path, tmp_path: Path) -> None:
    import onnxruntime

    out = tmp_path / "model.onnx"
    words = ("--checkpoint", boxes_only, "--out", out, "--max-detections", 30)
    assert run(*words, "--min-score", 0) == 0
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["boxes", "labels", "scores"]
    image = images(2, 128, 128)  # the size it was trained at
    boxes, labels, scores = session.run(None, {"image": image.numpy()})
    model = autotimm.load(boxes_only, score_thresh=0.0, max_detections_per_image=30)
    for i, one in enumerate(found_by(model, image)):
        count = len(one["scores"])
        assert count > 10
        assert (labels[i] >= 0).sum() == count
        np.testing.assert_allclose(scores[i, :count], one["scores"], atol=1e-4)
        np.testing.assert_allclose(boxes[i, :count], one["boxes"], atol=1e-2)


def test_weights_with_a_card(checkpoint: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({"mask": {"AP": 0.321, "AP50": 0.5, "AP_small": -1}}))
    out = tmp_path / "model.safetensors"
    assert run("--checkpoint", checkpoint, "--out", out, "--metrics", metrics) == 0
    loaded, source = autotimm.load(out), autotimm.load(checkpoint)
    for name, value in source.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)
    assert loaded.preprocessing == source.preprocessing
    text = (tmp_path / "model.md").read_text()
    for line in (
        "# InstanceSegmentor, resnet10t",
        '    model = autotimm.load("model.safetensors")',
        "| 3 | 18 | star |",
        "- 20 optimizer steps",
        "| mask | 32.1 | 50.0 | - | - | - | - |",
        "- RGB, letterbox to 128 x 128 pixels (height x width), bilinear",
    ):
        assert line in text.splitlines()
    assert "Trained from random weights" in text


def test_the_card_tells_where_data_and_weights_come_from(model: Any) -> None:
    record = {
        "settings": {"data": {"data_dir": "https://user:word@host/shards?X-Amz-Signature=1"}},
        "metrics": {"val/mask_mAP": 0.25, "train/loss": 1.0},
        "versions": {"torch": "2.9", "python": "3.11"},
    }
    text = redacted(card("a.safetensors", model, record, pretrained=True))
    assert "word" not in text.replace("keywords", "")
    assert "Signature=1" not in text
    assert "host/shards" in text
    assert "- val/mask_mAP: 0.25" in text
    assert "train/loss" not in text
    assert "resnet10t" in text
    assert "apache-2.0" in text.lower()
    file = card("a.safetensors", model, {}, pretrained="backbone.safetensors")
    assert "weights from a file (backbone.safetensors)" in file
    assert "data: not known" in file
    assert "Not measured" in file


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "a.bin"], r"--out a.bin: the suffix"),
        (["--out", "a.onnx", "--metrics", "m.json"], "--metrics is for"),
        (["--out", "a.safetensors", "--dynamic"], "--dynamic is for .onnx"),
        (["--out", "a.safetensors", "--min-score", 0], "--min-score is for .onnx"),
        (["--out", "a.onnx", "--dynamic", "--image-size", 64], "has no effect with --dynamic"),
        (["--out", "a.onnx", "--image-size", 100], "multiples of 32"),
        (["--out", "a.onnx", "--image-size", 1, 2, 3], "one side, or height and width"),
        (["--out", "a.pt2", "--min-score", 3], "--min-score 3"),
        (["--out", "a.pt2", "--max-detections", 0], "--max-detections 0"),
        (["--out", "a.safetensors", "--min-score", 0], "--min-score is for .onnx"),
        (["--out", "a.safetensors", "--metrics", "none.json"], "none.json cannot be read"),
        (["--out", "folder.onnx"], "--out folder.onnx is a folder"),
        (["--out", "other.safetensors"], "other.md exists and is no model card"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    words: list[Any],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "other.md").write_text("of the user's own")
    with pytest.raises(InputError, match=message):
        run("--checkpoint", checkpoint, *words)


def test_a_card_takes_no_other_figures_than_those_of_evaluate(
    checkpoint: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"mask": 0.3}')
    with pytest.raises(InputError, match=r"other.json is no metrics.json of autotimm evaluate"):
        run("--checkpoint", checkpoint, "--out", tmp_path / "a.safetensors", "--metrics", other)
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]


def test_without_onnx_it_says_what_to_install(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = write.importlib.util.find_spec
    hidden = lambda name, *rest: None if name == "onnxscript" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(write.importlib.util, "find_spec", hidden)
    with pytest.raises(
        InputError, match=r"needs onnxscript: pip install onnx onnxscript onnxruntime"
    ):
        run("--checkpoint", checkpoint, "--out", tmp_path / "a.onnx")
