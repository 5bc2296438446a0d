"""Known words: how far samples are made of words, and of pairs of words, that the training text has."""

import datasets
import evaluate

from .text import known_words

INPUTS = """
Args:
    predictions: samples, as texts. Words are runs of letters, in lower case; the first and the last of each sample are
        left out, as a sample may begin and end within a word.
    training: the documents of the training text. They are read once, and may be a generator.
Returns:
    known_words: mean over samples of the share of words that are in the training text; without any, a sample has 0.
    known_pairs: mean over samples of the share of pairs of neighbouring words that are neighbours in a document of the
        training text; without any, a sample has 0.
    sample_known_words, sample_known_pairs: of each sample.
"""


class KnownWords(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions, training):
        words, pairs = known_words(predictions, training)
        return {
            "known_words": float(words.mean()),
            "known_pairs": float(pairs.mean()),
            "sample_known_words": words.tolist(),
            "sample_known_pairs": pairs.tolist(),
        }
