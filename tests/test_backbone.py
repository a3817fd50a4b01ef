"""Backbones of several families, and the words for those that cannot be had."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from autotimm.models.backbone import Backbone
from autotimm.structures import InputError


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t",
        "regnetx_002",
        "efficientnet_b0",
        "mobilenetv3_small_050",
        "convnext_atto",
        "vgg11_bn",
        pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
        pytest.param("swinv2_tiny_window8_256", marks=pytest.mark.slow),
    ],
)
def test_maps_lie_at_strides_8_16_32_and_are_nchw(name: str) -> None:
    backbone = Backbone(name, pretrained=False).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 128, 192))
    assert [m.shape[1] for m in maps] == backbone.channels
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 24), (8, 12), (4, 6)]


def test_an_unknown_name_lists_near_ones() -> None:
    with pytest.raises(InputError, match=r"'resnet5O' is not a timm model.*near it: .*"):
        Backbone("resnet5O", pretrained=False)


def test_a_model_of_one_stride_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"vit_tiny_patch16_224.*strides \[16\].*resnet50"):
        Backbone("vit_tiny_patch16_224", pretrained=False)


def test_weights_from_a_file(tmp_path) -> None:
    torch.manual_seed(1)
    source = timm.create_model("resnet10t", pretrained=False)
    path = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    backbone = Backbone("resnet10t", pretrained=path)
    assert torch.equal(backbone.model.layer2[0].conv1.weight, source.layer2[0].conv1.weight)


def test_a_missing_weights_file_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.safetensors' is not a file"):
        Backbone("resnet10t", pretrained=tmp_path / "nowhere.safetensors")


def test_weights_that_cannot_be_downloaded_say_how_to_go_on(monkeypatch) -> None:
    import autotimm.models.backbone as module

    real = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host")
        return real(name, pretrained=pretrained, **options)

    monkeypatch.setattr(module.timm, "create_model", offline)
    with pytest.raises(InputError, match=r"no route to host.*pretrained=False.*weights file"):
        Backbone("resnet10t", pretrained=True)
