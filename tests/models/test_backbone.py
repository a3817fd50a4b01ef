"""Backbones of many families, their weights, and the errors for those that cannot be loaded."""

from __future__ import annotations

import copy
import logging
import re
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from batches import random_batch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.modules.batchnorm import _BatchNorm

import autotimm.models.backbone as module
from autotimm.models.backbone import Backbone
from autotimm.models.features import _GOOD, features
from autotimm.models.network import Network
from autotimm.structures import InputError, Preprocessing

KINDS = [
    "resnet10t",  # batch norm, maps at strides 4 to 32
    "test_convnext",  # timm's extractor renames its parts
    "test_vit",  # a plain transformer: one map
    "test_maxvit",  # windows whose size is a share of the image's
    "test_mambaout",  # channels last
    "shvit_s1",  # maps at strides 16, 32 and 64
    pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow),  # shifted windows
]
FAMILIES = [
    "convnext_atto",
    "regnetx_002",
    "efficientnet_b0",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "vgg11_bn",
    "vit_tiny_patch16_224",
    "maxvit_rmlp_pico_rw_256",
    "resnext26ts",
    "swin_s3_tiny_224",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224",
    "vit_small_patch16_dinov3",
    "vit_small_patch14_dinov2",
    "vit_small_patch32_224",
    "deit3_small_patch16_224",
    "eva02_tiny_patch14_224",
    "hrnet_w18_small",
    "dla46_c",
    "fastvit_t8",
    "densenet121",
    "xcit_nano_12_p8_224",
    "pvt_v2_b0",
    "mambaout_femto",
    "nfnet_l0",
]
TABLE = [*KINDS, *(pytest.param(name, marks=pytest.mark.release) for name in FAMILIES)]


def small(name: str, **options) -> Network:
    torch.manual_seed(0)
    network = Network(
        name, 3, pretrained=False, fpn_channels=32, head_convs=1, with_masks=True, **options
    )
    network.add_masks(12, 8)
    return network


@pytest.mark.parametrize("name", TABLE)
def test_a_backbone_builds_trains_a_step_and_predicts(name: str) -> None:
    network = small(name)
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=1e-3)
    before = {n: p.detach().clone() for n, p in trained.items()}
    sums = network(**random_batch([3, 0], 64, 96))
    loss = torch.stack(list(sums.normalised(sums.counts().detach()).values())).sum()
    loss.backward()
    assert [n for n, p in trained.items() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in trained.values())
    optimizer.step()
    moved = [n for n, p in trained.items() if not torch.equal(p, before[n])]
    assert any(n.startswith("backbone") for n in moved)
    network.eval()
    image = torch.randn(2, 3, 96, 160)  # a different canvas
    maps = network.backbone(image)
    backbone = network.backbone
    assert [m.shape[1] for m in maps] == backbone.channels
    assert [tuple(m.shape[2:]) for m in maps] == [(96 // s, 160 // s) for s in backbone.strides]
    found = network.detect(image, score_thresh=0.0, max_detections=5)
    assert [len(f["boxes"]) for f in found] == [5, 5]
    assert found[0]["masks"].shape == (5, 12, 12)


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("swinv2_tiny_window8_256", (8, 16, 32)),
        pytest.param("swinv2_cr_tiny_224", (8, 16, 32), marks=pytest.mark.slow),
        pytest.param("vit_small_patch16_dinov3", (16,), marks=pytest.mark.slow),
        pytest.param("vit_small_patch32_224", (32,), marks=pytest.mark.slow),
        ("deit3_small_patch16_224", (16,)),
        pytest.param("eva02_tiny_patch14_224", (16,), marks=pytest.mark.slow),
    ],
)
def test_a_transformer_accepts_other_sizes_than_that_of_its_training(
    name: str, strides: tuple[int, ...]
) -> None:
    """Each family needs a different option; ``features`` tries each on two canvases."""
    assert features(name).strides == strides


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "test_vit",
        pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
        *(
            pytest.param(name, marks=pytest.mark.release)
            for name in ("resnet10t", "maxvit_rmlp_pico_rw_256", "vit_small_patch16_dinov3")
        ),
    ],
)
def test_a_backbone_and_its_pyramid_are_one_graph_a_canvas(name: str) -> None:
    network = small(name)
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda image: network.fpn(network.backbone(image)),
        backend=counter,
        fullgraph=True,
        dynamic=False,
    )
    canvases = [(64, 96), (96, 64)] if name == "test_vit" else [(64, 96)]
    for size in canvases * 2:
        compiled(torch.randn(1, 3, *size))
    assert counter.frame_count == len(canvases)


