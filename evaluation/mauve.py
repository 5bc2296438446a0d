"""MAUVE: the overlap of the distributions of samples and of real texts, in the feature space of a causal language
model of your choice. Scores by different feature models cannot be compared."""

from functools import partial
from unittest import mock

import evaluate

from .metric import information
from .scorers import CausalScorer

SEED = 25  # of the clustering, as in the authors' package

INPUTS = """
Args:
    predictions: samples, as rows of ids of the scorer's own tokenizer, or as texts.
    real: real texts in the same form and number. Give hundreds at least: with few, MAUVE is noisy and biased.
    scorer: folder or Hub name of a causal language model, whose last hidden state at the last token is the feature;
        EOS and padding at the end, and what is longer than its context less one token, are left out.
    seed: seed of the clustering, default 25.
    device: where the scorer runs, default "cpu".
    trust_remote_code: whether to run code that comes with the scorer, default False.
Returns:
    mauve: in (0, 1], 1 where samples and real texts cannot be told apart.
    num_buckets: number of clusters of the features, a tenth of the smaller number of samples.
"""


def mauve_score(real_features, features, seed=SEED) -> tuple[float, int]:
    """MAUVE of features (n, d) against those of real texts (m, d), computed by the authors' package; and the number of
    clusters.

    Raises:
        ValueError: the package `mauve-text` is not installed.
    """
    try:
        import faiss
        from mauve import compute_mauve
    except ImportError as error:
        raise ValueError("MAUVE needs mauve-text: pip install 'flow-language-models[evaluation]'.") from error
    # faiss warns below 39 points a cluster, which is always so with a tenth as many clusters as samples.
    quiet = partial(faiss.Kmeans, min_points_per_centroid=1)
    with mock.patch.object(faiss, "Kmeans", quiet):
        result = compute_mauve(p_features=real_features, q_features=features, seed=seed, verbose=False)
    return float(result.mauve), int(result.num_buckets)


class Mauve(evaluate.Metric):
    def _info(self):
        citation = "Pillutla et al., MAUVE: Measuring the Gap Between Neural Text and Human Text, NeurIPS 2021"
        return information(__doc__, INPUTS, citation)

    def _compute(self, predictions, real, scorer, seed=SEED, device="cpu", trust_remote_code=False):
        judge = CausalScorer(scorer, device=device, trust_remote_code=trust_remote_code)
        as_ids = judge.framed if isinstance(predictions[0], str) else list
        score, buckets = mauve_score(judge.features(as_ids(real)), judge.features(as_ids(predictions)), seed)
        return {"mauve": score, "num_buckets": buckets}
