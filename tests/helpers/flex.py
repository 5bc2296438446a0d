"""Whether torch's own flex_attention can be trusted on this CPU: of some shapes it is wrong on some (torch 2.13)."""

import functools

import torch
from torch.nn.attention.flex_attention import flex_attention


@functools.cache
@torch.no_grad()
def flex_is_right(heads: int, length: int, head_dim: int, batch: int = 2) -> bool:
    """Of ten draws at this shape, compiled, with soft-capped scores: all within 1e-4 of the plain formula.

    Heads lie beside one another in memory, as in transformers' models: of contiguous ones it is right. With AVX2 alone
    it then reads memory that it has not written, and what it finds there is chance: no draw can clear it.
    """
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        return False
    compiled = torch.compile(flex_attention)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        q, k, v = torch.randn(3, batch, length, heads, head_dim, generator=generator).transpose(2, 3)
        found = compiled(q, k, v, score_mod=lambda score, *_: 50 * torch.tanh(score / 50))
        scores = q @ k.transpose(-1, -2) * head_dim**-0.5
        plain = (50 * torch.tanh(scores / 50)).softmax(-1) @ v
        if not (found - plain).abs().max() < 1e-4:  # a NaN is no less than anything
            return False
    return True
