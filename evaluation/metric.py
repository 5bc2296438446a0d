"""The description that each metric module gives to `evaluate`."""

import datasets
import evaluate


def information(description: str, inputs: str, citation: str = "", ids: bool = True) -> evaluate.MetricInfo:
    """The `_info` of a metric whose `predictions` are texts, or rows of token ids where `ids` is True."""
    kinds = [*([datasets.Sequence(datasets.Value("int64"))] if ids else []), datasets.Value("string")]
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description=inputs,
        features=[datasets.Features({"predictions": kind}) for kind in kinds],
    )
