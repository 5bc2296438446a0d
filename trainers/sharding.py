"""Parameters sharded over processes (FSDP2): whole where something reads them, each process's part where it is kept.

A tensor that is not sharded passes through all of this as it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import DynamoBackend, convert_outputs_to_fp32
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

Result = TypeVar("Result")

_WITHIN_FORWARD = "_within_forward"


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on each process; every process must ask for it. No gradient goes through."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, other: Tensor) -> Tensor:
    """This process's part of a whole tensor, which all have, where `other` is sharded; a part stays as it is."""
    if isinstance(tensor, DTensor) or not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def gather_anew(module: nn.Module) -> None:
    """Let go of what has been gathered of sharded parameters, which have changed other than by a step of training.

    What is around the blocks is gathered for a forward pass and kept until a backward pass: after an evaluation the
    next step would train with its weights.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@contextmanager
def sharded_by_blocks(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Where accelerate shards the model within the context, it does so by blocks, with all that is around them in one
    group; the model is float32 outside of autocast.

    Left alone, accelerate gives the embedding table a group of its own, and the last norm with the output layer
    another, whole within their calls alone. `vocabulary_table` and `output_layer` would make those calls, for V d^2 of
    work a step and one more gathering of the table. But a group of two layers takes it that both are called in turn,
    and sampling and distillation call the norm alone: before torch 2.13 its pass would not end. And mixed precision is
    then FSDP2's: it would round weights, times and losses, which autocast does not.

    Raises:
        ValueError: FSDP1 is asked for, checkpoints without whole weights, or a compiled model.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"`fsdp_version` is {plugin.fsdp_version}, but models are sharded by FSDP2 only: set it to 2."
        )
    if plugin.state_dict_type.name != "FULL_STATE_DICT":
        raise ValueError(
            f"`state_dict_type` is {plugin.state_dict_type.name}, whose checkpoints are no models to load: set it to "
            "FULL_STATE_DICT."
        )
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:  # accelerate shards the compiled model around it
        raise ValueError("`torch_compile` is set, but sharded parameters are not compiled: leave it or `fsdp` out.")
    if hasattr(model, _WITHIN_FORWARD):  # sharded by an earlier call of `train`
        yield
        return
    in_autocast(model, accelerator)
    plugin.mixed_precision_policy = None
    names = ("get_input_embeddings", "get_output_embeddings")
    for name in names:
        setattr(model, name, lambda: None)
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)
    # It has a class of FSDP2's making now, but `save_pretrained` is to find the code and the name of its own.
    sharded, own = type(model), type(model).__bases__[1]
    sharded.__module__, sharded.__name__, sharded.__qualname__ = own.__module__, own.__name__, own.__qualname__
    # FSDP2 registers methods by name: see `within_forward`.
    setattr(model, _WITHIN_FORWARD, lambda function: function())
    register_fsdp_forward_method(model, _WITHIN_FORWARD)


def within_forward(model: nn.Module, function: Callable[[], Result]) -> Result:
    """`function()`, taken for the forward pass of a model of [`sharded_by_blocks`]: what is around its blocks is whole
    in there, and gets its gradient."""
    run = getattr(model, _WITHIN_FORWARD, None)
    return function() if run is None else run(function)


def in_autocast(model: nn.Module, accelerator: Accelerator) -> None:
    """Let the forward pass have the accelerator's mixed precision, which it gives to all but sharded models."""
    model.forward = convert_outputs_to_fp32(accelerator.autocast()(model.forward))
