"""The embedding table and the output layer as matrices, read off whatever layer stands in their place.

The network calls the two as layers; noise, losses and samplers need their weights. A layer as it was made gives its
parameters, at no cost. A PEFT adapter, a quantised layer or one whose weights an offloading hook brings for the time
of a call has no such weight to read, or another than it computes with. So the matrix is read off calls of the layer:
of the table on all ids, of the output layer on an identity matrix and on zeros. That is exact for what is linear in
its input, gives every adapter its gradient, and costs V d and V d^2.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .layers_flm import FLMEmbedding

_PROBE = 256.0  # so that a bias is small beside it, whose rounding the weights would get; a power of 2 rounds none


def is_plain(layer: nn.Module, forward: Callable) -> bool:
    """Whether calls of `layer` are `forward` on its own parameters, and nothing else."""
    if getattr(layer.forward, "__func__", None) is not forward or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    # A tensor made of others is quantised or sharded.
    return not any(hasattr(weight, "__tensor_flatten__") or weight.is_meta for weight in layer.parameters())


def place_of(layer: nn.Module) -> torch.device:
    """The device that a layer computes on: that of its weights, but where a hook of accelerate's brings them."""
    for module in layer.modules():
        hook = getattr(module, "_hf_hook", None)
        for own in getattr(hook, "hooks", [hook]):
            if (place := getattr(own, "execution_device", None)) is not None:
                return torch.device(place)
    return next(layer.parameters()).device


def table_of(layer: nn.Module, vocab_size: int) -> Tensor:
    """The table (V, d) of an embedding layer."""
    if is_plain(layer, FLMEmbedding.forward):
        return layer.weight
    device = place_of(layer)
    with torch.autocast(device.type, enabled=False):
        return layer(torch.arange(vocab_size, device=device))


def matrix_of(layer: nn.Module, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """W (V, d) and b (V,) of a layer that computes `x W^T + b` of x (..., d) in `dtype`."""
    if is_plain(layer, nn.Linear.forward):
        return layer.weight, layer.bias
    device = place_of(layer)
    with torch.autocast(device.type, enabled=False):
        zero_and_axes = torch.eye(1 + width, width, device=device, dtype=dtype).roll(1, 0)
        bias, rows = layer(_PROBE * zero_and_axes).split([1, width])
        return ((rows - bias) / _PROBE).T, bias[0]
