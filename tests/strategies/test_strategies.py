"""DDP, DeepSpeed and FSDP on two CPU processes: the numbers of one process, and checkpoints."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import random_batch, small
from coco_folder import mixed
from fits import fit, fit_on_ranks
from lightning.pytorch.plugins import precision as lightning_precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy

from autotimm import AutoTrainer, InputError, InstanceSegmentor
from autotimm.checkpoints import zero_files
from autotimm.checkpoints.convert import convert
from autotimm.checkpoints.convert import main as convert_command
from autotimm.checkpoints.storage import COMPLETE
from autotimm.models import network as networks
from autotimm.models.backbone import Backbone
from autotimm.sharding.cli import shard
from autotimm.strategies import choice, zero
from autotimm.strategies.fsdp import FSDP, LEAST_BLOCK, blocks
from autotimm.tasks.precision import MixedPrecision

ROOT = Path(__file__).parents[2]
STRATEGIES = [
    *("ddp", "fsdp", "deepspeed_stage_2", "deepspeed_stage_3"),
    # The optimizer of the second stage, which keeps whole gradients here.
    pytest.param("deepspeed_stage_1", marks=pytest.mark.release),
]
SCALE = 2.0**18  # the first steps overflow with it

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

# One process has batches of four, and each of two ranks has batches of two.
MAIN = {"save_at": 4, "limit_val_batches": 1}
EPOCH = {"max_epochs": 1, "limit_train_batches": None, "save_at": 2}
OTHERS = {
    "accumulated": {
        "max_epochs": 1,
        "limit_train_batches": 3,  # one step of two batches and one of the last batch
        "accumulate_grad_batches": 2,
    },
    "empty": {"max_epochs": 1, "empty": True},
    "bf16": {"max_epochs": 1, "limit_train_batches": 2, "precision": "bf16-mixed"},
    "sixteen": {
        "max_epochs": 1,
        "limit_train_batches": 4,
        "sixteen": SCALE,
        "gradient_clip_val": 1.0,
    },
    "adamw": {
        "max_epochs": 1,
        "limit_train_batches": 2,
        "model": {"optimizer": "adamw", "lr": 1e-3},
        "gradient_clip_val": 1.0,
    },
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mixed")
    shard(mixed(folder / "coco"), folder / "shards", samples_per_shard=4)
    return str(folder / "shards")


@pytest.fixture(scope="module")
def one(shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of each fit in one process, and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("one")
    gave: dict[str, Any] = {"folder": folder}
    gave["main"] = fit(shards, str(folder), batch_size=4, **MAIN)
    gave["epoch"] = fit(shards, str(folder / "epoch"), batch_size=3, **EPOCH)
    for name, options in OTHERS.items():
        size = 2 if name == "accumulated" else 4
        gave[name] = fit(shards, str(folder / name), batch_size=size, **options)
    return gave


def jobs(strategy: str, shards: str, folder: Path, one: dict[str, Any]) -> dict[str, Any]:
    every: dict[str, Any] = {
        "main": {"folder": folder, **MAIN},
        "rest": {"folder": folder / "rest", "ckpt_path": folder / "step=4.ckpt"},
    }
    for name, options in OTHERS.items():
        size = 1 if name == "accumulated" else 2
        every[name] = {"folder": folder / name, "batch_size": size, **options}
    if strategy in ("ddp", "fsdp"):
        every["epoch"] = {"folder": folder / "epoch", **EPOCH}
        every["of one"] = {
            "folder": folder / "of one",
            "ckpt_path": one["folder"] / "step=4.ckpt",
        }
        every["rest of one's epoch"] = {
            **{key: value for key, value in EPOCH.items() if key != "save_at"},
            "folder": folder / "rest of one's epoch",
            "ckpt_path": one["folder"] / "epoch" / "step=2.ckpt",
        }
    if strategy == "deepspeed_stage_3":
        path = offloading(folder)
        every["config"] = {"folder": folder / "config", "strategy": path, "limit_val_batches": 1}
    for what in ("gradient", "loss"):
        every[what] = {"folder": folder / what, "max_epochs": 1, "spoil": what}
    return {
        name: {"shards": shards, "strategy": strategy, **job, "folder": str(job["folder"])}
        | ({"ckpt_path": str(job["ckpt_path"])} if "ckpt_path" in job else {})
        for name, job in every.items()
    }


def offloading(folder: Path) -> str:
    """A DeepSpeed config that keeps the optimizer in host memory and gathers each parameter when it
    is used."""
    config = json.loads((ROOT / "launch" / "deepspeed" / "stage_3_offload.json").read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


@pytest.fixture(scope="module", params=STRATEGIES)
def two(
    request: pytest.FixtureRequest,
    shards: str,
    one: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """The results of two processes with a strategy."""
    folder = tmp_path_factory.mktemp(request.param)
    named = jobs(request.param, shards, folder, one)
    gave = fit_on_ranks(2, list(named.values()), folder)
    return {"strategy": request.param, "folder": folder, **dict(zip(named, gave, strict=True))}


@pytest.mark.slow
def test_losses_are_those_of_one_process_on_the_joined_batch(two, one) -> None:
    for name, tolerance in (
        ("main", 1e-5),
        ("adamw", 1e-4),
        ("accumulated", 1e-5),
        ("empty", 1e-5),
        ("bf16", 1e-2),
        ("sixteen", 1e-2),
    ):
        assert two[name]["steps"] == one[name]["steps"], name
        assert two[name]["losses"] == pytest.approx(one[name]["losses"], rel=tolerance), name
    assert [sorted(step) for step in two["main"]["images"]] == [
        sorted(step) for step in one["main"]["images"]
    ]


@pytest.mark.slow
def test_the_fits_cover_clipping_training_and_skipped_steps(two, one) -> None:
    """Clipping and training change the numbers, and 16-mixed skips only the first steps."""
    losses = one["main"]["losses"]
    assert losses[-1] < 0.97 * losses[0]
    assert min(one["main"]["found"]) > 0  # the second rank has no detections
    assert one["accumulated"]["steps"] == 2
    half = one["sixteen"]["losses"]
    assert half[-1] < 0.99 * half[0]
    assert max(gave["sixteen"]["scale"] for gave in (one, two)) < SCALE


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_losses(two) -> None:
    assert two["rest"]["losses"] == two["main"]["losses"][4:]
    assert two["rest"]["steps"] == 6


@pytest.mark.slow
def test_a_loss_or_gradient_that_is_no_number_stops_all_ranks_before_the_step(two) -> None:
    assert "the loss is nan at step 3 on rank 1" in two["loss"]["error"]
    assert "its gradients are not, at step 3" in two["gradient"]["error"]
    assert two["loss"]["finite"]
    assert two["gradient"]["finite"]


@pytest.mark.slow
def test_a_checkpoint_becomes_one_file_that_loads(two, one, tmp_path: Path) -> None:
    truth = InstanceSegmentor.load_from_checkpoint(one["folder"] / "step=4.ckpt")
    checkpoint = two["folder"] / "step=4.ckpt"
    published = convert(checkpoint, tmp_path / "weights.safetensors")
    loaded = [InstanceSegmentor.load_from_checkpoint(published)]
    if two["strategy"] in ("ddp", "fsdp"):
        loaded.append(InstanceSegmentor.load_from_checkpoint(checkpoint))
        of_optimizer = torch.load(checkpoint, weights_only=True)["optimizer_states"]
        expected = torch.load(one["folder"] / "step=4.ckpt", weights_only=True)["optimizer_states"]
        torch.testing.assert_close(of_optimizer, expected, rtol=1e-3, atol=1e-5)
    else:
        with pytest.raises(InputError, match="is a folder, as DeepSpeed's checkpoints are"):
            InstanceSegmentor.load_from_checkpoint(checkpoint)
    for model in loaded:
        assert model.hparams == truth.hparams
        assert model.categories == truth.categories
        assert model.preprocessing == truth.preprocessing
        torch.testing.assert_close(model.state_dict(), truth.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("two", ["ddp", "fsdp"], indirect=True)
def test_a_run_goes_on_with_another_number_of_ranks(two, one, shards: str, tmp_path: Path) -> None:
    """With the optimizer's state, and with exactly the unseen samples of the epoch."""
    truth = one["main"]["losses"][4:]
    assert two["of one"]["losses"] == pytest.approx(truth, rel=1e-5)
    back = fit(shards, str(tmp_path), batch_size=4, ckpt_path=str(two["folder"] / "step=4.ckpt"))
    assert back["losses"] == pytest.approx(truth, rel=1e-5)
    rest = fit(
        shards,
        str(tmp_path),
        batch_size=3,
        max_epochs=1,
        limit_train_batches=None,
        ckpt_path=str(two["folder"] / "epoch" / "step=2.ckpt"),
    )
    for before, after in ((two["epoch"], rest), (one["epoch"], two["rest of one's epoch"])):
        seen = [image for batch in before["images"][:2] for image in batch]
        every = {image for batch in before["images"] for image in batch}
        left = [image for batch in after["images"] for image in batch]
        assert len(every) == 13
        assert set(left) >= every - set(seen)
        # Only the last batch of all ranks together is filled up with repeated samples.
        sure = [image for batch in after["images"][:-1] for image in batch]
        assert not set(sure) & set(seen)
        assert len(sure) == len(set(sure)) > 0
        assert len(left) - len(every - set(seen)) < len(after["images"][-1])


