"""DeepSpeed's ZeRO, on GPUs and on CPUs, with the numbers of the other strategies.

What Lightning's strategy does otherwise, and why it is not left at that:

- Mixed precision there makes the weights and *every* input float16 or bfloat16, in which a box's
  corner at 600 pixels moves by up to 2. Here it is autocast's, with float32 weights, and a loss
  scaler of ours: DeepSpeed's own under autocast neither clips unscaled gradients nor gets away from
  a scale that is too large.
- Accumulated gradients are divided by the number of batches twice there, and the batches that an
  epoch leaves over are never stepped on.
- A checkpoint, which is a folder, is written beside its name and renamed; it holds tensors and
  plain values and the scaler object of DeepSpeed's, which is looked at before DeepSpeed unpickles
  it.

Invariants: no code from a checkpoint runs; a checkpoint goes on only with the number of ranks and
the stage that wrote it, and says so otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from autotimm.checkpoints.storage import whole_folder
from autotimm.checkpoints.zero_files import check_on_all_ranks, stage_of
from autotimm.lightning_private import ConfiguredDeepSpeed
from autotimm.strategies.norms import from_first_rank
from autotimm.structures import InputError

OURS = ("gradient_accumulation_steps", "gradient_clipping", "fp16", "bf16", "torch_autocast")
"""Settings of DeepSpeed's that follow from the trainer's."""

_GROW_AFTER = 2000  # steps without overflow, as in torch


def stage_config(stage: int) -> dict[str, Any]:
    """DeepSpeed's settings for a ZeRO stage of 1, 2 or 3; those of ``launch/deepspeed/``.

    Buckets are of 25 million elements (100 MB): the buffers are allocated whole, whatever the size
    of the model.
    """
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": True,
        "reduce_bucket_size": 25_000_000,
    }
    if stage < 3:
        zero |= {"allgather_bucket_size": 25_000_000, "reduce_scatter": True}
    else:
        zero |= {
            "stage3_prefetch_bucket_size": 5_000_000,
            "stage3_param_persistence_threshold": 100_000,
            "sub_group_size": 1_000_000_000,
        }
    return {"zero_optimization": zero, "zero_allow_untested_optimizer": True}


class ZeRO(ConfiguredDeepSpeed):
    """Lightning's DeepSpeed strategy with the differences above; CPUs talk over gloo."""

    accumulates = False  # in this batch, after which no step is taken

    def setup_environment(self) -> None:
        if self.zero_stage_3 and _compiled(self.lightning_module):
            raise InputError(
                "deepspeed_stage_3 takes the weights out of the modules between calls, which "
                "torch.compile does not bear: give the model compile_model=False "
                "(--model.init_args.compile_model=false), or take fsdp or deepspeed_stage_2"
            )
        if isinstance(self.accelerator, CPUAccelerator):
            # DeepSpeed wants an index on each device.
            count = len(self.parallel_devices or [])
            self.parallel_devices = [torch.device("cpu", i) for i in range(count)]
            DDPStrategy.setup_environment(self)
        else:
            super().setup_environment()

    def complete_config(self) -> None:
        assert isinstance(self.config, dict)
        assert self.lightning_module is not None
        trainer: Any = self.lightning_module.trainer
        self.config |= {
            "train_micro_batch_size_per_gpu": getattr(trainer.datamodule, "batch_size", 1),
            "gradient_accumulation_steps": trainer.accumulate_grad_batches,
            "gradient_clipping": trainer.gradient_clip_val or 0.0,
        }

    def init_deepspeed(self) -> None:
        super().init_deepspeed()
        plugin = self.precision_plugin
        if isinstance(plugin, Autocast):
            plugin.apply_to(self.deepspeed_engine)
        network = getattr(self.lightning_module, "network", None)
        if self.zero_stage_3 and network is not None:
            network.lockstep = True

    @property
    def handles_gradient_accumulation(self) -> bool:
        """No: Lightning steps where it says so, at the end of an epoch too, and DeepSpeed is told
        (:meth:`backward`)."""
        return False

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        self.accumulates = True
        try:
            yield  # the boundary has DeepSpeed reduce nothing
        finally:
            self.accumulates = False

    def backward(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        self.deepspeed_engine.set_gradient_accumulation_boundary(not self.accumulates)
        # The loss is divided by the batches of a step already.
        kwargs["scale_wrt_gas"] = False
        return super().backward(closure_loss, optimizer, *args, **kwargs)

    def on_validation_start(self) -> None:
        assert self.model is not None
        from_first_rank(self.model)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Every rank has to call it. Raises InputError where it cannot be written."""
        if "://" in str(filepath):
            raise InputError(
                f"{filepath}: DeepSpeed writes its checkpoints to local folders only: give a "
                f"default_root_dir on a disk that all nodes share"
            )
        assert self.lightning_module is not None
        step = self.lightning_module.trainer.global_step
        files = self.deepspeed_engine.checkpoint_engine
        path = Path(self.broadcast(str(filepath)))
        with whole_folder(path, step) as folder, _errors_at_the_end(files):
            super().save_checkpoint(checkpoint, folder, storage_options)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Raises InputError if there is no checkpoint of this stage and number of ranks."""
        path = Path(self.broadcast(str(checkpoint_path)))
        fitting = self.lightning_module is not None and self.lightning_module.trainer.training
        # To go on, DeepSpeed reads on each rank its own files alone, unless told otherwise.
        alone = fitting and not self.deepspeed_engine.zero_elastic_checkpoint()
        ranks = check_on_all_ranks(path, self.global_rank if alone else None)
        stage = 3 if self.zero_stage_3 else 2
        # Without the optimizer, every rank can read the whole weights of stages 1 and 2.
        alike = ranks == self.world_size or not (fitting or stage == 3)
        if stage_of(path) != stage or not alike:
            saved = "3" if stage_of(path) == 3 else "1 or 2"
            raise InputError(
                f"{path} was written by {ranks} ranks with ZeRO stage {saved}, and goes on only "
                f"with those, not with {self.world_size} and {'3' if stage == 3 else '1 or 2'}: "
                f"give them, or begin from its weights (python -m autotimm.checkpoints.convert)"
            )
        checkpoint = super().load_checkpoint(path, weights_only)
        # DeepSpeed has restored them; who looks for them finds nothing more to restore.
        return {**checkpoint, "optimizer_states": [], "state_dict": {}}

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        # In evaluation the average of the weights takes the place of those that were trained.
        if checkpoint["state_dict"]:
            assert self.lightning_module is not None
            self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)


