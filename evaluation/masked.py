"""The ancestral sampler of masked diffusion (MDLM, arXiv 2406.07524), for any model that predicts masked tokens."""

import torch
from torch import Tensor
from transformers import PreTrainedModel


@torch.no_grad()
def sample_masked(
    model: PreTrainedModel, mask: int, count: int, length: int, num_steps: int, temperature: float, seed: int
) -> Tensor:
    """Write sequences of ids (count, length) from masks, in at most `num_steps` evaluations of the network.

    The step from time t to t' < t reveals each masked position with probability (t - t') / t. The token is drawn from
    the network's distribution there, whose probabilities are computed in float64.

    Args:
        model (`PreTrainedModel`): an [`FLMModel`] that was trained to fill in masks, or a masked language model with
            `logits` (count, length, V) of the tokens in place.
        mask (`int`): id of the mask token, which is never drawn.
        count (`int`), length (`int`): number of sequences, and of tokens in each.
        num_steps (`int`): number of steps on an even grid of times from 1 to 0, >= 1.
        temperature (`float`): temperature of the drawn tokens, > 0.
        seed (`int`): seed of all draws.
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
    """The logits (n, V) at the n positions of `ids` where `wanted` (count, length) is True."""
    if model.config.model_type != "flm":
        return model(input_ids=ids).logits[wanted]
    hidden = model.denoise(model.embed_state(ids), torch.zeros(len(ids), device=ids.device))  # as in training
    return model.logits(hidden[wanted])