def test_maps_are_timms_own() -> None:
    backbone = Backbone("swin_tiny_patch4_window7_224", pretrained=False).eval()
    torch.manual_seed(0)
    image = torch.randn(1, 3, 128, 192)
    with torch.no_grad():
        truth = backbone.model(image)
        for ours, theirs in zip(backbone(image), truth, strict=True):
            assert torch.equal(ours, theirs.permute(0, 3, 1, 2))


def test_a_plain_transformers_map_is_its_last_one_after_the_norm() -> None:
    torch.manual_seed(0)
    backbone = Backbone("test_vit", pretrained=False).eval()
    torch.manual_seed(0)
    whole = timm.create_model("test_vit", dynamic_img_size=True).eval()
    image = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        tokens = whole.forward_features(image)[:, whole.num_prefix_tokens :]
        (found,) = backbone(image)
    assert backbone.plain and backbone.strides == (16,)
    torch.testing.assert_close(found, tokens.transpose(1, 2).reshape(1, -1, 6, 8))


def test_a_canvas_is_padded_to_whole_windows() -> None:
    """The canvas is padded at the bottom and the right for MaxViT, and the maps are cropped."""
    backbone = Backbone("test_maxvit", pretrained=False).eval()
    assert backbone.multiple == 160
    image = torch.randn(1, 3, 96, 192)
    padded = torch.nn.functional.pad(image, (0, 128, 0, 64))
    with torch.no_grad():
        for ours, theirs in zip(backbone(image), backbone(padded), strict=True):
            assert torch.equal(ours, theirs[..., : ours.shape[2], : ours.shape[3]])


def test_patches_of_14_pixels_become_16_with_timms_weights(tmp_path) -> None:
    name = "vit_small_patch14_dinov2"
    torch.manual_seed(1)
    source = timm.create_model(name, num_classes=0, depth=1)
    found = features(name)
    assert found.strides == (16,) and found.options["img_size"] == (592, 592)
    path = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    model = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path), "hf_hub_id": None, "url": ""},
        **{**found.options, "out_indices": (0,), "depth": 1},
    ).model
    assert torch.equal(model.pos_embed, source.pos_embed)
    assert model.patch_embed.proj.weight.shape[-2:] == (16, 16)
    # The embedding of a patch of a single colour does not depend on its size.
    ours, theirs = (m.patch_embed.proj.weight.sum((2, 3)) for m in (model, source))
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.02)


def test_parameters_that_no_map_depends_on_take_no_part() -> None:
    backbone = Backbone("hrnet_w18_small", pretrained=False)
    still = {n for n, p in backbone.model.named_parameters() if not p.requires_grad}
    twin = timm.create_model("hrnet_w18_small", features_only=True, out_indices=(2, 3, 4))
    torch.stack([m.sum() for m in twin(torch.randn(2, 3, 64, 64))]).sum().backward()
    assert still == {n for n, p in twin.named_parameters() if p.grad is None}
    assert "incre_modules.0.0.conv1.weight" in still  # of stride 4


# ------------------------------------------------------------------------------ norms


def running(network: Network) -> list[Tensor]:
    return [m.running_mean.clone() for m in network.backbone.modules() if isinstance(m, _BatchNorm)]


