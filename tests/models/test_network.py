"""The whole network: gradients of all parameters, precision, empty batches, two ranks equal one."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from batches import random_batch
from ranks import on_ranks
from torch.nn import GroupNorm
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import roi_align

from autotimm.models.fcos import FCOSHead
from autotimm.models.losses import LossSums
from autotimm.models.mask_head import RoIs, mask_targets
from autotimm.models.network import Network
from autotimm.structures import InputError
from autotimm.tasks.detector import mean_over_ranks

CLASSES = 3


def small_network(masks: bool = True, rois: int = 16, mask_loss: str = "bce", **options) -> Network:
    torch.manual_seed(0)
    network = Network(
        "resnet10t",
        CLASSES,
        pretrained=False,
        fpn_channels=32,
        head_convs=1,
        with_masks=masks,
        **options,
    )
    if masks:
        network.add_masks(12, rois, mask_loss)
    return network


def total(sums: LossSums) -> torch.Tensor:
    return torch.stack(
        list(sums.normalised(mean_over_ranks(sums.counts().detach())).values())
    ).sum()


def test_every_parameter_learns() -> None:
    network = small_network()
    total(network(**random_batch([3, 5, 0]))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # At first, residual branches end in norms with zero weights, so their gradients are zero.
        if not name.startswith("backbone.model.layer"):
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("masks", [True, False])
def test_a_batch_without_instances_gives_every_parameter_a_gradient(masks: bool) -> None:
    """Otherwise DDP would wait forever for the mask head's gradients on a rank without objects."""
    network = small_network(masks)
    sums = network(**random_batch([0, 0]))
    assert sums.positives == 0
    assert sums.boxes == sums.centerness == sums.masks == 0
    total(sums).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert network.head.classes.weight.grad.abs().sum() > 0  # from background locations
    if masks:
        assert all((p.grad == 0).all() for p in network.mask_head.parameters())


@pytest.mark.parametrize(
    "precision", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]
)
def test_losses_are_float32_under_autocast(precision: torch.dtype) -> None:
    network = small_network()
    batch = random_batch([4, 2])
    with torch.autocast("cpu", precision):
        low = network(**batch)
        outputs = network(batch["image"])
        assert outputs.head.classes.dtype == outputs.levels[0].dtype == precision
    assert all(value.dtype == torch.float32 for value in low)
    assert all(torch.isfinite(value) for value in low)


def test_the_mask_branch_learns_from_predicted_boxes_too() -> None:
    """Initially all locations predict distances of 4 strides: on P3 the size of this object."""
    network = small_network()
    batch = random_batch([1], 128, 128)
    batch["boxes"][0, 0] = torch.tensor([30.0, 30.0, 94.0, 94.0])
    sums = network(**batch)
    assert 4 < sums.rois <= sums.positives + 1
    with torch.no_grad():
        network.head.distances.bias.fill_(0.5)  # no predicted box comes near it
    sums = network(**batch)
    assert sums.positives > 4
    assert sums.rois == 1


@pytest.mark.parametrize("count", [230, 500])
def test_any_number_of_instances(count: int) -> None:
    """More instances than RoIs, of one pixel, of the whole image and partly outside of it too."""
    network = small_network()
    batch = random_batch([count, 0, 3], slots=512)
    batch["boxes"][0, 0] = torch.tensor([0.0, 0.0, 160.0, 128.0])
    batch["boxes"][0, 1] = torch.tensor([77.0, 33.0, 78.0, 34.0])
    batch["boxes"][0, 2] = torch.tensor([-30.0, -20.0, 60.0, 50.0])
    batch["boxes"][0, 3] = torch.tensor([150.0, 100.0, 190.0, 150.0])
    sums = network(**batch)
    assert sums.positives > 20
    assert sums.rois == 3 * 16, "the crowded image takes the places that the others leave"
    assert all(torch.isfinite(value) for value in sums)
    total(sums).backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


def test_settings_of_the_losses_change_their_own_loss_alone() -> None:
    batch = random_batch([3, 5])

    def sums(quality: str = "centerness", masks: str = "bce") -> LossSums:
        network = small_network(box_quality=quality, mask_loss=masks)
        torch.manual_seed(0)  # RoIs are sampled at random
        return network(**batch)

    usual = sums()
    of_boxes = {"centerness", "boxes", "box_weights"}
    for names, other in ((of_boxes, sums("iou")), ({"masks"}, sums(masks="bce+dice"))):
        differ = {k for k, v in usual._asdict().items() if v != getattr(other, k)}
        assert differ == names
    for name, wrong in (("box_quality", "IoU"), ("mask_loss", "dice")):
        with pytest.raises(InputError, match=f"{name}='{wrong}' is unknown: take .* or "):
            small_network(**{name: wrong})