@pytest.mark.slow
@pytest.mark.parametrize("two", ["deepspeed_stage_2"], indirect=True)
def test_a_deepspeed_checkpoint_goes_on_only_as_it_was_written(
    two, shards: str, tmp_path: Path
) -> None:
    refused = {
        "deepspeed_stage_2": "written by 2 ranks with ZeRO stage 1 or 2.* not with 1 and 1 or 2",
        "deepspeed_stage_3": "written by 2 ranks with ZeRO stage 1 or 2.* not with 1 and 3",
        "ddp": "is a folder, as DeepSpeed's checkpoints are",
    }
    job = {"shards": shards, "ckpt_path": str(two["folder"] / "step=4.ckpt")}
    jobs = [{**job, "folder": str(tmp_path / name), "strategy": name} for name in refused]
    for message, gave in zip(refused.values(), fit_on_ranks(1, jobs, tmp_path), strict=True):
        assert re.search(message, gave["error"]), gave


@pytest.mark.slow
@pytest.mark.parametrize("two", ["deepspeed_stage_3"], indirect=True)
def test_code_in_a_deepspeed_checkpoint_does_not_run(two, tmp_path: Path, capsys) -> None:
    copy, canary = tmp_path / "copy.ckpt", tmp_path / "canary"
    shutil.copytree(two["folder"] / "step=4.ckpt", copy)

    class Code:
        def __reduce__(self):
            return (Path.touch, (canary,))

    (victim, *_) = sorted((copy / "checkpoint").glob("*_optim_states.pt"))
    content = torch.load(victim, weights_only=False)  # this test made it
    torch.save({**content, "more": Code()}, victim)
    with pytest.raises(InputError, match="is damaged"):  # it is not what the run has written
        zero_files.check_folder(copy)
    (copy / COMPLETE).unlink()  # which whoever puts code into a file may do, too
    with pytest.raises(InputError, match="carries code, which was not run"):
        zero_files.check_folder(copy)
    with pytest.raises(InputError, match="carries code, which was not run"):
        zero_files.check_folder(copy, rank=0)  # the file's rank
    assert len(zero_files.check_folder(copy, rank=1)) == 2
    with pytest.raises(SystemExit, match="2"):
        convert_command([str(copy), str(tmp_path / "out.safetensors")])
    assert "carries code" in capsys.readouterr().err
    assert not canary.exists()
    pickle.loads(pickle.dumps(Code()))  # noqa: S301 - the canary would sing
    assert canary.exists()
    victim.write_bytes(victim.read_bytes()[:1000])
    with pytest.raises(InputError, match="is damaged"):
        zero_files.check_folder(copy)


