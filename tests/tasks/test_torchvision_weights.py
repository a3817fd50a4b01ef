"""torchvision's detectors, converted, compute what torchvision computes with the same weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import (
    FCOS,
    MaskRCNN,
    fcos_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from autotimm import InputError, InstanceSegmentor, ObjectDetector, load
from autotimm.models.fcos import level_shapes, locations
from autotimm.tasks import torchvision_weights, transfer
from autotimm.tasks.checkpoint import model_of, read_checkpoint

COCO = 80
BEST = 200  # detections of an image
MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))


def stirred(model: nn.Module) -> Any:
    """The model with random statistics in all norms, and heads that find boxes of many sizes."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.3)
            nn.init.normal_(module.bias, 0, 0.2)
        elif isinstance(module, nn.Conv2d) and name.startswith("head."):
            module.weight.data.mul_(3)
            nn.init.normal_(module.bias, 0, 0.3)
    if isinstance(model, FCOS):
        nn.init.constant_(model.head.regression_head.bbox_reg.bias, 2.0)
        unused = [i for i in range(91) if i not in set(category_ids(model))]
        model.head.classification_head.cls_logits.bias.data[unused] = -30.0
    return model.eval()


def category_ids(model: nn.Module) -> list[int]:
    converted = torchvision_weights.as_checkpoint(model.state_dict(), "torchvision's")
    return [one["id"] for one in converted["categories"]]


def small_fcos() -> Any:
    torch.manual_seed(0)
    body = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return stirred(FCOS(body, 91, score_thresh=0.0, detections_per_img=BEST))


def assert_finds_the_same(theirs: Any, ours: ObjectDetector, image: Tensor) -> None:
    """Each of torchvision's boxes has one of ours, 0.01 px and 1e-4 of the score away.

    Both keep the best ones. At the lowest score a box may be kept by one of them alone.
    """
    theirs.transform.min_size, theirs.transform.max_size = (min(image.shape[1:]),), 10**6
    ids = torch.tensor([one["id"] for one in ours.categories or ()])
    with torch.no_grad():
        (wanted,) = theirs([image])
        (found,) = ours.detect(((image - MEAN[:, None, None]) / STD[:, None, None])[None])
    assert len(found["scores"]) == len(wanted["scores"]) == BEST
    sides = wanted["boxes"][:, 2:] - wanted["boxes"][:, :2]
    # Boxes without an area are none of ours, so we have others in their places.
    lowest = max(found["scores"].min(), wanted["scores"].min()) + 1e-4
    real = (sides > 0).all(-1) & (wanted["scores"] > lowest)
    assert real.sum() > BEST / 2
    same = wanted["labels"][real, None] == ids[found["labels"]]
    same &= (wanted["boxes"][real, None] - found["boxes"]).abs().amax(-1) < 0.01
    same &= (wanted["scores"][real, None] - found["scores"]).abs() < 1e-4
    assert (same.sum(1) == 1).all()
    assert same.sum() == (found["scores"] > lowest).sum()


def converted(theirs: nn.Module, path: Path) -> ObjectDetector:
    """Our model from torchvision's state dict as a file."""
    torch.save(theirs.state_dict(), path)
    return load(path, score_thresh=0.0, max_detections_per_image=BEST)


def test_fcos_finds_what_torchvisions_finds(tmp_path: Path) -> None:
    theirs = small_fcos()
    ours = converted(theirs, tmp_path / "fcos.pth")
    assert ours.settings.backbone == "resnet18"
    assert ours.settings.layout == "torchvision"
    assert len(ours.categories or ()) == COCO
    for size in ((96, 160), (128, 128)):  # P6 and P7 do not divide the first one
        assert_finds_the_same(theirs, ours, torch.rand(3, *size))


@pytest.mark.parametrize("size", [(96, 160), (256, 384), (800, 1088)])
def test_locations_are_the_centres_of_torchvisions_anchors(size: tuple[int, int]) -> None:
    """Also of P6 and P7, whose boxes are rarely the best, on sides that they do not divide."""
    shapes = level_shapes(*size)
    generator = AnchorGenerator(tuple((s,) for s in (8, 16, 32, 64, 128)), ((1.0,),) * 5)
    images = ImageList(torch.zeros(1, 3, *size), [size])
    (anchors,) = generator(images, [torch.zeros(1, 1, *shape) for shape in shapes])
    found = locations(shapes, torch.device("cpu"), half_stride=False)
    assert torch.equal(found.points, (anchors[:, :2] + anchors[:, 2:]) / 2)
    assert torch.equal(found.strides, anchors[:, 2] - anchors[:, 0])


@pytest.mark.slow
def test_fcos_resnet50_on_twenty_images(tmp_path: Path) -> None:
    torch.manual_seed(1)
    options = {"score_thresh": 0.0, "detections_per_img": BEST}
    theirs = stirred(fcos_resnet50_fpn(weights=None, weights_backbone=None, **options))
    ours = converted(theirs, tmp_path / "fcos.pth")
    for i in range(20):
        assert_finds_the_same(theirs, ours, torch.rand(3, 96 + 32 * (i % 4), 224 - 32 * (i % 3)))