def test_small_masks_are_cut_from_the_backbones_finest_map() -> None:
    """P2 is the lateral connection of the map at stride 4 plus P3 before its convolution."""
    network = small_network().eval()
    merged: list[torch.Tensor] = []
    network.fpn.output[0].register_forward_pre_hook(lambda _, given: merged.append(given[0]))
    image = random_batch([1])["image"]
    with torch.no_grad():
        maps = network.backbone(image)
        levels = network(image).levels
        assert [tuple(m.shape[2:]) for m in levels[:2]] == [(32, 40), (16, 20)]
        added = torch.nn.functional.conv2d(maps[0], network.fpn.fine.weight, network.fpn.fine.bias)
        above = merged[-1].repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(levels[0], added + above)
    assert network.finest == 2
    assert network(image).head.classes.shape == small_network(masks=False)(image).head.classes.shape
    for network in (small_network(masks=False), vit_network()):
        assert network.finest == 3
        assert network(image).levels[0].shape[2:] == (16, 20)
    with pytest.raises(ValueError, match="with_masks"):
        small_network(masks=False).add_masks()


def vit_network() -> Network:
    network = Network(
        "test_vit", 3, pretrained=False, fpn_channels=32, head_convs=1, with_masks=True
    )
    network.add_masks(12, 4)
    return network


def test_masks_of_many_detections_are_computed_in_chunks(monkeypatch) -> None:
    network = small_network().eval()
    image = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    (whole,) = network.detect(image, score_thresh=0.0, max_detections=50)
    asked = []
    forward = network.mask_head.forward
    monkeypatch.setattr(
        network.mask_head,
        "forward",
        lambda features, labels: asked.append(len(labels)) or forward(features, labels),
    )
    monkeypatch.setattr("autotimm.models.network.MASKS_AT_ONCE", 20)
    (parts,) = network.detect(image, score_thresh=0.0, max_detections=50)
    assert asked == [20, 20, 10]
    torch.testing.assert_close(parts["masks"], whole["masks"])


def large_logits(network: Network) -> Network:
    """At first the mask logits are nearly zero, whatever the features say."""
    torch.nn.init.normal_(network.mask_head.masks.weight)
    return network.eval()


def pooled(levels: list[torch.Tensor], box: torch.Tensor) -> tuple[torch.Tensor, int]:
    """RoIAlign of one box of the first image as torchvision does it, and n of its map P<n>."""
    side = (box[2:] - box[:2]).prod().sqrt()
    n = 2 + int(side >= 112) + int(side >= 224)
    return roi_align(levels[n - 2], [box[None]], 6, 1 / 2**n, 2, aligned=True), n


@torch.no_grad()
def test_masks_are_trained_on_the_map_of_the_objects_size() -> None:
    network = large_logits(small_network())
    network.head.distances.bias.fill_(0.5)  # no predicted box comes near an object
    batch = random_batch([3], 256, 256)
    boxes = torch.tensor([[10.0, 8.0, 10.0 + side, 8.0 + side] for side in (40, 150, 230)])
    batch["boxes"][0, :3], labels = boxes, batch["labels"][0, :3]
    levels = network(batch["image"]).levels
    features, maps = zip(*(pooled(levels, box) for box in boxes), strict=True)
    assert maps == (2, 3, 4)
    rois = RoIs(boxes, torch.zeros(3).long(), torch.arange(3), torch.ones(3).bool())
    logits = network.mask_head(torch.cat(features), labels)
    target = mask_targets(batch["masks"], batch["boxes"], rois, 12)
    expected = binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2))
    sums = network(**batch)
    assert sums.rois == 3
    torch.testing.assert_close(sums.masks, expected.sum())


@torch.no_grad()
def test_masks_are_predicted_from_the_map_of_the_objects_size() -> None:
    network = large_logits(small_network())
    image = random_batch([1], 256, 256)["image"]
    levels = network(image).levels
    (found,) = network.detect(image, score_thresh=0.0, max_detections=40)
    used = set()
    for box, label, mask in zip(found["boxes"], found["labels"], found["masks"], strict=True):
        features, n = pooled(levels, box)
        expected = network.mask_head(features, label[None])[0].sigmoid()
        torch.testing.assert_close(mask, expected, rtol=1e-4, atol=1e-4)
        used.add(n)
    assert used >= {2, 3}


