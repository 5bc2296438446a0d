"""The embedding table and the output layer as matrices, also where another layer has replaced them.

The network calls the two as layers, but noise, losses and samplers need their weights. An original layer gives its
parameters, at no cost. A PEFT adapter, a quantised layer or an offloaded one, whose weights a hook brings for the time
of a call, may have no weight to read, or one that differs from what it computes with. So its matrix is found by
calling it: a table on all ids, an output layer on an identity matrix and on zeros. This is exact for layers that are
linear in their input, gives every adapter its gradient, and takes V d and V d^2 of work.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .layers_flm import FLMEmbedding

_PROBE = 256.0  # scale of the identity, so that rounding a bias hardly changes W; a power of 2 adds no rounding


def is_plain(layer: nn.Module, forward: Callable) -> bool:
    """Whether a call of `layer` does nothing but `forward` with its own parameters."""
    if getattr(layer.forward, "__func__", None) is not forward or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    # A tensor that consists of other tensors is quantised or sharded.
    return not any(hasattr(weight, "__tensor_flatten__") or weight.is_meta for weight in layer.parameters())


def place_of(layer: nn.Module) -> torch.device:
    """The device on which a layer computes: that of its weights, or the one to which accelerate's hook moves them."""
    for module in layer.modules():
        hook = getattr(module, "_hf_hook", None)
        for own in getattr(hook, "hooks", [hook]):
            if (place := getattr(own, "execution_device", None)) is not None:
                return torch.device(place)
    return next(layer.parameters()).device


def table_of(layer: nn.Module, vocab_size: int) -> Tensor:
    """The table (V, d) of an embedding layer, or of one that replaces it."""
    if is_plain(layer, FLMEmbedding.forward):
        return layer.weight
    device = place_of(layer)
    with torch.autocast(device.type, enabled=False):
        return layer(torch.arange(vocab_size, device=device))


def matrix_of(layer: nn.Module, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """W (V, d) and b (V,) of a layer that computes `x W^T + b`, for x (..., d) in `dtype`."""
    if is_plain(layer, nn.Linear.forward):
        return layer.weight, layer.bias
    device = place_of(layer)
    with torch.autocast(device.type, enabled=False):
        zero_and_axes = torch.eye(1 + width, width, device=device, dtype=dtype).roll(1, 0)
        bias, rows = layer(_PROBE * zero_and_axes).split([1, width])
        return ((rows - bias) / _PROBE).T, bias[0]
