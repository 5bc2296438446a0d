"""Distinct-n: the share of different n-grams among all n-grams of all samples."""

import datasets
import evaluate

from .text import distinct_n, words

INPUTS = """
Args:
    predictions: samples, as ids or as texts, whose words count.
    n: tokens of an n-gram, default 2. It falls as the number of samples grows: compare equal numbers.
Returns:
    distinct_n: in (0, 1]; 0 where no sample has n tokens.
"""


class DistinctN(evaluate.Metric):
    def _info(self):
        kinds = (datasets.Sequence(datasets.Value("int64")), datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models, NAACL 2016",
            inputs_description=INPUTS,
            features=[datasets.Features({"predictions": kind}) for kind in kinds],
        )

    def _compute(self, predictions, n=2):
        return {"distinct_n": distinct_n(words(predictions), n)}
