"""The ancestral sampler of masked diffusion (MDLM, arXiv 2406.07524), for any model that predicts masked tokens."""

import torch
from torch import Tensor
from transformers import PreTrainedModel


@torch.no_grad()
def sample_masked(
    model: PreTrainedModel,
    start: Tensor,
    mask: int,
    num_steps: int,
    temperature: float,
    seed: int,
    by_confidence: bool = False,
) -> Tensor:
    """Write the masked tokens of sequences, in at most `num_steps` evaluations of the network.

    ```python
    ids = sample_masked(model, torch.full((4, 128), mask), mask, num_steps=64, temperature=1.0, seed=0)
    ```

    The step from time t to t' < t reveals each masked position with probability (t - t') / t. The token is drawn from
    the network's distribution there, whose probabilities are computed in float64.

    Args:
        model (`PreTrainedModel`): an [`FLMModel`] that was trained to fill in masks, or a masked language model with
            `logits` (count, length, V) of the tokens in place.
        start (`Tensor`): (count, length) ids. Where they are `mask` a token is written; the others are given.
        mask (`int`): id of the mask token, which is never drawn.
        num_steps (`int`): number of steps on an even grid of times from 1 to 0, >= 1.
        temperature (`float`): temperature of the drawn tokens, > 0.
        seed (`int`): seed of all draws.
        by_confidence (`bool`): each step draws all masked tokens, but keeps only those with the highest probability,
            as many as an even grid reveals (MaskGIT, arXiv 2202.04200). The law is then no longer the model's, but
            what follows from the given tokens is written first.

    Returns:
        `Tensor`: (count, length) ids.
    """
    generator, ids = torch.Generator().manual_seed(seed), start.clone()
    for step in range(num_steps):
        share, masked = 1 / (num_steps - step), ids == mask
        reveal = masked if by_confidence else masked & (torch.rand(ids.shape, generator=generator) < share)
        if reveal.any():
            logits = _logits(model, ids.to(model.device), reveal.to(model.device)).cpu().double() / temperature
            logits[:, mask] = -torch.inf
            p = logits.softmax(-1)
            drawn = torch.multinomial(p, 1, generator=generator)
            ids[reveal] = drawn.squeeze(1)
            if by_confidence:
                certainty = p.new_full(ids.shape, -1.0)
                certainty[reveal] = p.gather(1, drawn).squeeze(1)
                rank = certainty.argsort(dim=1, descending=True).argsort(dim=1)
                ids[masked & (rank >= (masked.sum(1, keepdim=True) * share).ceil())] = mask
    return ids


def _logits(model, ids: Tensor, wanted: Tensor) -> Tensor:
    """The logits (n, V) at the n positions of `ids` where `wanted` (count, length) is True."""
    if model.config.model_type != "flm":
        return model(input_ids=ids).logits[wanted]
    hidden = model.denoise(model.embed_state(ids), torch.zeros(len(ids), device=ids.device))  # as in training
    return model.logits(hidden[wanted])