def test_all_ranks_raise_the_error_of_a_file_that_one_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("deepspeed")
    (tmp_path / "checkpoint").mkdir()
    for rank in range(2):
        file = tmp_path / "checkpoint" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({}, file)
    assert zero_files.check_on_all_ranks(tmp_path, 0) == 2
    file.write_bytes(b"half of it")

    def from_all_ranks(own: str) -> list[str]:
        assert own == ""  # the file belongs to another rank
        with pytest.raises(InputError) as caught:
            zero_files.check_folder(tmp_path, 1)
        return [own, str(caught.value)]

    monkeypatch.setattr(zero_files, "from_all_ranks", from_all_ranks)
    with pytest.raises(InputError, match=r"zero_pp_rank_1_.*optim_states\.pt"):
        zero_files.check_on_all_ranks(tmp_path, 0)


@pytest.mark.slow
@pytest.mark.parametrize("two", ["deepspeed_stage_3"], indirect=True)
def test_a_deepspeed_config_is_a_strategy(two, one) -> None:
    """Even if one of the ranks has no detections for the mask head."""
    assert two["config"]["losses"] == pytest.approx(one["main"]["losses"], rel=1e-5)
    assert two["config"]["found"][0] > 0


def made(name: Any, one_device: bool = True) -> Any:
    return choice.strategy(name, "cpu", one_device, timedelta(minutes=7))


