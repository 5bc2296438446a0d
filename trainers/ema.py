"""The exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .sharding import gather_anew, part_like


class EMA:
    """A float32 average of a module's trainable parameters, where they are: of sharded ones each process has its part.

    Args:
        module (`nn.Module`): whose parameters are followed, and replaced for a while in `applied`.
        decay (`float`): in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float):
        self.module, self.decay = module, decay
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after optimiser step `step` (from 1 on)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.float(), 1 - decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Make the current parameters the average."""
        for name, parameter in self.parameters.items():
            self.average[name].copy_(parameter)

    @torch.no_grad()
    def load(self, average: dict[str, Tensor]) -> None:
        """Take over a saved average: whole tensors, of the same names."""
        for name, tensor in self.average.items():
            tensor.copy_(part_like(average[name], tensor))

    @torch.no_grad()
    def write(self, values: dict[str, Tensor]) -> None:
        """Give the parameters these values, by name: whole tensors, or of sharded parameters each process's part."""
        for name, parameter in self.parameters.items():
            parameter.copy_(part_like(values[name], parameter))
        gather_anew(self.module)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the module carries the average."""
        raw = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            self.write(self.average)
            yield
        finally:
            self.write(raw)
