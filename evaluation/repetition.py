"""Repetition: of each sample, the share of its n-grams that it has already had (rep-n, seq-rep-n)."""

import datasets
import evaluate

from .text import repetition, words

INPUTS = """
Args:
    predictions: samples, as ids or as texts, whose words count.
    n: tokens of an n-gram, default 4.
Returns:
    repetition: mean over samples, in [0, 1); a sample of fewer than n tokens counts as 0.
    sample_repetitions: of each sample.
"""


class Repetition(evaluate.Metric):
    def _info(self):
        kinds = (datasets.Sequence(datasets.Value("int64")), datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Welleck et al., Neural Text Generation with Unlikelihood Training, ICLR 2020",
            inputs_description=INPUTS,
            features=[datasets.Features({"predictions": kind}) for kind in kinds],
        )

    def _compute(self, predictions, n=4):
        shares = repetition(words(predictions), n)
        return {"repetition": float(shares.mean()), "sample_repetitions": shares.tolist()}
