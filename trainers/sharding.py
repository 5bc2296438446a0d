"""Parameters sharded over processes (FSDP2): whole where something reads them, each process's part where it is kept.

A tensor that is not sharded passes through all of this as it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

Result = TypeVar("Result")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on each process; every process must ask for it. No gradient goes through."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, other: Tensor) -> Tensor:
    """This process's part of a whole tensor, which all have, where `other` is sharded; a part stays as it is."""
    if isinstance(tensor, DTensor) or not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


@contextmanager
def sharded_by_blocks(model: nn.Module, plugin: FullyShardedDataParallelPlugin) -> Iterator[None]:
    """What accelerate shards within the context it shards by blocks, with all that is around them as one group.

    Left alone, it would give the embedding table and the output layer groups of their own, whole within the calls of
    these layers alone: but noise, losses and samplers read both in other places. And with mixed precision it would
    round the weights and the times before autocast sees them, which without sharding it does not.

    Raises:
        ValueError: the plugin asks for FSDP1, or for checkpoints without whole weights.
    """
    if plugin.fsdp_version != 2:
        raise ValueError(f"`fsdp_version` is {plugin.fsdp_version}, but the models are sharded by FSDP2 only: set 2.")
    if plugin.state_dict_type.name != "FULL_STATE_DICT":
        raise ValueError(
            f"`state_dict_type` is {plugin.state_dict_type.name}, which saves no model that can be loaded: set "
            "FULL_STATE_DICT."
        )
    plugin.mixed_precision_policy = None
    hidden = ("get_input_embeddings", "get_output_embeddings")
    for name in hidden:
        setattr(model, name, lambda: None)
    try:
        yield
    finally:
        for name in hidden:
            delattr(model, name)
    # An instance's method, since that is what FSDP2 registers: see `within_forward`.
    setattr(model, _WITHIN, lambda function: function())
    register_fsdp_forward_method(model, _WITHIN)


_WITHIN = "_within_forward"


def within_forward(model: nn.Module, function: Callable[[], Result]) -> Result:
    """`function()`, taken for the forward pass of a model of [`sharded_by_blocks`]: what is around its blocks is whole
    in there, and gets its gradient."""
    return getattr(model, _WITHIN)(function) if isinstance(model, FSDPModule) else function()
