"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import copy
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from autotimm.models.network import Network
from autotimm.structures import InputError
from autotimm.tasks import optimization
from autotimm.tasks.detector import ObjectDetector
from autotimm.tasks.settings import DetectorSettings

DEFAULTS = {
    name: one.default
    for name, one in inspect.signature(ObjectDetector).parameters.items()
    if name != "metrics"
}


def settings(**changes: Any) -> DetectorSettings:
    chosen = {"backbone": "resnet10t", "optimizer": "sgd", "scheduler": "multistep", "lr": 0.01}
    return DetectorSettings(**{**DEFAULTS, **chosen, **changes})


def factors(kind, steps=120, warmup=10, **options):
    return [optimization.lr_factor(s, steps, warmup, kind, **options) for s in range(steps)]


def test_learning_rate_schedules() -> None:
    for kind in ("cosine", "multistep", "constant", None):
        got = factors(kind)
        assert got[0] == pytest.approx(0.001)
        assert got[5] == pytest.approx(0.001 + 0.999 / 2)
        assert got[10] == pytest.approx(1.0)
    assert factors("cosine")[65] == pytest.approx(0.01 + 0.99 / 2)
    assert factors("cosine")[-1] < 0.012
    steps = factors("multistep")
    assert steps[79] == 1.0
    assert steps[80] == steps[109] == pytest.approx(0.1)
    assert steps[110] == pytest.approx(0.01)
    assert set(factors("constant")[10:]) == {1.0}


def test_the_milestones_of_detectron2s_long_schedule() -> None:
    """Of 270,000 steps, the rate drops after 210,000 and 250,000."""
    steps = factors("multistep", steps=270, warmup=0, milestones=[0.777778, 0.925926])
    assert [i for i in range(1, 270) if steps[i] < steps[i - 1]] == [210, 250]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"milestones": [0.5, 0.4]}, r"milestones=\[0\.5, 0\.4\] must be increasing"),
        ({"milestones": []}, "milestones="),
        ({"milestones": 0.5}, r"milestones=0\.5 must be increasing shares"),
        ({"warmup_steps": 2.5}, r"warmup_steps=2\.5 must be a whole number"),
        ({"milestones": [8, 11]}, "between 0 and 1"),
        ({"milestones": [0.5], "scheduler": "cosine"}, "scheduler=cosine: take multistep"),
        ({"layer_decay": 0.0}, "layer_decay=0"),
        ({"layer_decay": 0.7, "freeze_backbone": True}, "layer_decay=0.7 has no effect"),
        ({"backbone_lr_factor": 0.1, "freeze_backbone": True}, "backbone_lr_factor=0.1 has no"),
        ({"lr": float("nan")}, "lr=nan"),
    ],
)
def test_settings_that_are_invalid_or_without_effect_are_refused(changes, message) -> None:
    settings()
    with pytest.raises(InputError, match=message):
        settings(**changes)


def configured(steps: float = 100, **changes) -> torch.optim.Optimizer:
    """The optimizer of a run of ``steps`` steps, before the first one."""
    with torch.device("meta"):
        network = Network("resnet10t", 3, pretrained=False, fpn_channels=32, head_convs=1)
    run = SimpleNamespace(estimated_stepping_batches=steps, strategy=SingleDeviceStrategy("cpu"))
    made = optimization.configure(network, settings(**changes), run)
    assert made["lr_scheduler"]["interval"] == "step"
    return made["optimizer"]


def test_the_settings_arrive() -> None:
    sgd = configured(warmup_steps=10, backbone_lr_factor=0.5)
    assert isinstance(sgd, torch.optim.SGD)
    groups = {(g["initial_lr"], g["weight_decay"]): g for g in sgd.param_groups}
    assert set(groups) == {(0.01, 1e-4), (0.01, 0.0), (0.005, 1e-4), (0.005, 0.0)}
    assert all(g["lr"] == pytest.approx(0.001 * g["initial_lr"]) for g in sgd.param_groups)
    assert {(g["momentum"], g["fused"]) for g in sgd.param_groups} == {(0.9, False)}
    assert isinstance(configured(optimizer="adamw", scheduler="cosine"), torch.optim.AdamW)


def test_a_schedule_that_needs_the_end_of_the_run_is_refused_without_one() -> None:
    with pytest.raises(InputError, match="scheduler='multistep' needs to know the end"):
        configured(steps=float("inf"))
    assert configured(steps=float("inf"), scheduler="constant").param_groups[0]["lr"] == 0.01


def test_a_warm_up_longer_than_the_run_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="has 100 steps: .* --model.warmup_steps 10 warms up"):
        configured(warmup_steps=100)


def weights() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(n, generator=generator)) for n in (3, 5)]


def give_gradients(parameters: list[torch.nn.Parameter], step: int) -> None:
    for parameter in parameters:
        parameter.grad = torch.sin(parameter.detach() * (step + 1))


def steps_of(name: str, fused: bool, held_back: set[int]) -> list[torch.Tensor]:
    parameters = weights()
    groups = [{"params": parameters, "lr": 0.1, "weight_decay": 0.01}]
    optimizer = optimization.build(name, groups, fused=fused)
    for step in range(6):
        give_gradients(parameters, step)
        if fused:
            optimizer.found_inf = torch.tensor(float(step in held_back))
        elif step in held_back:
            continue
        if step in held_back:
            parameters[0].grad[0] = torch.nan
        optimizer.step()
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_that_the_flag_skips_changes_nothing(name: str) -> None:
    """Not even the first step, in which momentum begins."""
    for held_back in (set(), {0}, {0, 1, 4}):
        truth = steps_of(name, False, held_back)
        torch.testing.assert_close(steps_of(name, True, held_back), truth)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_run_goes_on_with_other_kernels(name: str, fused: bool) -> None:
    """For example without a GPU, from a checkpoint of a machine with one."""
    parameters = weights()
    first = optimization.build(name, [{"params": parameters, "lr": 0.1}], fused=not fused)
    for step in range(2):
        give_gradients(parameters, step)
        first.step()
    others = copy.deepcopy(parameters)
    second = optimization.build(name, [{"params": others, "lr": 0.1}], fused=fused)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert all(group["fused"] is fused for group in second.param_groups)
    for optimizer, trained in ((first, parameters), (second, others)):
        give_gradients(trained, 2)
        optimizer.step()
    torch.testing.assert_close([*others], [*parameters])


@pytest.mark.parametrize("changes", [{"optimizer": "adamw"}, {"layer_decay": 0.5}])
def test_a_run_does_not_go_on_with_another_optimizer(changes) -> None:
    saved = configured().state_dict()
    configured().load_state_dict(saved)
    with pytest.raises(InputError, match="trained with another optimizer, or other layer_decay"):
        configured(**changes).load_state_dict(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 5e-4}, "lr is 0.0005 for some parameters, but .* with 0.01"),
        ({"weight_decay": 0.3}, "weight_decay is 0.3 for some parameters"),
        ({"backbone_lr_factor": 0.8}, "lr is 0.008 for some parameters, but .* with 0.005"),
    ],
)
def test_a_run_does_not_go_on_with_rates_that_the_checkpoint_would_replace(
    changes, message
) -> None:
    run = {"warmup_steps": 5, "backbone_lr_factor": 0.5}
    saved = configured(**run).state_dict()
    configured(**run).load_state_dict(saved)
    with pytest.raises(InputError, match=message):
        configured(**{**run, **changes}).load_state_dict(saved)
