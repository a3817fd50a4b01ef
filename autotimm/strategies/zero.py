"""DeepSpeed's ZeRO on GPUs and CPUs, with the same numbers as the other strategies.

It differs from Lightning's strategy:

- Lightning's converts the weights and *every* input to float16 or bfloat16, which moves a box's
  corner at 600 pixels by up to 2. Here mixed precision uses autocast with float32 weights and a
  loss scaler of this module. DeepSpeed's scaler under autocast neither clips unscaled gradients nor
  recovers from a scale that is too large.
- Lightning's divides accumulated gradients by the number of batches twice, and takes no step for
  the last batches of an epoch if they do not fill a step.
- A checkpoint, which is a folder, is written under a temporary name and renamed. It contains
  tensors, plain values and DeepSpeed's scaler object, and is checked before DeepSpeed unpickles it.

Invariants: no code from a checkpoint runs; a run resumes only with the number of ranks and the
stage that wrote the checkpoint, and otherwise raises an error that says so.
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

from autotimm.checkpoints.storage import SaveError, whole_folder
from autotimm.checkpoints.zero_files import check_on_all_ranks, of_deepspeed, stage_of
from autotimm.lightning_private import ConfiguredDeepSpeed
from autotimm.strategies.build_locks import report_waiting
from autotimm.strategies.norms import from_first_rank
from autotimm.structures import InputError
from autotimm.tasks.archive import write_archive

OURS = ("gradient_accumulation_steps", "gradient_clipping", "fp16", "bf16", "torch_autocast")
"""DeepSpeed's settings that follow from those of the trainer."""

_GROW_AFTER = 2000  # steps without overflow, as in torch


