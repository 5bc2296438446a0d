"""Parameters that are sharded over processes (FSDP2): how to read them whole, and to write each process's part.

[`whole`] and [`part_like`] return a tensor without shards unchanged.
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
    """The whole tensor on each process, without gradient. All processes must call this together."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, other: Tensor) -> Tensor:
    """The part of the whole `tensor` that this process keeps, if `other` is sharded. A part is returned as it is."""
    if isinstance(tensor, DTensor) or not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def gather_anew(module: nn.Module) -> None:
    """Discard gathered copies of sharded parameters, after the parameters were changed other than by a training step.

    FSDP2 gathers the parameters around the blocks for a forward pass, and keeps them until the backward pass. Without
    this call a training step after an evaluation would compute with the weights of the evaluation.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@contextmanager
def sharded_by_blocks(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """A context in which accelerate shards the model block by block, and everything around the blocks as one group.
    Outside of autocast the model is in float32.

    By default accelerate makes the embedding table a group, and the last norm with the output layer another. There are
    three reasons against it. First, a group is whole only while one of its layers is called. So `vocabulary_table` and
    `output_layer` would have to call them, for V d^2 of work and one more gathering of the table at each step. Second,
    FSDP2 expects that both layers of a group are called in turn, but sampling and distillation call the norm alone;
    before torch 2.13 such a pass never ends. Third, mixed precision would be FSDP2's, which rounds weights, times and
    losses; autocast does not.

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
    """Call `function` as if it were the forward pass of a model of [`sharded_by_blocks`]: the parameters around the
    blocks are whole inside of it, and get their gradients."""
    run = getattr(model, _WITHIN_FORWARD, None)
    return function() if run is None else run(function)


def in_autocast(model: nn.Module, accelerator: Accelerator) -> None:
    """Run the model's forward pass in the accelerator's mixed precision, as accelerate does for models not sharded."""
    model.forward = convert_outputs_to_fp32(accelerator.autocast()(model.forward))
