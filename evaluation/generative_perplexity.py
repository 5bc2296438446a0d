"""Generative perplexity: how likely causal language models find samples. A low one proves nothing by itself: loops and
copies of training text have the lowest. Read it at equal entropy, next to self-BLEU and novelty (docs/evaluation.md).
"""

import datasets
import evaluate
import numpy as np
import torch

from .scorers import CausalScorer, perplexity

INPUTS = """
Args:
    predictions: samples, as ids of the scorer's own tokenizer (scored as they are), or as texts (retokenised).
    scorer: folder or Hub name of a causal language model of transformers, or several in a list.
    dtype: of the scorer, "float32" (default), "bfloat16", ...
    bos: of texts: put the scorer's BOS before each (default), so that the first token is scored too.
    device: where the scorer runs, default "cpu".
Returns:
    perplexity: of each scorer, exp of the mean of -log p over all tokens of all samples.
    sample_losses, sample_tokens: of each scorer, the sum of -log p in nats of each sample, and its number of tokens.
    protocol: of each scorer, everything that the figure depends on.
"""


class GenerativePerplexity(evaluate.Metric):
    def _info(self):
        kinds = (datasets.Sequence(datasets.Value("int64")), datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=INPUTS,
            features=[datasets.Features({"predictions": kind}) for kind in kinds],
        )

    def _compute(self, predictions, scorer, dtype="float32", bos=True, device="cpu", trust_remote_code=False):
        retokenised = isinstance(predictions[0], str)
        result: dict[str, dict] = {"perplexity": {}, "sample_losses": {}, "sample_tokens": {}, "protocol": {}}
        for name in [scorer] if isinstance(scorer, str) else scorer:
            judge = CausalScorer(
                name, dtype=getattr(torch, dtype), bos=bos, device=device, trust_remote_code=trust_remote_code
            )
            losses, tokens = judge.score(judge.framed(predictions) if retokenised else predictions)
            result["perplexity"][name] = perplexity(losses, tokens)
            result["sample_losses"][name] = losses.tolist()
            result["sample_tokens"][name] = tokens.tolist()
            result["protocol"][name] = (
                judge.protocol
                | judge.input_protocol(retokenised)
                | {"samples": len(predictions), "tokens": int(tokens.sum()), "empty": int(np.sum(tokens == 0))}
            )
        return result
