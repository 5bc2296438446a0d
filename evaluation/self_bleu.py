"""Self-BLEU: the mean BLEU-4 of each sample against all other samples, by sacrebleu."""

import evaluate

from .metric import information
from .text import self_bleu, words

INPUTS = """
Args:
    predictions: samples, as rows of ids or as texts. Texts are split into words at white space.
Returns:
    self_bleu: in [0, 1], 1 where all samples are the same. It grows with the number of samples, so compare sets of
        equal size only.
"""


class SelfBleu(evaluate.Metric):
    def _info(self):
        citation = "Zhu et al., Texygen: A Benchmarking Platform for Text Generation Models, SIGIR 2018"
        return information(__doc__, INPUTS, citation)

    def _compute(self, predictions):
        return {"self_bleu": self_bleu(words(predictions))}
