"""What judges samples: metric modules for `evaluate`, the frontier of quality and diversity, `flm evaluate`."""

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
    """Where a metric module is, for `evaluate.load(evaluation.path("self_bleu"))`.

    Raises:
        ValueError: there is no such metric.
    """
    if metric not in METRICS:
        raise ValueError(f"there is no metric {metric!r}: choose from {', '.join(METRICS)}.")
    return str(Path(__file__).with_name(f"{metric}.py"))
