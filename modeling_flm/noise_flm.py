"""Noise: the seeds from which it is drawn, and the embedding of Gaussian noise over the vocabulary."""

import functools
import hashlib
import operator
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .clock_flm import at_least_float32, finest


def as_seeds(name: str, seeds: Tensor | Sequence[int], count: int) -> list[int]:
    """Read seeds, which must be `count` integers in [-2**63, 2**64), as a list.

    Raises:
        ValueError: if they are anything else; the message calls them `name`.
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
    """A seed in [0, 2**63) for each row of `ids` (batch, length): a hash of its tokens without padding.

    It is the same in any batch, and for any padding (`attention_mask` 0), dtype and device. On an accelerator the host
    waits for the ids.
    """
    rows = ids.detach().cpu().numpy().astype("<i8")
    real = np.ones(rows.shape, bool) if attention_mask is None else attention_mask.bool().cpu().numpy()
    digests = (
        hashlib.blake2b(row[here].tobytes(), digest_size=8).digest() for row, here in zip(rows, real, strict=True)
    )
    return [int.from_bytes(digest, "little") >> 1 for digest in digests]


def step_seeds(seeds: Sequence[int], step: int) -> list[int]:
    """Seeds for the `step`-th draw of sequences that have one seed each: at step 0 the seeds themselves, at later ones
    numbers that are unrelated to them and to one another (SplitMix64)."""
    if step == 0:
        return list(seeds)
    return [_mix((_mix(seed % 2**64) + step * 0x9E3779B97F4A7C15) % 2**64) for seed in seeds]


def _mix(number: int) -> int:
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
    return number ^ (number >> 31)


def white_noise(
    seeds: Sequence[int],
    length: int,
    width: int,
    device: torch.device,
    longest: int | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw from each seed standard normal noise (batch, length, width) and a uniform number (batch,), both float32.

    Each sequence has a generator of its own, so that its noise does not depend on the batch. With `longest`, that many
    positions are drawn and the first `length` of them kept, so that it does not depend on the padding either. With
    `attention_mask` the noise of a seed begins at the first token that is not padding.
    """
    noise = torch.empty(len(seeds), length, width, device=device, dtype=torch.float32)
    uniform = torch.empty(len(seeds), device=device, dtype=torch.float32)
    drawn = torch.empty(max(length, longest or 0), width, device=device, dtype=torch.float32)
    generator = torch.Generator(device)
    for row, number, seed in zip(noise, uniform, seeds, strict=True):
        generator.manual_seed(seed)
        row.copy_(drawn.normal_(generator=generator)[:length])
        number.uniform_(generator=generator)
    return to_where_text_begins(noise, attention_mask), uniform


def to_where_text_begins(x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Rotate each row of `x` (batch, length, ...) right by its padding on the left (`attention_mask` 0), so that what
    was drawn for the first position goes to the first token of the text."""
    if attention_mask is None:
        return x
    first = attention_mask.bool().int().argmax(1, keepdim=True)
    place = (torch.arange(x.shape[1], device=x.device) - first.to(x.device)) % x.shape[1]
    return x.gather(1, place.reshape(*place.shape, *(1,) * (x.ndim - 2)).expand_as(x))


_TABLE_ROWS = 1 << 13  # rows of a table that are converted to another precision at a time


class NoiseLaw:
    """A cache of the law of embedded noise for some tables: their Gram matrix and its Cholesky factor.

    They are computed at the first use and kept. So an object serves as long as the tables do not change, for example
    over the micro-batches of a step.
    """

    def __init__(self):
        self._known: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def of(self, *tables: Tensor) -> tuple[Tensor, Tensor]:
        """The Gram matrix E^T E of the tables side by side, E (V, d), and its Cholesky factor C, both (d, d)."""
        if self._known is None:
            gram = functools.reduce(torch.add, (rows.T @ rows for rows in _rows(tables)))
            # A ridge keeps a singular matrix positive definite. The sum is above the rounding errors in any case, and
            # in float64 hardly changes the law. In float32 the mean nearly always does.
            errors = 10 * torch.finfo(gram.dtype).eps * gram.diagonal()
            factor, _ = _factored(gram, errors.sum())
            if len(tables) == 1:
                less_changed, failed = _factored(gram, errors.mean())
                factor = torch.where(failed.bool(), factor, less_changed)
            self._known = gram, factor.to(gram)
        return self._known


def _factored(gram: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor]:
    """The Cholesky factor of `gram` with a ridge, in float64, and whether there is none (not 0): the error check of
    `cholesky` would make the host wait."""
    square = in_float64(gram)
    eye = torch.eye(len(gram), device=square.device, dtype=torch.float64)
    return torch.linalg.cholesky_ex(square + ridge.to(square) * eye)


class _Gram(torch.autograd.Function):
    """Ebar^T E with Ebar = stopgrad(E), whose value is given. Its gradient in E is Ebar times that of the value."""

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
    """The tables side by side, some rows at a time: a single table in at least float32, several in float64."""
    for some in zip(*(table.split(_TABLE_ROWS) for table in tables), strict=True):
        yield some[0].to(at_least_float32(some[0])) if len(some) == 1 else in_float64(torch.cat(some, dim=1))


def in_float64(x: Tensor) -> Tensor:
    """`x` in float64, on its device or, if that has no float64, on the CPU."""
    return (x if finest(x.device) == torch.float64 else x.cpu()).double()


def embedded_noise(white: Tensor, *tables: Tensor, law: NoiseLaw | None = None) -> tuple[Tensor, ...]:
    """The embedding `x0 @ E` of noise x0 ~ N(0, I_V) over the vocabulary, drawn without x0 at a cost per token that
    does not depend on V.

    For one table E (V, d), and white noise xi ~ N(0, I_d), it is

        noise = (xi C^-1) @ (Ebar^T E),     C C^T = Ebar^T Ebar,     Ebar = stopgrad(E).

    The value xi C^T is N(0, E^T E) per token, the exact law of `x0 @ E`. The gradient is E[x0 | x0 E]^T g, the
    conditional expectation (Rao-Blackwellisation) of the dense gradient x0^T g: it has the same mean, and never a
    larger variance.

    Several tables E_1 (V, d_1), E_2 (V, d_2), ... get embeddings of the same noise x0, with their exact joint law.
    They are treated as one concatenated table, in float64, since similar tables make its Gram matrix singular.

    Args:
        white (`Tensor`): (..., d_1 + d_2 + ...) standard normal noise.
        tables (`Tensor`): (V, d_i) each.
        law (`NoiseLaw`, *optional*): the cache of these tables. Default: their law is computed anew.

    Returns:
        one tensor (..., d_i) per table, at least float32.
    """
    gram, factor = (law or NoiseLaw()).of(*tables)
    if torch.is_grad_enabled():
        gram = _Gram.apply(gram, *tables)
    whitened = torch.linalg.solve_triangular(factor, white.to(gram), upper=False, left=False)
    noise = (whitened @ gram).to(white.device, at_least_float32(tables[0]))
    return noise.split([table.shape[1] for table in tables], dim=-1)
