"""The exponential moving average of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .sharding import gather_anew, part_like


class EMA:
    """An exponential moving average of a module's trainable parameters, in float32 and on their devices.

    After optimiser step n the average a of a parameter p becomes `d a + (1 - d) p`, where d is the smaller of `decay`
    and (1 + n) / (10 + n), so that the initial weights are soon forgotten. If parameters are sharded, each process
    averages its own part.

    Args:
        module (`nn.Module`): the module whose parameters are averaged.
        decay (`float`): d, in [0, 1); at 0 the average is the parameters themselves.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.module, self.decay = module, decay
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the current parameters to the average, after optimiser step `step` (from 1 on)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.float(), 1 - decay)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Set the average to values given by name: unsharded tensors, or this process's parts of sharded ones."""
        for name, tensor in self.average.items():
            tensor.copy_(part_like(values[name], tensor))

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Set the parameters to values given by name: unsharded tensors, or this process's parts of sharded ones."""
        for name, parameter in self.parameters.items():
            parameter.copy_(part_like(values[name], parameter))
        gather_anew(self.module)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the module's parameters are the averaged ones."""
        raw = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            self.write(self.average)
            yield
        finally:
            self.write(raw)
