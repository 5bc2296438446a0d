"""Noise: the seeds that it is drawn from, and Gaussian noise over the vocabulary as the embedded space sees it."""

import functools
import hashlib
import operator
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .clock_flm import at_least_float32


def as_seeds(name: str, seeds: Tensor | Sequence[int], count: int) -> list[int]:
    """`count` seeds as a list of integers.

    Raises:
        ValueError: they are anything else; the message calls them `name`.
    """
    try:
        numbers = [operator.index(seed) for seed in (seeds.tolist() if isinstance(seeds, Tensor) else seeds)]
    except TypeError:
        raise ValueError(f"`{name}` must be integers, one per sequence, but is {seeds!r}.") from None
    if len(numbers) != count:
        raise ValueError(f"`{name}` has {len(numbers)} entries for {count} sequences: one each is needed.")
    if not all(-(2**63) <= number < 2**64 for number in numbers):
        raise ValueError(f"`{name}` must lie in [-2**63, 2**64), but is {seeds!r}.")
    return numbers


def seeds_of(ids: Tensor, attention_mask: Tensor | None = None) -> list[int]:
    """A seed in [0, 2**63) for each row of `ids` (batch, length): a hash of its tokens but for padding
    (`attention_mask` 0), the same in any batch and for any padding, dtype and device. The host waits for the device.
    """
    rows = ids.detach().cpu().numpy().astype("<i8")
    real = np.ones(rows.shape, bool) if attention_mask is None else attention_mask.bool().cpu().numpy()
    digests = (
        hashlib.blake2b(row[here].tobytes(), digest_size=8).digest() for row, here in zip(rows, real, strict=True)
    )
    return [int.from_bytes(digest, "little") >> 1 for digest in digests]


def step_seeds(seeds: Sequence[int], step: int) -> list[int]:
    """Seeds for the `step`-th draw of sequences that have one seed each: the seeds themselves at step 0, numbers
    unrelated to them and to one another (SplitMix64) after it.
    """
    if step == 0:
        return list(seeds)
    return [_mix((_mix(seed % 2**64) + step * 0x9E3779B97F4A7C15) % 2**64) for seed in seeds]


def _mix(number: int) -> int:
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
    return number ^ (number >> 31)


def white_noise(
    seeds: Sequence[int], length: int, width: int, device: torch.device, longest: int | None = None
) -> tuple[Tensor, Tensor]:
    """Standard normal noise (batch, length, width) and a uniform number (batch,) of each seed, float32.

    Each sequence has a generator of its own: what a seed gives does not depend on the batch around it. With `longest`,
    so many positions are drawn and the first `length` kept: then it does not depend on the padding either.
    """
    noise = torch.empty(len(seeds), length, width, device=device)
    uniform = torch.empty(len(seeds), device=device)
    drawn = torch.empty(max(length, longest or 0), width, device=device)
    generator = torch.Generator(device)
    for row, number, seed in zip(noise, uniform, seeds, strict=True):
        generator.manual_seed(seed)
        row.copy_(drawn.normal_(generator=generator)[:length])
        number.uniform_(generator=generator)
    return noise, uniform


def to_where_text_begins(x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Rows of `x` (batch, length, ...) moved right, round the end, by the padding (`attention_mask` 0) on their left:
    what was drawn for a text goes with its tokens, not with the columns of the batch."""
    if attention_mask is None:
        return x
    first = attention_mask.bool().int().argmax(1, keepdim=True)
    place = (torch.arange(x.shape[1], device=x.device) - first.to(x.device)) % x.shape[1]
    return x.gather(1, place.reshape(*place.shape, *(1,) * (x.ndim - 2)).expand_as(x))


_TABLE_ROWS = 1 << 13  # of embedding tables, copied at a time where they are needed in another precision


class NoiseLaw:
    """The law of the noise that [`embedded_noise`] draws for some tables, worked out at the first use and kept: one
    object serves for as long as those tables stay as they are, over the micro-batches of a step, say.
    """

    def __init__(self):
        self._known: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def of(self, *tables: Tensor) -> tuple[Tensor, Tensor]:
        """E^T E of the tables side by side, E (V, d), and its Cholesky factor C: both (d, d)."""
        if self._known is None:
            gram = functools.reduce(torch.add, (rows.T @ rows for rows in _rows(tables)))
            # The Gram matrix is only known to rounding: the ridge lifts it above that, and changes the law as little.
            ridge = 10 * torch.finfo(gram.dtype).eps * gram.diagonal().mean()
            # The factor itself is taken in float64, without the host synchronisation of an error check.
            square = gram.double() + ridge * torch.eye(len(gram), device=gram.device, dtype=torch.float64)
            self._known = gram, torch.linalg.cholesky_ex(square)[0].to(gram.dtype)
        return self._known


class _Gram(torch.autograd.Function):
    """Ebar^T E with Ebar = stopgrad(E), its value being known: the gradient in E is Ebar times that of the value."""

    @staticmethod
    def forward(ctx, value, *tables):
        ctx.save_for_backward(*tables)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        gradients: list[Tensor | None] = []
        parts = gradient.split([table.shape[1] for table in ctx.saved_tensors], dim=1)
        for table, part, wanted in zip(ctx.saved_tensors, parts, ctx.needs_input_grad[1:], strict=True):
            of_table = torch.empty_like(table) if wanted else None
            if of_table is not None:
                for some, rows in zip(of_table.split(_TABLE_ROWS), _rows(ctx.saved_tensors), strict=True):
                    some.copy_(rows @ part)
            gradients.append(of_table)
        return None, *gradients


def _rows(tables: Sequence[Tensor]) -> Iterator[Tensor]:
    """Some rows at a time of the tables side by side: of one at least in float32, of several in float64."""
    for some in zip(*(table.split(_TABLE_ROWS) for table in tables), strict=True):
        yield some[0].to(at_least_float32(some[0])) if len(some) == 1 else torch.cat(some, dim=1).double()


def embedded_noise(white: Tensor, *tables: Tensor, law: NoiseLaw | None = None) -> tuple[Tensor, ...]:
    """What `x0 @ E` is for x0 ~ N(0, I_V), drawn without x0: the same law, at a cost independent of V per token.

    For one table E (V, d), and white noise xi ~ N(0, I_d),

        noise = (xi C^-1) @ (Ebar^T E),     C C^T = Ebar^T Ebar,     Ebar = stopgrad(E).

    Its value xi C^T is N(0, E^T E) per token, the exact law of `x0 @ E`. Its gradient is E[x0 | x0 E]^T g, the
    conditional expectation (Rao-Blackwellisation) of the dense gradient x0^T g: the same mean, never a larger
    variance.

    Several tables E_1 (V, d_1), E_2 (V, d_2), ... get the embeddings of the SAME noise x0, with the exact joint law:
    the construction is that of the concatenated table, in float64, since similar tables make its Gram matrix singular.

    Args:
        white (`Tensor`): (..., d_1 + d_2 + ...) standard normal.
        tables (`Tensor`): (V, d_i).
        law (`NoiseLaw`, *optional*): of these tables, where it has been used with them before or is to be again.

    Returns:
        one tensor (..., d_i) per table, at least float32.
    """
    gram, factor = (law or NoiseLaw()).of(*tables)
    if torch.is_grad_enabled():
        gram = _Gram.apply(gram, *tables)
    whitened = torch.linalg.solve_triangular(factor, white.to(gram.dtype), upper=False, left=False)
    noise = (whitened @ gram).to(at_least_float32(tables[0]))
    return noise.split([table.shape[1] for table in tables], dim=-1)
