"""Fully sharded training: each rank keeps its share of weights, gradients and optimizer state.

PyTorch's second FSDP (``fully_shard``), which shards each parameter by itself, in place of the one
that Lightning's strategy wraps: parameter groups, clipping, the loss scaler, frozen parameters and
names in the state dict stay what they are under DDP, and it runs on CPUs too.

Invariants: a checkpoint is the one file that a run with DDP would have written, so that it goes on
with any number of ranks, under DDP as well; mixed precision is autocast's, with weights and
gradients in float32, as in every other strategy.
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
"""Parameters of a block that is gathered by itself; smaller messages cost more than they save."""


class FSDP(DDPStrategy):
    """Lightning's DDP strategy, but ``network`` of the model is sharded rather than wrapped.

    A compiled network is several graphs then, as a block is gathered between two of them.

    An evaluation without training before it has nothing to shard: each rank holds the whole model.
    """

    strategy_name = "fsdp"

    def setup(self, trainer: Trainer) -> None:
        if trainer.state.fn == TrainerFn.FITTING or not _is_sharded(self._network()):
            super().setup(trainer)
            return
        # Evaluation after training: the ranks are equal already, and hold what cannot be broadcast.
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
        # What an error in a forward pass leaves gathered cannot be moved to the CPU at the end,
        # which would hide that error behind another.
        for module in self.lightning_module.modules() if self.lightning_module else ():
            if isinstance(module, FSDPModule):
                module.set_reshard_after_forward(True, recurse=False)
                module.reshard()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights, on the first rank's CPU. Every rank has to ask for them."""
        return _whole(super().lightning_module_state_dict(), self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As without shards, on the first rank's CPU. Every rank has to ask for it."""
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
                if i < len(parameters)  # of another model: the optimizer says so
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
    """Shards the parameters of ``network`` in place over all ranks.

    Args:
        network: gathered block by block (:func:`blocks` of its ``backbone``), the rest at once.
            Its mask head stays with the rest: in evaluation it runs as often as there is something
            found, on one rank and not on another, which no gathering of its own survives.
        device: "cuda" or "cpu", where the parameters are.
        ranks: the world size.

    Raises:
        InputError: a parameter that cannot be sharded.
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
                module.set_force_sum_reduction_for_comms(True)  # gloo has no average


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """The blocks of a backbone that are large enough to be gathered by themselves.

    They are the innermost elements of its sequences (which are called, as hooks need it) that have
    parts of their own and a million parameters: ResNet's bottlenecks, a transformer's layers.
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
    """``state`` with its shards joined, one after the other; None in their place if not ``keep``:
    a node has memory for one copy rather than for one a GPU."""

    def gather(value: Any) -> Any:
        if isinstance(value, DTensor):
            whole = value.full_tensor()
            return whole.detach().cpu() if keep else None
        return value

    return tree_map(gather, state)


def _share_of(value: Any, like: Tensor) -> Any:
    """This rank's share of ``value``, which all ranks have, where ``like`` is sharded."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        whole = value.to(like.device)
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return value