@pytest.mark.slow
def test_the_third_stage_of_deepspeed_does_not_compile(tmp_path: Path) -> None:
    run = AutoTrainer(
        accelerator="cpu",
        devices=1,
        strategy="deepspeed_stage_3",
        max_epochs=1,
        default_root_dir=tmp_path,
    )
    with pytest.raises(InputError, match="does not support: give the model compile_model=False"):
        run.fit(small(compile_model=True), [random_batch([1])])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("fsdp", "aot_eager"),
        pytest.param("ddp", "aot_eager", marks=pytest.mark.release),
        pytest.param("fsdp", "inductor", marks=pytest.mark.release),
        pytest.param("ddp", "inductor", marks=pytest.mark.release),
    ],
)
def test_compiled_networks_give_the_same_losses(
    name: str, backend: str, shards: str, one, tmp_path: Path
) -> None:
    """DDP has one graph. FSDP has several, and gathers blocks between them."""
    model = {"compile_model": True, "compile_kwargs": {"backend": backend}}
    job = {"shards": shards, "model": model, "folder": str(tmp_path), "strategy": name}
    [gave] = fit_on_ranks(2, [job], tmp_path)
    assert gave["losses"] == pytest.approx(one["main"]["losses"], rel=1e-5)
    assert gave["graphs"] >= 1
    assert (len(gave["breaks"]) > 0) == (name == "fsdp"), gave["breaks"]


def test_names_of_strategies() -> None:
    assert made("auto") == "auto"
    assert type(made("auto", one_device=False)) is choice.DDP
    assert type(made("ddp")) is choice.DDP
    assert type(made("fsdp")) is FSDP
    for stage in (1, 2, 3):
        assert isinstance(made(f"deepspeed_stage_{stage}"), zero.ZeRO)
        assert made(f"deepspeed_stage_{stage}").config["zero_optimization"]["stage"] == stage
    for name in choice.NAMES[1:]:
        assert made(name)._timeout == timedelta(minutes=7), name
    mine = SingleDeviceStrategy("cpu")
    assert made(mine) is mine
    with pytest.raises(InputError, match="strategy='dpp' is unknown: take auto, ddp, deepspeed"):
        AutoTrainer(strategy="dpp")
    assert AutoTrainer(strategy="ddp", timeout_minutes=0.5).strategy._timeout.seconds == 30
    with pytest.raises(InputError, match="timeout_minutes=0 must be a positive"):
        AutoTrainer(timeout_minutes=0)


def test_deepspeed_has_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_DEEPSPEED", False)
    with pytest.raises(InputError, match=r"pip install deepspeed"):
        AutoTrainer(strategy="deepspeed_stage_2")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_configs_in_launch_are_those_of_the_names(stage: int) -> None:
    path = ROOT / "launch" / "deepspeed" / f"stage_{stage}.json"
    assert choice.deepspeed_config(path) == zero.stage_config(stage)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a DeepSpeed config"),
        ("[]", "has a zero_optimization section"),
        ('{"zero_optimization": {"stage": 2}, "fp16": {}}', "fp16 follows from the trainer's"),
    ],
)
def test_a_bad_deepspeed_config_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        AutoTrainer(strategy=str(path))


