"""Parameter groups: the parameters that decay, and the learning rate of each layer."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from autotimm.models.features import original_name
from autotimm.models.network import Network
from autotimm.structures import InputError
from autotimm.tasks import parameters


def network(backbone: str, **options) -> Network:
    with torch.device("meta"):
        made = Network(
            backbone, 3, pretrained=False, fpn_channels=32, head_convs=1, with_masks=True, **options
        )
        made.add_masks(8, 4)
    return made


def settings(made: Network, backbone: str, **options) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every trained parameter, by name."""
    made_groups = parameters.groups(made, backbone, **{"lr": 1.0, "weight_decay": 0.05, **options})
    of = {id(p): (g["lr"], g["weight_decay"]) for g in made_groups for p in g["params"]}
    assert len(of) == sum(len(g["params"]) for g in made_groups)
    named = {n: of.pop(id(p)) for n, p in made.named_parameters() if p.requires_grad}
    assert not of
    return named


@pytest.mark.parametrize(
    "backbone",
    [
        *("resnet10t", "convnext_atto"),
        pytest.param("hrnet_w18_small", marks=pytest.mark.release),
    ],
)
def test_norms_and_biases_are_not_decayed(backbone: str) -> None:
    made = network(backbone)
    shapes = {name: p.ndim for name, p in made.named_parameters()}
    found = settings(made, backbone)
    assert {decay for _, decay in found.values()} == {0.0, 0.05}
    for name, (rate, decay) in found.items():
        plain = name.endswith("bias") or shapes[name] <= 1
        assert decay == (0.0 if plain else 0.05), name
        assert rate == 1.0
    groups = parameters.groups(made, backbone, lr=1.0, weight_decay=0.05)
    assert [g["weight_decay"] for g in groups] == [0.05, 0.0]  # as in older checkpoints


@pytest.mark.parametrize(
    ("backbone", "tables"),
    [
        ("swin_tiny_patch4_window7_224", [12, "relative_position_bias_table"]),
        ("vit_tiny_patch16_224", [1, "pos_embed"]),
        pytest.param("vit_small_patch16_dinov3", [1, "reg_token"], marks=pytest.mark.release),
    ],
)
def test_tables_of_positions_and_tokens_are_not_decayed(backbone: str, tables: list) -> None:
    made = network(backbone)
    count, word = tables
    found = settings(made, backbone)
    shapes = {name: p.ndim for name, p in made.named_parameters()}
    names = [name for name in found if word in name]
    assert len(names) == count
    assert all(shapes[name] > 1 and found[name][1] == 0.0 for name in names)


def test_the_pyramid_of_a_plain_transformer_learns_at_the_full_rate() -> None:
    found = settings(network("vit_tiny_patch16_224"), "vit_tiny_patch16_224", layer_decay=0.5)
    rates = {name: rate for name, (rate, _) in found.items()}
    assert {rate for name, rate in rates.items() if not name.startswith("backbone.")} == {1.0}
    (last,) = (rate for name, rate in rates.items() if name.endswith("blocks.11.attn.qkv.weight"))
    (stem,) = (rate for name, rate in rates.items() if name.endswith("patch_embed.proj.weight"))
    assert last == 0.5
    assert stem == 0.5**13


def test_a_frozen_backbone_is_in_no_group() -> None:
    assert not any(
        "backbone" in n for n in settings(network("resnet10t", freeze_backbone=True), "resnet10t")
    )


def test_the_backbone_may_learn_slower() -> None:
    for name, (rate, _) in settings(
        network("resnet10t"), "resnet10t", backbone_lr_factor=0.1
    ).items():
        assert rate == (pytest.approx(0.1) if name.startswith("backbone.") else 1.0), name


def test_each_layer_learns_slower_than_the_one_above() -> None:
    found = settings(network("resnet18"), "resnet18", layer_decay=0.5, backbone_lr_factor=0.1)
    rates = {name.removeprefix("backbone.model."): rate for name, (rate, _) in found.items()}
    # Eight blocks and the stem.
    blocks = [f"layer{stage}.{block}.conv1.weight" for stage in (4, 3, 2, 1) for block in (1, 0)]
    for depth, name in enumerate([*blocks, "conv1.weight"], start=1):
        assert rates[name] == pytest.approx(0.1 * 0.5**depth), name
    assert rates["bn1.weight"] == rates["conv1.weight"]
    assert rates["fpn.p6.weight"] == rates["mask_head.masks.weight"] == 1.0


@pytest.mark.parametrize(
    "backbone",
    ["resnet26d", "convnext_atto", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"],
)
def test_the_layers_are_timms(backbone: str) -> None:
    """timm's groups of the full model, in which the classifier corresponds to our heads."""
    with torch.device("meta"):
        whole = timm.create_model(backbone)
    truth = {
        id(p): (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(
            whole,
            weight_decay=0.05,
            layer_decay=0.8,
            no_weight_decay_list=whole.no_weight_decay()
            if hasattr(whole, "no_weight_decay")
            else (),
        )
        for p in group["params"]
    }
    expected = {name: truth[id(p)] for name, p in whole.named_parameters()}
    made = network(backbone)
    found = settings(made, backbone, layer_decay=0.8)
    known = set(expected)
    compared = 0
    steps = set()
    for name, (rate, decay) in found.items():
        own = name.removeprefix("backbone.model.")
        if own == name:
            continue
        original = original_name(own, known)
        assert original is not None, name
        assert decay == expected[original][1], name
        # The extractor may lack the last layer, which shifts all others by one.
        steps.add(round(rate / expected[original][0], 6))
        compared += 1
    assert compared > 20
    assert len(steps) == 1


def test_a_backbone_whose_layers_timm_does_not_define_is_refused(monkeypatch) -> None:
    made = network("resnet10t")
    monkeypatch.setattr(timm.models.resnet.ResNet, "group_matcher", None)
    assert settings(made, "resnet10t")
    with pytest.raises(InputError, match=r"layer_decay: timm does not define.*backbone_lr_factor"):
        settings(made, "resnet10t", layer_decay=0.9)


@pytest.mark.release
@pytest.mark.parametrize(
    "backbone",
    [
        *("resnext50_32x4d", "regnety_002", "efficientnet_b0", "mobilenetv4_conv_small"),
        *("swinv2_tiny_window8_256", "vit_small_patch16_dinov3", "hrnet_w18_small", "dla34"),
        *("fastvit_t8", "maxvit_pico_rw_256", "vgg11", "densenet121", "efficientvit_b0"),
    ],
)
def test_every_parameter_of_other_families_has_its_layer(backbone: str) -> None:
    found = settings(network(backbone), backbone, layer_decay=0.5)
    rates = {rate for name, (rate, _) in found.items() if name.startswith("backbone.")}
    assert len(rates) >= 5
    assert rates == {0.5**i for i in range(1, len(rates) + 1)}  # an unknown one would have 1
