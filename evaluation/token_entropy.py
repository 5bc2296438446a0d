"""Unigram entropy in nats: of the tokens within each sample, and of those of all samples together."""

import evaluate

from .metric import information
from .text import pool_entropy, token_entropy, words

INPUTS = """
Args:
    predictions: samples, as rows of ids or as texts. Texts are split into words at white space.
Returns:
    token_entropy: mean over samples of the entropy within each, which is 0 for an empty one.
    pool_entropy: entropy of all tokens of all samples together.
    sample_entropies: the entropy within each sample.
"""


class TokenEntropy(evaluate.Metric):
    def _info(self):
        return information(__doc__, INPUTS)

    def _compute(self, predictions):
        rows = words(predictions)
        entropies = token_entropy(rows)
        return {
            "token_entropy": float(entropies.mean()),
            "pool_entropy": pool_entropy(rows),
            "sample_entropies": entropies.tolist(),
        }
