"""The exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """A float32 average of a module's trainable parameters, on their devices.

    Args:
        module (`nn.Module`): whose parameters are followed, and replaced for a while in `applied`.
        decay (`float`): in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
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
        """Take over a saved average, which must have the same names."""
        for name, tensor in self.average.items():
            tensor.copy_(average[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the module carries the average."""
        raw = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            self._write(self.average)
            yield
        finally:
            self._write(raw)

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
