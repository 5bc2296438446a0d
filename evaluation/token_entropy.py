"""Unigram entropy in nats: of the tokens within each sample, and of all samples together."""

import datasets
import evaluate

from .text import pool_entropy, token_entropy, words

INPUTS = """
Args:
    predictions: samples, as ids or as texts, whose words count.
Returns:
    token_entropy: mean over samples of the entropy within each, an empty one's being 0.
    pool_entropy: of all tokens of all samples.
    sample_entropies: of each sample.
"""


class TokenEntropy(evaluate.Metric):
    def _info(self):
        kinds = (datasets.Sequence(datasets.Value("int64")), datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=INPUTS,
            features=[datasets.Features({"predictions": kind}) for kind in kinds],
        )

    def _compute(self, predictions):
        rows = words(predictions)
        entropies = token_entropy(rows)
        return {
            "token_entropy": float(entropies.mean()),
            "pool_entropy": pool_entropy(rows),
            "sample_entropies": entropies.tolist(),
        }