def test_precision_is_autocast_whatever_the_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(name, accelerator="auto", strategy="auto", plugins=()):
        name_given, chosen = choice.precision(name, accelerator, strategy, list(plugins))
        return name_given, [(type(p), p.precision) for p in chosen]

    assert chosen(None) == chosen("32") == chosen(32, strategy=FSDP()) == ("32-true", [])
    assert chosen("bf16") == ("bf16-mixed", [])
    with pytest.raises(InputError, match="16-mixed needs a GPU: take bf16-mixed or 32-true"):
        chosen("16-mixed", accelerator="cpu")
    with pytest.warns(UserWarning, match="there is none: going on in 32-true"):
        assert chosen("16-mixed") == ("32-true", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ours = (None, [(MixedPrecision, "16-mixed")])
    assert chosen(None) == chosen("16-mixed") == chosen(16) == ours
    assert chosen("16-mixed", strategy=FSDP()) == ours
    assert chosen("bf16-mixed", strategy=DDPStrategy()) == (
        None,
        [(MixedPrecision, "bf16-mixed")],
    )
    assert chosen("32-true") == ("32-true", [])
    deepspeed = made("deepspeed_stage_2")
    assert chosen("16-mixed", strategy=deepspeed) == (None, [(zero.Autocast, "16-mixed")])
    assert chosen("32-true", strategy=deepspeed) == ("32-true", [])
    with pytest.raises(InputError, match="converts boxes to bf16 too"):
        chosen("bf16-mixed", strategy=DeepSpeedStrategy())
    assert chosen(None, accelerator="cpu") == ("32-true", [])
    assert chosen("bf16", accelerator="cpu") == ("bf16-mixed", [])
    given = lightning_precision.MixedPrecision("bf16-mixed", "cuda")
    assert chosen(None, plugins=[given]) == (None, [(type(given), "bf16-mixed")])


def test_the_loss_scale_changes_as_torch_has_it() -> None:
    scale, tracker = torch.tensor(65536.0), torch.tensor(0, dtype=torch.int32)
    mine = {"scale": 65536.0, "steps": 0}
    generator = torch.Generator().manual_seed(0)
    for step in range(9000):
        overflow = step < 5 or bool(torch.rand((), generator=generator) < 2e-4)
        torch._amp_update_scale_(scale, tracker, torch.tensor(float(overflow)), 2.0, 0.5, 2000)
        mine = zero.next_scale(mine, overflow)
        assert mine == {"scale": scale.item(), "steps": tracker.item()}


@pytest.mark.parametrize(
    ("name", "count"), [("resnet50", 9), ("convnext_tiny", 12), ("vit_small_patch16_224", 12)]
)
def test_blocks_that_are_gathered_by_themselves(name: str, count: int) -> None:
    backbone = Backbone(name, pretrained=False)
    found = blocks(backbone)
    assert len(found) >= count
    sizes = [sum(p.numel() for p in block.parameters()) for block in found]
    assert min(sizes) >= LEAST_BLOCK
    assert sum(sizes) > 0.6 * sum(p.numel() for p in backbone.parameters())
    inside = {id(m) for block in found for m in block.modules() if m is not block}
    assert not inside & {id(block) for block in found}


def test_the_mask_head_runs_equally_often_for_any_detections(monkeypatch) -> None:
    network = small().network.eval()
    monkeypatch.setattr(networks, "MASKS_AT_ONCE", 20)
    network.mask_head.register_forward_pre_hook(lambda *_: calls.append(1))
    counts = {}
    for lockstep in (False, True):
        network.lockstep = lockstep
        for threshold in (0.0, 1.0):
            calls: list[int] = []
            image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
            found = network.detect(image, score_thresh=threshold, max_detections=50)
            assert [len(one["masks"]) for one in found] == [len(one["scores"]) for one in found]
            counts[lockstep, threshold] = len(calls)
    assert counts[False, 1.0] == 0
    assert counts[True, 0.0] == counts[True, 1.0] > 0
