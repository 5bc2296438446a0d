"""Novelty: the share of a sample's n-grams that the training text lacks, and the longest run of tokens it has."""

import evaluate

from .metric import information
from .text import longest_matches, memorised, words

INPUTS = """
Args:
    predictions: samples, as rows of ids or as texts. Texts are split into words at white space.
    training: the training text in the same form, rows of ids or texts. It is read once, so a generator will do.
    n: number of tokens of an n-gram, default 8.
Returns:
    novelty: mean over samples of the share of n-grams that occur in no row of the training text.
    longest_run: number of tokens of the longest run of a sample that occurs in a row of the training text.
    sample_longest_runs: the same of each sample.
"""


class Novelty(evaluate.Metric):
    def _info(self):
        citation = "McCoy et al., How much do language models copy from their training data?, TACL 2023"
        return information(__doc__, INPUTS, citation)

    def _compute(self, predictions, training, n=8):
        training = (row.split() if isinstance(row, str) else row for row in training)
        matches = longest_matches(words(predictions), training)
        longest = [int(match.max(initial=0)) for match in matches]
        return {
            "novelty": float(1 - memorised(matches, n).mean()),
            "longest_run": max(longest),
            "sample_longest_runs": longest,
        }
