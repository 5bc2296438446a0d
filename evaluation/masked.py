"""Ancestral sampling of masked diffusion (MDLM, arXiv 2406.07524), from any model that predicts masked tokens."""

import torch
from torch import Tensor
from transformers import PreTrainedModel


@torch.no_grad()
def sample_masked(
    model: PreTrainedModel, mask: int, count: int, length: int, num_steps: int, temperature: float, seed: int
) -> Tensor:
    """Ids (count, length), from masks only, in at most `num_steps` evaluations of the network.

    In each step every masked position is revealed with probability (t - t') / t, by a token drawn from the network's
    distribution; the draws are exact (probabilities, in float64).

    Args:
        model: an [`FLMModel`] trained to fill in masks, or a masked language model whose `logits` (count, length, V)
            are those of the tokens in place.
        mask (`int`): id of the mask token, which is never drawn.
        temperature (`float`): of the drawn tokens, > 0.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((count, length), mask)
    for step in range(num_steps):
        reveal = (ids == mask) & (torch.rand(count, length, generator=generator) < 1 / (num_steps - step))
        if reveal.any():
            logits = _logits(model, ids.to(model.device), reveal.to(model.device)).cpu().double() / temperature
            logits[:, mask] = -torch.inf
            ids[reveal] = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    return ids


def _logits(model, ids: Tensor, wanted: Tensor) -> Tensor:
    """Of the `wanted` positions of `ids`: (number of them, V)."""
    if model.config.model_type != "flm":
        return model(input_ids=ids).logits[wanted]
    hidden = model.denoise(model.embed_state(ids), torch.zeros(len(ids), device=ids.device))  # the time is not told
    return model.logits(hidden[wanted])