class Autocast(DeepSpeedPrecision):
    """Mixed precision of a DeepSpeed engine whose weights are float32.

    Args:
        precision: "16-mixed" or "bf16-mixed".
    """

    def __init__(self, precision: str) -> None:
        super().__init__("32-true")  # no input is converted
        self.precision = precision  # type: ignore[assignment]
        self.dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
        self.scaler: dict[str, float] | None = None
        """Scale of the loss, and steps since it was last changed; None for bfloat16."""
        if precision == "16-mixed":
            self.scaler = {"scale": 65536.0, "steps": 0}

    def apply_to(self, engine: Any) -> None:
        """Has ``engine`` run its module under autocast.

        It is not its own setting, ``torch_autocast``, which reduces gradients in half precision and
        brings the scaler that the module's text tells of; it would switch off one from outside.
        """
        engine.torch_autocast_enabled = lambda: True
        engine.torch_autocast_dtype = lambda: self.dtype

    def backward(  # type: ignore[override]
        self, tensor: Tensor, model: LightningModule, optimizer: Any, *args: Any, **kwargs: Any
    ) -> None:
        if self.scaler is not None:
            engine: Any = model.trainer.model
            engine.optimizer.override_loss_scale(self.scaler["scale"])
        super().backward(tensor, model, optimizer, *args, **kwargs)

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Any, model: Any, closure: Any, **kwargs: Any
    ) -> Any:
        result = super().optimizer_step(optimizer, model, closure, **kwargs)
        if self.scaler is not None:
            overflow = bool(model.trainer.model.optimizer.overflow)
            self.scaler = next_scale(self.scaler, overflow)
        return result

    def state_dict(self) -> dict[str, Any]:
        return dict(self.scaler or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.scaler is not None:
            self.scaler = {key: state_dict[key] for key in self.scaler}


def _compiled(module: nn.Module | None) -> bool:
    return module is not None and any(m._compiled_call_impl is not None for m in module.modules())


def next_scale(scaler: dict[str, float], overflow: bool) -> dict[str, float]:
    """As ``torch.amp.GradScaler``: half after an overflow, double after 2,000 steps without."""
    if overflow:
        return {"scale": scaler["scale"] / 2, "steps": 0}
    if scaler["steps"] + 1 == _GROW_AFTER:
        return {"scale": scaler["scale"] * 2, "steps": 0}
    return {"scale": scaler["scale"], "steps": scaler["steps"] + 1}


@contextmanager
def _errors_at_the_end(files: Any) -> Iterator[None]:
    """Has a file that cannot be written be an error at the end of the block, in which ranks wait
    for each other, rather than in it.

    Args:
        files: the engine's way of writing them.
    """
    write = files.save
    failures: list[Exception] = []

    def save(*arguments: Any, **options: Any) -> None:
        try:
            write(*arguments, **options)
        except (OSError, RuntimeError) as error:
            failures.append(error)

    files.save = save
    try:
        yield
    finally:
        files.save = write
    if failures:
        raise failures[0]