@pytest.mark.parametrize("name", ["resnet10t", "test_efficientnet"])  # timm's norm with activation
def test_frozen_norms_keep_statistics_and_affine_parameters(name: str) -> None:
    network = small(name, backbone_norm="frozen")
    for norm in network.backbone.modules():
        if isinstance(norm, _BatchNorm):
            nn.init.uniform_(norm.running_mean, 0.1, 0.2)
    before = copy.deepcopy(network.backbone.state_dict())
    network.train()
    sums = network(**random_batch([2, 1], 64, 96))
    torch.stack(list(sums.normalised(sums.counts().detach()).values())).sum().backward()
    trained = [p for p in network.parameters() if p.requires_grad]
    torch.optim.SGD(trained, lr=0.1).step()
    after = network.backbone.state_dict()
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    norms = {
        n.removeprefix("model.")
        for n, m in network.backbone.named_modules()
        if isinstance(m, _BatchNorm)
    }
    assert moved and not any(
        key.removeprefix("model.").rpartition(".")[0] in norms for key in moved
    )
    # As in FrozenBatchNorm, the outputs depend on the stored statistics, not on the batch's.
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        trains = network.backbone.train()(image)
        for a, b in zip(trains, network.backbone.eval()(image), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("name", "count", "frozen"),
    [
        ("resnet10t", 1, r"conv1|bn1"),
        ("resnet10t", 2, r"conv1|bn1|layer1"),
        ("test_convnext", 2, r"stem_\d|stages_0"),
        ("test_vit", 3, r"(model\.)?(cls_token|pos_embed|patch_embed|blocks\.[01]\.)"),
    ],
)
def test_frozen_stages_stay_as_they_are(name: str, count: int, frozen: str) -> None:
    """Parameters and statistics of frozen stages do not change, and all later ones do."""
    network = small(name, frozen_stages=count)
    before = copy.deepcopy(network.backbone.model.state_dict())
    sums = network.train()(**random_batch([2, 1], 64, 96))
    torch.stack(list(sums.normalised(sums.counts().detach()).values())).sum().backward()
    for key, parameter in network.backbone.model.named_parameters():
        assert (parameter.grad is None) == bool(re.match(frozen, key)), key
    after = network.backbone.model.state_dict()
    statistics = [key for key in before if "running" in key]
    for key in statistics:
        assert torch.equal(before[key], after[key]) == bool(re.match(frozen, key)), key
    network.backbone.norm = "sync"
    network.backbone.synchronise()
    first = next(m for m in network.train().modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert not first.training


def test_more_frozen_stages_than_the_model_has_are_refused() -> None:
    with pytest.raises(InputError, match=r"frozen_stages=6: resnet10t has 5 .* give at most 4"):
        small("resnet10t", frozen_stages=6)


def test_batch_norms_learn() -> None:
    network = small("resnet10t").train()
    before = running(network)
    network(**random_batch([2, 1], 64, 96))
    assert any(not torch.equal(a, b) for a, b in zip(before, running(network), strict=True))


def test_synchronised_norms_keep_keys_weights_and_activations() -> None:
    backbone = Backbone("test_efficientnet", pretrained=False, norm="sync").eval()
    image = torch.randn(1, 3, 64, 64)
    keys = set(backbone.state_dict())
    with torch.no_grad():
        before = backbone(image)
        backbone.synchronise()
        assert any(isinstance(m, nn.SyncBatchNorm) for m in backbone.modules())
        for a, b in zip(before, backbone(image), strict=True):
            torch.testing.assert_close(a, b)
    assert set(backbone.state_dict()) == keys


def four_images() -> Tensor:
    return torch.randn(4, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def rank_of_two(rank: int, folder: str) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", pretrained=False, norm="sync").cuda()
    backbone.synchronise()
    maps = backbone(four_images()[2 * rank : 2 * rank + 2].cuda())
    state = backbone.state_dict()
    torch.save({"maps": maps, "state": state}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.gpu(2)
def test_two_ranks_with_synchronised_norms_are_one(tmp_path) -> None:
    mp.spawn(rank_of_two, (str(tmp_path),), nprocs=2)
    torch.manual_seed(0)
    whole = Backbone("resnet10t", pretrained=False).cuda()
    maps = whole(four_images().cuda())
    for rank in range(2):
        part = torch.load(tmp_path / f"{rank}.pt", map_location="cuda", weights_only=True)
        for a, b in zip(part["maps"], maps, strict=True):
            torch.testing.assert_close(a, b[2 * rank : 2 * rank + 2], atol=1e-3, rtol=1e-3)
        for key, value in whole.state_dict().items():
            torch.testing.assert_close(part["state"][key], value, atol=1e-3, rtol=1e-3)


def test_checkpoints_of_all_norms_are_alike() -> None:
    states = [
        set(Backbone("resnet10t", pretrained=False, norm=norm).state_dict())
        for norm in ("batch", "frozen", "sync")
    ]
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize("norm", ["frozen", "sync"])
def test_a_norm_for_a_model_without_one_is_refused(norm) -> None:
    with pytest.raises(InputError, match=rf"backbone_norm='{norm}': test_vit has no batch norm"):
        Backbone("test_vit", pretrained=False, norm=norm)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(InputError, match=r"backbone_norm='group' .* batch, frozen or sync"):
        Backbone("resnet10t", pretrained=False, norm="group")


# ----------------------------------------------------------------------------- refusals


def test_an_unknown_name_lists_near_ones() -> None:
    with pytest.raises(InputError, match=r"'resnet5O' is not a timm model.*near it: resnet50"):
        Backbone("resnet5O", pretrained=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mixer_s16_224", "any size"),
        pytest.param("beit_base_patch16_224", "any size", marks=pytest.mark.release),
        pytest.param("convmixer_768_32", "stride 7 only", marks=pytest.mark.slow),
        ("sequencer2d_s", r"strides \[7, 14\]"),
    ],
)
def test_a_model_that_cannot_work_is_refused_with_ones_that_do(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"'{name}' .*{reason}.*near it that work: ") as caught:
        Backbone(name, pretrained=False)
    near = str(caught.value).rpartition("work: ")[2].split(", ")
    assert len(near) == 4
    for other in near if reason == "stride 7 only" else set(near) - set(_GOOD):
        assert features(other).strides


# ------------------------------------------------------------------------------ weights


def weights(path, source: nn.Module) -> None:
    if path.suffix == ".pth":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(tmp_path, suffix: str) -> None:
    torch.manual_seed(1)
    source = timm.create_model("resnet10t", pretrained=False)
    weights(tmp_path / f"weights{suffix}", source)
    backbone = Backbone("resnet10t", pretrained=tmp_path / f"weights{suffix}")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = backbone.eval()(image)[-1]
        torch.testing.assert_close(found, source.eval().forward_features(image))


def test_weights_come_with_their_own_preprocessing(tmp_path) -> None:
    config = timm.get_pretrained_cfg("test_vit")
    assert (config.mean, config.interpolation) == ((0.5, 0.5, 0.5), "bicubic")
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    found = Backbone("test_vit", pretrained=path).preprocessing
    assert found == Preprocessing((0.5,) * 3, (0.5,) * 3, "bicubic")
    assert Backbone("test_vit", pretrained=False).preprocessing == Preprocessing()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_whole_model_is_no_backbone(tmp_path, suffix) -> None:
    network = Network("resnet10t", 3, pretrained=False, fpn_channels=16, head_convs=1)
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    path = tmp_path / f"last{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": state, "hyper_parameters": {"backbone": "resnet10t"}}, path)
    else:
        save_file(state, path)
    with pytest.raises(InputError, match=f"--weights {re.escape(str(path))}") as error:
        Backbone("resnet10t", pretrained=path)
    assert len(str(error.value)) < 200 + 2 * len(str(path))
    assert "\n" not in str(error.value)


