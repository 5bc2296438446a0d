"""The clock tau(t): the scale of time on which the network is conditioned (section 3.2 of arXiv 2602.16813).

Interpolation time t runs from noise (0) to data (1), but for most of it nothing is decided. With V tokens, decoding
x_t by argmax almost always fails until t is close to one half, and almost never afterwards. On the scale of tau the
decoding error falls evenly. So the network is conditioned on tau, and samplers step on a grid of tau.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

_KNOTS = 2048  # cells of the table per unit of t, for an interpolation error of about 1e-10
_WITHOUT_FLOAT64 = {"mps"}  # types of devices
_TAIL = 1e-12  # the table ends where 1 - tau falls below this; from there a straight line leads to (1, 1)


@functools.lru_cache(maxsize=16)
def _clock_table(vocab_size: int) -> np.ndarray:
    """The table of tau(t), a cubic in each cell: (cells, 4) float64 coefficients.

    In cell k, tau = c0 + w (c1 + w (c2 + w c3)) with w = t - k / _KNOTS: the cubic Hermite interpolant of the values
    and exact derivatives at the knots. With m = t / (1 - t) and F = Phi^(V-1), the decoding error is
    `1 - P = int phi(w - m) (1 - F(w)) dw`. The integrand is analytic, so that the trapezoid rule converges
    exponentially. Working with 1 - F keeps both tau and 1 - tau accurate.
    """
    knots = np.arange(int(_KNOTS * 0.95)) / _KNOTS
    m = knots / (1 - knots)
    step = 1 / 64
    w = np.arange(-14.0, m[-1] + 14.0, step)
    tail = np.array([math.erfc(v) for v in np.abs(w) / math.sqrt(2)]) / 2  # 1 - Phi(|w|)
    with np.errstate(divide="ignore"):
        log_phi = np.where(w > 0, np.log1p(-tail), np.log(tail))
    miss = -np.expm1((vocab_size - 1) * log_phi)  # 1 - F(w)
    shifted = w[None, :] - m[:, None]
    density = np.exp(-0.5 * shifted**2) * (step / math.sqrt(2 * math.pi))
    error = density @ miss
    slope_in_m = -(density * shifted) @ miss
    scale = vocab_size / (vocab_size - 1)
    tau = 1 - scale * error
    slope = scale * slope_in_m / (1 - knots) ** 2
    tau[0] = 0.0
    last = int(np.argmax(1 - tau < _TAIL))
    tau, slope, knots = tau[: last + 1], slope[: last + 1], knots[: last + 1]

    h = 1 / _KNOTS
    secant = np.diff(tau) / h
    pieces = np.zeros((last + 1, 4))
    pieces[:, 0] = tau
    pieces[:-1, 1] = slope[:-1]
    pieces[:-1, 2] = (3 * secant - 2 * slope[:-1] - slope[1:]) / h
    pieces[:-1, 3] = (slope[:-1] + slope[1:] - 2 * secant) / h**2
    pieces[-1, 1] = (1 - tau[-1]) / (1 - knots[-1])
    return pieces


class Clock:
    """The change of time between t and tau for a vocabulary of V tokens.

        P(t) = E_{z ~ N(0,1)}[ Phi(z + t / (1 - t))^(V-1) ],   tau(t) = (V P(t) - 1) / (V - 1)

    P is the probability that decoding x_t by argmax is right, so 1 - tau is the decoding error, normalised. Both
    directions and the derivative are read from a table of 60 kB, on the device of their argument and without host
    synchronisation. They are exact at 0 and 1, and within 1e-9 of the closed form elsewhere. The table is neither a
    parameter nor a buffer: casting a model, or loading it on the meta device, leaves it as it is.

    Args:
        vocab_size (`int`): V >= 2.
    """

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self._pieces = _clock_table(vocab_size)
        self._on_device: dict[torch.device, Tensor] = {}

    def _table(self, device: torch.device) -> Tensor:
        """The table on a device, where a copy is kept."""
        if device not in self._on_device:
            self._on_device[device] = torch.from_numpy(self._pieces).to(device, finest(device))
        return self._on_device[device]

    def tau(self, t: Tensor) -> Tensor:
        """tau at interpolation times t in [0, 1], in the same shape and at least float32. Differentiable."""
        table = self._table(t.device)
        cell, w = self._locate(table, t)
        c0, c1, c2, c3 = table[cell].unbind(-1)
        tau = c0 + w * (c1 + w * (c2 + w * c3))
        return torch.where(t >= 1, 1, tau).to(at_least_float32(t))

    def dtau_dt(self, t: Tensor) -> Tensor:
        """The derivative of tau at t in [0, 1], in the same shape and at least float32."""
        table = self._table(t.device)
        cell, w = self._locate(table, t)
        _, c1, c2, c3 = table[cell].unbind(-1)
        return (c1 + w * (2 * c2 + w * (3 * c3))).to(at_least_float32(t))

    def t(self, tau: Tensor) -> Tensor:
        """The interpolation times t of tau in [0, 1], the inverse of `tau`, in the same shape and at least float32.
        Differentiable."""
        table = self._table(tau.device)
        goal = tau.to(table.dtype)
        knots = table[:, 0].contiguous()
        cell = (torch.searchsorted(knots, goal.detach().contiguous(), right=True) - 1).clamp(0, len(knots) - 1)
        c0, c1, c2, c3 = table[cell].unbind(-1)
        start = cell.to(table.dtype) / _KNOTS
        width = torch.where(cell == len(knots) - 1, 1 - start, 1 / _KNOTS)

        def newton(w: Tensor, target: Tensor) -> Tensor:
            value = c0 + w * (c1 + w * (c2 + w * c3))
            return w - (value - target) / (c1 + w * (2 * c2 + w * (3 * c3)))

        w = torch.zeros_like(start)
        for _ in range(4):  # few steps are enough, since the cubic is nearly straight within a cell
            w = newton(w, goal.detach()).clamp(min=torch.zeros_like(w), max=width)
        w = newton(w, goal)  # with gradient: this step has the derivative dt/dtau
        t = torch.where(goal >= 1, 1, torch.where(goal < 0, 0, start + w))
        return t.to(at_least_float32(tau))

    @staticmethod
    def _locate(table: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The cell of each t, and the distance from the left end of the cell."""
        t = t.to(table.dtype)
        cell = (t.detach() * _KNOTS).long().clamp(0, len(table) - 1)
        return cell, t - cell.to(table.dtype) / _KNOTS


def finest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no float64."""
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


def at_least_float32(x: Tensor) -> torch.dtype:
    """The dtype of `x`, or float32 if that of `x` is less precise."""
    return torch.promote_types(x.dtype, torch.float32)
