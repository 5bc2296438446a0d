"""Metrics of samples: how likely a scorer finds them, and how varied they are. All take token ids (n, length)."""

import numpy as np
import sacrebleu
import torch
from torch import Tensor
from transformers import PreTrainedModel


def token_entropy(ids: np.ndarray) -> np.ndarray:
    """Entropy in nats of the distribution of tokens within each sample: (n,), at most log(length)."""
    entropies = []
    for row in ids:
        share = np.unique(row, return_counts=True)[1] / len(row)
        entropies.append(-(share * np.log(share)).sum())
    return np.array(entropies)


def distinct_n(ids: np.ndarray, n: int) -> float:
    """Share of different n-grams among all n-grams of all samples (Li et al., 2016)."""
    grams = np.lib.stride_tricks.sliding_window_view(ids, n, axis=1).reshape(-1, n)
    return len(np.unique(grams, axis=0)) / len(grams)


def self_bleu(ids: np.ndarray) -> float:
    """Mean BLEU-4, in [0, 1], of each sample against all others (Zhu et al., 2018): 1 where all are the same."""
    lines = [" ".join(map(str, row)) for row in ids]
    scores = []
    for i, line in enumerate(lines):
        others = lines[:i] + lines[i + 1 :]
        scores.append(sacrebleu.sentence_bleu(line, others, tokenize="none", smooth_method="exp").score)
    return float(np.mean(scores)) / 100


@torch.no_grad()
def causal_losses(scorer: PreTrainedModel, ids: Tensor, batch_size: int = 32) -> np.ndarray:
    """-log p in nats of each token but the first under a causal language model of the same tokens: (n, length - 1).

    The ids are scored as they are, special tokens included and nothing retokenised. exp of the mean over all tokens of
    all samples is the generative perplexity.
    """
    losses = []
    for batch in ids.split(batch_size):
        logits = scorer(batch.to(scorer.device)).logits[:, :-1].float()
        target = batch[:, 1:].to(scorer.device)
        losses.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none").cpu())
    return torch.cat(losses).numpy()