@torch.no_grad()
def test_masks_are_those_of_their_own_image(monkeypatch: pytest.MonkeyPatch) -> None:
    network = large_logits(small_network())
    images = torch.randn(3, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    alone = [network.detect(one[None], 0.0, max_detections=10)[0] for one in images]
    monkeypatch.setattr("autotimm.models.network.MASKS_AT_ONCE", 20)  # of two images
    together = network.detect(images, 0.0, max_detections=10)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(one["masks"], other["masks"], rtol=1e-3, atol=1e-3)


def test_the_distances_of_each_level_have_a_scale_of_their_own() -> None:
    network = small_network()
    network.eval()
    image = random_batch([1])["image"]
    before = network(image).head.distances
    with torch.no_grad():
        network.head.scales[1] *= 3
    after = network(image).head.distances
    p3, p4 = 16 * 20, 8 * 10
    assert torch.equal(before[:, :p3], after[:, :p3])
    torch.testing.assert_close(before[:, p3 : p3 + p4] * 3, after[:, p3 : p3 + p4])
    assert torch.equal(before[:, p3 + p4 :], after[:, p3 + p4 :])
    assert (before >= 0).all()
    assert (before > 0).any()


def test_detections_and_their_masks() -> None:
    network = small_network().eval()
    found = network.detect(torch.randn(2, 3, 128, 160), score_thresh=0.0, max_detections=30)
    assert len(found) == 2
    for detections in found:
        count = len(detections["scores"])
        assert 0 < count <= 30
        assert detections["boxes"].shape == (count, 4)
        assert detections["masks"].shape == (count, 12, 12)
        assert ((detections["masks"] >= 0) & (detections["masks"] <= 1)).all()
        assert (detections["scores"].diff() <= 0).all()


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (96, 12), (64, 8), (32, 4), (7, 1)])
def test_norms_of_the_towers_have_fcos_group_size(channels: int, groups: int) -> None:
    (norm,) = (m for m in FCOSHead(channels, 3, 1).class_tower if isinstance(m, GroupNorm))
    assert norm.num_groups == groups


def test_a_frozen_backbone_stays_as_it_is() -> None:
    network = small_network(freeze_backbone=True)
    before = copy.deepcopy(network.backbone.state_dict())
    network.train()
    total(network(**random_batch([3, 5]))).backward()
    assert all(p.grad is None for p in network.backbone.parameters())
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_an_image_that_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="100 x 160"):
        small_network().detect(torch.zeros(1, 3, 100, 160))


ROIS = 64  # per image


class Loss(torch.nn.Module):
    """DDP hooks into forward."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return total(self.network(**batch))


def frozen_norms(network: Network) -> Network:
    """Fixes the statistics of batch norms, which otherwise differ from rank to rank."""
    return network.eval()


def joined_batch() -> dict[str, torch.Tensor]:
    return random_batch([1, 6, 0, 0], 64, 96)


def gradients_of_a_rank(folder: str) -> None:
    dist.init_process_group("gloo")
    rank, batch = dist.get_rank(), joined_batch()
    model = DistributedDataParallel(Loss(frozen_norms(small_network(rois=ROIS))))
    half = {key: value[2 * rank : 2 * rank + 2] for key, value in batch.items()}
    loss = model(half)
    loss.backward()
    dist.all_reduce(loss)
    gradients = {n: p.grad for n, p in model.module.network.named_parameters()}
    torch.save((loss.detach() / 2, gradients), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_give_the_gradients_of_one_on_the_joined_batch(tmp_path) -> None:
    """The second rank has no instances, so dividing by its own counts would be wrong."""
    code = f"import test_network; test_network.gradients_of_a_rank({str(tmp_path)!r})"
    done = on_ranks(code, tmp_path)
    assert done.returncode == 0, done.stderr
    network = frozen_norms(small_network(rois=ROIS))
    sums = network(**joined_batch())
    assert sums.rois < ROIS, "one process and two both sample all candidates"
    loss = total(sums)
    loss.backward()
    for rank in range(2):
        got, gradients = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(got, loss.detach())
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