def assert_has_the_same_masks(theirs: Any, content: dict[str, Any], whole: bool = True) -> None:
    """Backbone, pyramid and mask head give torchvision's levels and logits."""
    settings = content["hyper_parameters"]
    ours = InstanceSegmentor(**settings | {"pretrained": False, "compile_model": False}).eval()
    names = [one["name"] for one in content["categories"]]
    line = transfer.take(ours, content, "maskrcnn.pth", names)
    assert "starting anew: fpn.p6, fpn.p7, head" in line
    ids = [one["id"] for one in content["categories"]]
    with torch.no_grad():
        image = torch.randn(1, 3, 96, 128)
        wanted = list(theirs.backbone(image).values())[:4]
        found = ours.network.fpn(ours.network.backbone(image))[:4]
        for level, other in zip(found, wanted, strict=True):
            assert (level - other).abs().max() < 1e-4 * other.abs().max()
        features = torch.randn(5, 256, 14, 14)
        logits = theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(features))
        assert ours.network.mask_head is not None
        assert (ours.network.mask_head(features) - logits[:, ids]).abs().max() < 1e-5
        if whole:
            assert_pools_alike(theirs, ours, ids)


def assert_pools_alike(theirs: Any, ours: InstanceSegmentor, ids: list[int]) -> None:
    """From pixels to the probabilities inside torchvision's own boxes."""
    image = torch.rand(3, 192, 256)
    theirs.transform.min_size, theirs.transform.max_size = (192,), 10**6
    theirs.roi_heads.score_thresh = 0.0
    nn.init.normal_(theirs.roi_heads.box_predictor.cls_score.weight)  # boxes of many classes
    logits: list[Tensor] = []
    hook = theirs.roi_heads.mask_predictor.register_forward_hook(
        lambda *given: logits.append(given[-1])
    )
    (wanted,) = theirs([image])
    hook.remove()
    has_row = [i for i, label in enumerate(wanted["labels"].tolist()) if label in ids]
    boxes, labels = wanted["boxes"][has_row], wanted["labels"][has_row]
    sides = boxes[:, 2:] - boxes[:, :2]
    assert len(boxes) > 20 and sides.max() > 60
    rows = torch.tensor([ids.index(int(label)) for label in labels])
    detections = {"boxes": boxes, "labels": rows, "scores": wanted["scores"][has_row]}
    normal = ((image - MEAN[:, None, None]) / STD[:, None, None])[None]
    with mock.patch("autotimm.models.network.decode", lambda *_: [detections]):
        (found,) = ours.network.detect(normal)
    expected = logits[0].sigmoid()[has_row, labels]
    assert expected.std() > 0.05
    assert (found["masks"] - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_masks_are_torchvisions() -> None:
    torch.manual_seed(0)
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d)
    theirs = stirred(MaskRCNN(body, 91))
    state = theirs.state_dict()
    assert_has_the_same_masks(theirs, torchvision_weights.as_checkpoint(state, "x"))
    # The published file has the names of before, and norms without an epsilon.
    old = {re.sub(r"(_blocks\.\d)\.0\.", r"\1.", key): value for key, value in state.items()}
    for i in range(4):
        for kind in ("weight", "bias"):
            key = f"roi_heads.mask_head.mask_fcn{i + 1}.{kind}"
            old[key] = old.pop(f"roi_heads.mask_head.{i}.0.{kind}")
    for module in theirs.backbone.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
            module.running_var[:3] = 1e-6  # where the epsilon matters
    # Such norms make features of a size with which the box head finds one class alone.
    assert_has_the_same_masks(theirs, torchvision_weights.as_checkpoint(old, "x"), whole=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [maskrcnn_resnet50_fpn, pytest.param(maskrcnn_resnet50_fpn_v2, marks=pytest.mark.release)],
)
def test_mask_rcnn_resnet50(make: Any) -> None:
    torch.manual_seed(2)
    theirs = stirred(make(weights=None, weights_backbone=None))
    assert_has_the_same_masks(theirs, torchvision_weights.as_checkpoint(theirs.state_dict(), "x"))


def test_mask_rcnn_is_no_model_to_predict_with(tmp_path: Path) -> None:
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d)
    torch.save(MaskRCNN(body, 91).state_dict(), tmp_path / "mask.pth")
    with pytest.raises(InputError, match=r"mask.pth has no FCOS head.*--weights") as error:
        load(tmp_path / "mask.pth")
    assert len(str(error.value)) < 300


def test_other_numbers_of_classes_have_no_names(tmp_path: Path) -> None:
    state = small_fcos().state_dict()
    for kind in ("weight", "bias"):
        key = f"head.classification_head.cls_logits.{kind}"
        state[key] = state[key][:7].clone()
    torch.save(state, tmp_path / "own.pth")
    content = read_checkpoint(tmp_path / "own.pth")
    assert content["categories"] is None
    assert content["hyper_parameters"]["num_classes"] == 7
    assert model_of(ObjectDetector, content, "own.pth", None, True, {}).settings.num_classes == 7


def test_bad_files_and_names_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"torchvision/ssd300_vgg16 is not one of torchvision's"):
        read_checkpoint("torchvision/ssd300_vgg16")

    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    for name in torchvision_weights.NAMES:
        with pytest.raises(InputError, match=r"no route to host.*https://download.*\.pth") as error:
            read_checkpoint(f"torchvision/{name}")
        assert "\n" not in str(error.value)
    torch.save({"backbone.body.conv1.weight": torch.ones(3)}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"odd.pth cannot be read as weights of a detector"):
        read_checkpoint(tmp_path / "odd.pth")


def test_published_weights_are_read_without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def fetched(url: str, **options: Any) -> Any:
        given.update(options, url=url)
        return small_fcos().state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetched)
    content = read_checkpoint("torchvision/fcos_resnet50_fpn")
    assert given["weights_only"] and given["check_hash"]
    assert given["url"].startswith("https://download.pytorch.org/models/fcos_resnet50_fpn_coco")
    assert len(content["categories"]) == COCO
