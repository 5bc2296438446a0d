"""Novelty against the training text: the share of n-grams that it has not, and the longest run that it has."""

import datasets
import evaluate

from .text import longest_matches, memorised, words

INPUTS = """
Args:
    predictions: samples, as ids or as texts, whose words count.
    training: the training text in the same form: rows of ids, or texts. It is read once, and may be a generator.
    n: tokens of an n-gram, default 8.
Returns:
    novelty: mean over samples of the share of n-grams that are in no row of the training text.
    longest_run: tokens of the longest run of a sample that is in a row of the training text.
    sample_longest_runs: of each sample.
"""


class Novelty(evaluate.Metric):
    def _info(self):
        kinds = (datasets.Sequence(datasets.Value("int64")), datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="McCoy et al., How much do language models copy from their training data?, TACL 2023",
            inputs_description=INPUTS,
            features=[datasets.Features({"predictions": kind}) for kind in kinds],
        )

    def _compute(self, predictions, training, n=8):
        training = (row.split() if isinstance(row, str) else row for row in training)
        matches = longest_matches(words(predictions), training)
        longest = [int(match.max(initial=0)) for match in matches]
        return {
            "novelty": float(1 - memorised(matches, n).mean()),
            "longest_run": max(longest),
            "sample_longest_runs": longest,
        }
