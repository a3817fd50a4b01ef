"""Fully sharded training: each rank keeps a share of the weights, gradients and optimizer state.

It uses PyTorch's FSDP2 (``fully_shard``), which shards each parameter separately, instead of the
FSDP1 of Lightning's strategy. Parameter groups, clipping, the loss scaler, frozen parameters and
names in the state dict are the same as under DDP, and it also runs on CPUs.

Invariants: a checkpoint is the single file that a run with DDP would write, so a run can resume
with any number of ranks, and under DDP; mixed precision uses autocast with float32 weights and
gradients, as in every other strategy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from autotimm.strategies.norms import from_first_rank
from autotimm.structures import InputError

LEAST_BLOCK = 1_000_000
"""The minimum number of parameters in a block that is gathered separately. The messages for smaller
blocks cost more than they save."""


class FSDP(DDPStrategy):
    """Lightning's DDP strategy, except that the model's ``network`` is sharded and not wrapped.

    A compiled network then has several graphs, because blocks are gathered between them. In an
    evaluation without training, nothing is sharded and each rank holds the whole model.
    """

    strategy_name = "fsdp"

    def setup(self, trainer: Trainer) -> None:
        if trainer.state.fn == TrainerFn.FITTING or not _is_sharded(self._network()):
            super().setup(trainer)
            return
        # Evaluation after training: the ranks are already equal, and DDP's set-up would broadcast
        # shards, which is impossible.
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model_to_device()

    def configure_ddp(self) -> None:
        network = self._network()
        if not _is_sharded(network):
            shard(network, self.root_device.type, self.world_size)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True

    def on_validation_start(self) -> None:
        assert self.model is not None
        from_first_rank(self.model)

    def on_exception(self, exception: BaseException) -> None:
        super().on_exception(exception)
        # An error in a forward pass leaves parameters gathered. Lightning cannot move those to the
        # CPU afterwards, and the error of that would hide the first one.
        for module in self.lightning_module.modules() if self.lightning_module else ():
            if isinstance(module, FSDPModule):
                module.set_reshard_after_forward(True, recurse=False)
                module.reshard()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights on the first rank's CPU. All ranks call it."""
        return _whole(super().lightning_module_state_dict(), self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state of the optimizer on the first rank's CPU. All ranks call it."""
        return _whole(super().optimizer_state(optimizer), self.is_global_zero)

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        assert self.lightning_module is not None
        mine = self.lightning_module.state_dict()
        share = {
            key: _share_of(value, mine[key]) if key in mine else value
            for key, value in checkpoint["state_dict"].items()
        }
        self.lightning_module.load_state_dict(share, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            share = {
                i: {key: _share_of(value, parameters[i]) for key, value in of_one.items()}
                for i, of_one in state["state"].items()
                if i < len(parameters)  # load_state_dict reports other counts
            }
            optimizer.load_state_dict({**state, "state": share})

    def _network(self) -> nn.Module:
        network = getattr(self.lightning_module, "network", None)
        if not isinstance(network, nn.Module):
            raise InputError(
                f"strategy=fsdp shards the network of an ObjectDetector or InstanceSegmentor, and "
                f"{type(self.lightning_module).__name__} has none: take ddp"
            )
        return network


def shard(network: nn.Module, device: str, ranks: int) -> None:
    """Shard the parameters of ``network`` in place over all ranks.

    Args:
        network: its backbone is gathered block by block (:func:`blocks`), the rest at once. The
            mask head is not a block: in evaluation, ranks call it differently often, and gathering
            it separately would hang.
        device: of the parameters, "cuda" or "cpu".
        ranks: the world size.

    Raises:
        InputError: a parameter cannot be sharded.
    """
    for name, parameter in network.named_parameters():
        if parameter.ndim == 0:
            raise InputError(
                f"strategy=fsdp cannot shard {name}, a single number: take ddp or deepspeed_stage_3"
            )
    mesh = init_device_mesh(device, (ranks,))
    for block in blocks(network.get_submodule("backbone")):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    if device == "cpu":
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)  # gloo cannot average


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """The blocks of a backbone that are large enough to be gathered separately.

    They are the innermost elements of sequences that have submodules and a million parameters, such
    as ResNet's bottlenecks or a transformer's layers. The elements of a sequence are called as
    modules, which FSDP's hooks need.
    """
    return list(_blocks(backbone, in_sequence=False))


def _blocks(module: nn.Module, in_sequence: bool) -> Iterator[nn.Module]:
    sequence = isinstance(module, nn.Sequential | nn.ModuleList)
    inner = [b for child in module.children() for b in _blocks(child, sequence)]
    block = in_sequence and not isinstance(module, nn.ModuleList) and any(module.children())
    if block and not inner and sum(p.numel() for p in module.parameters()) >= LEAST_BLOCK:
        inner = [module]
    yield from inner


def _is_sharded(network: nn.Module) -> bool:
    return isinstance(network, FSDPModule)


def _whole(state: Any, keep: bool) -> Any:
    """``state`` with its shards gathered, one after the other.

    Ranks with ``keep=False`` take part but get None for each, because a node may have memory for
    one copy but not for one per GPU.
    """

    def gather(value: Any) -> Any:
        if isinstance(value, DTensor):
            whole = value.full_tensor()
            return whole.detach().cpu() if keep else None
        return value

    return tree_map(gather, state)


def _share_of(value: Any, like: Tensor) -> Any:
    """This rank's shard of ``value`` if ``like`` is sharded, else ``value``. All ranks have it."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        whole = value.to(like.device)
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return value
