"""Known words: the share of a sample's words, and of its pairs of neighbouring words, that the training text has."""

import evaluate

from .metric import information
from .text import known_words

INPUTS = """
Args:
    predictions: samples, as texts. Words are runs of letters in lower case. The first and the last word of a sample
        are left out, as it may begin and end within a word.
    training: documents of the training text. They are read once, so a generator will do.
Returns:
    known_words: mean over samples of the share of words that occur in the training text; 0 for a sample without any.
    known_pairs: mean over samples of the share of pairs of neighbouring words that are neighbours in a document of
        the training text; 0 for a sample without any.
    sample_known_words, sample_known_pairs: the shares of each sample.
"""


class KnownWords(evaluate.Metric):
    def _info(self):
        return information(__doc__, INPUTS, ids=False)

    def _compute(self, predictions, training):
        words, pairs = known_words(predictions, training)
        return {
            "known_words": float(words.mean()),
            "known_pairs": float(pairs.mean()),
            "sample_known_words": words.tolist(),
            "sample_known_pairs": pairs.tolist(),
        }
