"""Repetition: the share of a sample's n-grams that occurred earlier in it (rep-n, seq-rep-n)."""

import evaluate

from .metric import information
from .text import repetition, words

INPUTS = """
Args:
    predictions: samples, as rows of ids or as texts. Texts are split into words at white space.
    n: number of tokens of an n-gram, default 4.
Returns:
    repetition: mean over samples, in [0, 1). A sample of fewer than n tokens counts as 0.
    sample_repetitions: the share of each sample.
"""


class Repetition(evaluate.Metric):
    def _info(self):
        citation = "Welleck et al., Neural Text Generation with Unlikelihood Training, ICLR 2020"
        return information(__doc__, INPUTS, citation)

    def _compute(self, predictions, n=4):
        shares = repetition(words(predictions), n)
        return {"repetition": float(shares.mean()), "sample_repetitions": shares.tolist()}
