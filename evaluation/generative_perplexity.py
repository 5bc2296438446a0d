"""Generative perplexity: how likely samples are under causal language models. Loops and copies of the training text
have the lowest, so read it at equal entropy, next to self-BLEU and novelty (docs/evaluation.md)."""

import evaluate
import torch

from .metric import information
from .scorers import CausalScorer, perplexity

INPUTS = """
Args:
    predictions: samples, as rows of ids of the scorer's own tokenizer, or as texts. Ids are scored as they are, texts
        are tokenized by the scorer's tokenizer.
    scorer: folder or Hub name of a causal language model of transformers, or a list of these.
    dtype: dtype of the scorer, such as "float32" (default) or "bfloat16".
    bos: for texts, whether to put the scorer's BOS before each (default), so that the first token is scored too.
    device: where the scorer runs, default "cpu".
    trust_remote_code: whether to run code that comes with the scorer, default False.
Returns:
    perplexity: of each scorer, exp of the mean of -log p over all tokens of all samples.
    sample_losses, sample_tokens: of each scorer, the sum of -log p in nats and the number of scored tokens of each
        sample.
    protocol: of each scorer, everything that the perplexity depends on.
"""


class GenerativePerplexity(evaluate.Metric):
    def _info(self):
        return information(__doc__, INPUTS)

    def _compute(self, predictions, scorer, dtype="float32", bos=True, device="cpu", trust_remote_code=False):
        retokenised = isinstance(predictions[0], str)
        result: dict[str, dict] = {"perplexity": {}, "sample_losses": {}, "sample_tokens": {}, "protocol": {}}
        for name in [scorer] if isinstance(scorer, str) else scorer:
            judge = CausalScorer(
                name, dtype=getattr(torch, dtype), bos=bos, device=device, trust_remote_code=trust_remote_code
            )
            losses, tokens = judge.score(judge.framed(predictions) if retokenised else predictions)
            counts = {"samples": len(predictions), "tokens": int(tokens.sum()), "empty": int((tokens == 0).sum())}
            result["perplexity"][name] = perplexity(losses, tokens)
            result["sample_losses"][name] = losses.tolist()
            result["sample_tokens"][name] = tokens.tolist()
            result["protocol"][name] = judge.protocol | judge.input_protocol(retokenised) | counts
        return result
