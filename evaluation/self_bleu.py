"""Self-BLEU: mean BLEU-4 of each sample against all others, by sacrebleu."""

import datasets
import evaluate

from .text import self_bleu, words

INPUTS = """
Args:
    predictions: samples, as ids or as texts, whose words count.
Returns:
    self_bleu: in [0, 1], 1 where all samples are the same. It grows with the number of samples: compare equal numbers.
"""


class SelfBleu(evaluate.Metric):
    def _info(self):
        kinds = (datasets.Sequence(datasets.Value("int64")), datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Zhu et al., Texygen: A Benchmarking Platform for Text Generation Models, SIGIR 2018",
            inputs_description=INPUTS,
            features=[datasets.Features({"predictions": kind}) for kind in kinds],
        )

    def _compute(self, predictions):
        return {"self_bleu": self_bleu(words(predictions))}
