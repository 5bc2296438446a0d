"""Distinct-n: the number of different n-grams of all samples, as a share of all their n-grams."""

import evaluate

from .metric import information
from .text import distinct_n, words

INPUTS = """
Args:
    predictions: samples, as rows of ids or as texts. Texts are split into words at white space.
    n: number of tokens of an n-gram, default 2.
Returns:
    distinct_n: in (0, 1], or 0 where no sample has n tokens. It falls as the number of samples grows, so compare sets
        of equal size only.
"""


class DistinctN(evaluate.Metric):
    def _info(self):
        citation = "Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models, NAACL 2016"
        return information(__doc__, INPUTS, citation)

    def _compute(self, predictions, n=2):
        return {"distinct_n": distinct_n(words(predictions), n)}