def test_a_file_of_another_model_is_refused(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    weights(path, nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"weights of resnet10t: it lacks .* more weights"):
        Backbone("resnet10t", pretrained=path)
    source = timm.create_model("resnet10t").state_dict()
    del source["layer3.0.conv1.weight"]
    torch.save(source, path)
    with pytest.raises(InputError, match=r"it lacks layer3\.0\.conv1\.weight$"):
        Backbone("resnet10t", pretrained=path)


def test_a_file_with_code_is_not_run(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": _Code(tmp_path / "ran")}, path)
    with pytest.raises(
        InputError, match=r"weights\.pth' cannot be read as weights of resnet10t"
    ) as e:
        Backbone("resnet10t", pretrained=path)
    assert "retry" not in str(e.value)  # timm's advice to load it unsafely
    assert not (tmp_path / "ran").exists()


class _Code:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


def test_a_missing_weights_file_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.safetensors' is not a file"):
        Backbone("resnet10t", pretrained=tmp_path / "nowhere.safetensors")


def test_weights_that_cannot_be_downloaded_say_how_to_go_on(monkeypatch) -> None:
    real = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host")
        return real(name, pretrained=pretrained, **options)

    monkeypatch.setattr(module.timm, "create_model", offline)
    with pytest.raises(
        InputError,
        match=r"model\.safetensors of timm/resnet10t.*pretrained false.*no route to host",
    ):
        Backbone("resnet10t", pretrained=True)


def test_without_a_network_the_hubs_tries_are_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written: list[str] = []
    hub, handler = logging.getLogger("huggingface_hub"), logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: written.append(record.getMessage()))
    monkeypatch.setattr(hub, "handlers", [handler])

    def offline(*_: Any, **__: Any) -> Any:
        log = logging.getLogger("huggingface_hub.utils._http")
        log.warning("another warning")
        for n in range(1, 6):
            log.warning("'[Errno -2] no name' thrown while requesting HEAD https://hub/file")
            log.warning(f"Retrying in {2**n}s [Retry {n}/5].")
        raise OSError("The hub is away. Please check.\nmore")

    monkeypatch.setattr(module, "_model", offline)
    with pytest.raises(InputError, match=r"^could not load timm's weights of resnet18") as error:
        Backbone("resnet18")
    assert written == ["another warning"] and not handler.filters
    told = [one.getMessage() for one in caplog.records if one.name == "autotimm"]
    assert told == [
        "timm's weights of resnet18: [Errno -2] no name: trying again for up to a minute"
    ]
    for part in (
        "OSError: The hub is away)",
        "--model.pretrained FILE takes a file, such as the model.safetensors of timm/resnet18",
        "timm/resnet18",
    ):
        assert part in str(error.value)
