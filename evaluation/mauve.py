"""MAUVE: how much the distributions of samples and of real texts overlap, in the feature space of a causal language
model of your own choice: nothing is downloaded. Figures of different feature models cannot be compared."""

from functools import partial
from unittest import mock

import datasets
import evaluate

from .scorers import CausalScorer

INPUTS = """
Args:
    predictions: samples, as ids of the scorer's own tokenizer, or as texts.
    real: real samples, in the same form and number (hundreds at least: with few, the figure is noisy and biased).
    scorer: folder or Hub name of a causal language model; the features are its last hidden states at the last token.
    seed: of the clustering, default 25.
Returns:
    mauve: in (0, 1], 1 where the two cannot be told apart.
    num_buckets: clusters of the features, a tenth of the smaller number of samples.
"""


def mauve_score(real_features, features, seed=25) -> tuple[float, int]:
    """MAUVE of features (n, d) against those of real samples (m, d), by its authors' code; and the number of clusters.

    Raises:
        ValueError: the package `mauve-text` is not there.
    """
    try:
        import faiss
        from mauve import compute_mauve
    except ImportError as error:
        raise ValueError("MAUVE needs mauve-text: pip install 'flow-language-models[evaluation]'.") from error
    # Below 39 points a cluster faiss prints a warning; with a tenth as many clusters as samples that is every time.
    quiet = partial(faiss.Kmeans, min_points_per_centroid=1)
    with mock.patch.object(faiss, "Kmeans", quiet):
        result = compute_mauve(p_features=real_features, q_features=features, seed=seed, verbose=False)
    return float(result.mauve), int(result.num_buckets)


class Mauve(evaluate.Metric):
    def _info(self):
        kinds = (datasets.Sequence(datasets.Value("int64")), datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Pillutla et al., MAUVE: Measuring the Gap Between Neural Text and Human Text, NeurIPS 2021",
            inputs_description=INPUTS,
            features=[datasets.Features({"predictions": kind}) for kind in kinds],
        )

    def _compute(self, predictions, real, scorer, seed=25, device="cpu", trust_remote_code=False):
        judge = CausalScorer(scorer, device=device, trust_remote_code=trust_remote_code)
        as_ids = judge.framed if isinstance(predictions[0], str) else list
        score, buckets = mauve_score(judge.features(as_ids(real)), judge.features(as_ids(predictions)), seed)
        return {"mauve": score, "num_buckets": buckets}