def stage_config(stage: int) -> dict[str, Any]:
    """DeepSpeed's settings for ZeRO stage 1, 2 or 3, the same as in ``launch/deepspeed/``.

    Buckets have only 25 million elements (100 MB), because DeepSpeed allocates whole buffers for a
    model of any size.
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
    """Lightning's DeepSpeed strategy with the differences above. CPUs communicate over gloo."""

    accumulates = False  # whether no step follows this batch

    def setup_environment(self) -> None:
        report_waiting()
        if self.zero_stage_3 and _compiled(self.lightning_module):
            raise InputError(
                "deepspeed_stage_3 removes the weights from the modules between calls, which "
                "torch.compile does not support: give the model compile_model=False "
                "(--model.init_args.compile_model=false), or take fsdp or deepspeed_stage_2"
            )
        if isinstance(self.accelerator, CPUAccelerator):
            # DeepSpeed needs an index for each device.
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
        """False: Lightning decides when to step, also at the end of an epoch, and :meth:`backward`
        passes this on to DeepSpeed."""
        return False

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        self.accumulates = True
        try:
            yield  # DeepSpeed does not reduce gradients until the boundary
        finally:
            self.accumulates = False

    def backward(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        self.deepspeed_engine.set_gradient_accumulation_boundary(not self.accumulates)
        # Lightning has already divided the loss by the batches of a step.
        kwargs["scale_wrt_gas"] = False
        return super().backward(closure_loss, optimizer, *args, **kwargs)

    def on_validation_start(self) -> None:
        assert self.model is not None
        from_first_rank(self.model)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint. All ranks call it.

        Raises:
            InputError: it cannot be written.
        """
        if "://" in str(filepath):
            raise InputError(
                f"{filepath}: DeepSpeed writes its checkpoints to local folders only: give a "
                f"default_root_dir on a disk that all nodes share"
            )
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        files = self.deepspeed_engine.checkpoint_engine
        path = Path(self.broadcast(str(filepath)))
        with (
            whole_folder(path, trainer.global_step, trainer.current_epoch) as folder,
            _errors_at_the_end(files),
        ):
            super().save_checkpoint(checkpoint, folder, storage_options)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Loads a checkpoint. All ranks call it.

        Raises:
            InputError: this is not a checkpoint of this stage and number of ranks.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        fitting = self.lightning_module is not None and self.lightning_module.trainer.training
        # When resuming, each rank reads only its own files, unless the config says otherwise.
        alone = fitting and not self.deepspeed_engine.zero_elastic_checkpoint()
        ranks = check_on_all_ranks(path, self.global_rank if alone else None)
        stage = 3 if self.zero_stage_3 else 2
        # Without the optimizer, every rank can read the whole weights of stages 1 and 2.
        compatible = ranks == self.world_size or not (fitting or stage == 3)
        if stage_of(path) != stage or not compatible:
            saved = "3" if stage_of(path) == 3 else "1 or 2"
            raise InputError(
                f"{path} was written by {ranks} ranks with ZeRO stage {saved}, and goes on only "
                f"with those, not with {self.world_size} and {'3' if stage == 3 else '1 or 2'}: "
                f"give them, or begin from its weights (python -m autotimm.checkpoints.convert)"
            )
        checkpoint = super().load_checkpoint(path, weights_only)
        # DeepSpeed has restored both, so leave nothing for Lightning to restore.
        return {**checkpoint, "optimizer_states": [], "state_dict": {}}

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        # In evaluation, the average of the weights replaces the trained ones.
        if checkpoint["state_dict"]:
            assert self.lightning_module is not None
            self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)


class Autocast(DeepSpeedPrecision):
    """Mixed precision for a DeepSpeed engine with float32 weights.

    Args:
        precision: "16-mixed" or "bf16-mixed".
    """

    def __init__(self, precision: str) -> None:
        super().__init__("32-true")  # no input is converted
        self.precision = precision  # type: ignore[assignment]
        self.dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
        self.scaler: dict[str, float] | None = None
        """The scale of the loss and the steps since its last change; None for bfloat16."""
        if precision == "16-mixed":
            self.scaler = {"scale": 65536.0, "steps": 0}

    def apply_to(self, engine: Any) -> None:
        """Make ``engine`` run its module under autocast.

        This does not use DeepSpeed's setting ``torch_autocast``, which reduces gradients in half
        precision and uses its own scaler. Without the setting, the engine would switch an outer
        autocast off, so this replaces its methods.
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
    """The next state of the scaler, as in ``torch.amp.GradScaler``.

    The scale is halved after an overflow, and doubled after 2,000 steps without one.
    """
    if overflow:
        return {"scale": scaler["scale"] / 2, "steps": 0}
    if scaler["steps"] + 1 == _GROW_AFTER:
        return {"scale": scaler["scale"] * 2, "steps": 0}
    return {"scale": scaler["scale"], "steps": scaler["steps"] + 1}


def _write_sealed(state: Any, path: Path) -> None:
    with torch.serialization.safe_globals(of_deepspeed()), path.open("wb") as file:
        write_archive(state, file)


@contextmanager
def _errors_at_the_end(files: Any) -> Iterator[None]:
    """Delay errors in writing files to the end of the block, in which ranks wait for each other.

    Files have checksums, unless DeepSpeed's config names another kind of writer than the usual one.

    Args:
        files: the engine's object that writes files.
    """
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    write = files.save
    seals = type(files) is TorchCheckpointEngine
    failures: list[Exception] = []

    # DeepSpeed gives both by position at some calls and by these names at others.
    def save(state_dict: Any, path: str, *arguments: Any, **options: Any) -> None:
        try:
            if seals:
                _write_sealed(state_dict, Path(path))
            else:
                write(state_dict, path, *arguments, **options)
        except InputError as error:
            failures.append(
                SaveError(f"the checkpoint's {Path(path).name} is not written: {error}")
            )
        except (OSError, RuntimeError) as error:
            failures.append(error)

    files.save = save
    try:
        yield
    finally:
        files.save = write
    if failures:
        raise failures[0]
