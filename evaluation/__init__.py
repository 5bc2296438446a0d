"""The evaluation of samples: metrics for `evaluate.load`, the comparison of `flm evaluate`, and likelihood bounds."""

from pathlib import Path

METRICS = (
    "distinct_n",
    "generative_perplexity",
    "known_words",
    "mauve",
    "novelty",
    "repetition",
    "self_bleu",
    "token_entropy",
)


def path(metric: str) -> str:
    """The path of a metric module, such as `evaluate.load(evaluation.path("self_bleu"))` takes.

    Raises:
        ValueError: there is no such metric.
    """
    if metric not in METRICS:
        raise ValueError(f"there is no metric {metric!r}: choose from {', '.join(METRICS)}.")
    return str(Path(__file__).with_name(f"{metric}.py"))
