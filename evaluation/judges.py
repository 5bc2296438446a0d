"""The scorers of `flm evaluate`, as judges of sets of samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .frontier import Point
from .ngram import KneserNey
from .samples import Common, Corpus, Samples
from .scorers import CausalScorer
from .text import Rows, token_entropy

KNESER_NEY = "kneser-ney"
LONGEST_GRAM = 4  # of the Kneser-Ney model

Say = Callable[[str], object]
Points = dict[tuple[int, str], Point]  # by the index of the set of samples and the name of the scorer


@dataclass(frozen=True)
class Judge:
    """A scorer. `inputs` makes rows of its ids, whose first token is context only, from samples. `score` gives their
    sums of -log p in nats and their numbers of scored tokens, `features` their features (n, d) for MAUVE."""

    name: str
    inputs: Callable[[Samples], Rows]
    score: Callable[[Rows], tuple[np.ndarray, np.ndarray]]
    protocol: dict
    features: Callable[[Rows], np.ndarray] | None = None


def open_judges(
    scorers: Sequence[str], common: Common, training: Corpus | None, device: str, trust_remote_code: bool
) -> list[Judge]:
    judges = []
    for name in dict.fromkeys(scorers):
        if name == KNESER_NEY and training is not None:
            judges.append(_ngram_judge(common, training.rows))
        else:
            scorer = CausalScorer(name, device=device, trust_remote_code=trust_remote_code)
            judges.append(_causal_judge(scorer, common))
    return judges


def _ngram_judge(common: Common, training: np.ndarray) -> Judge:
    size, bos = len(common.tokenizer), common.tokenizer.bos_token_id
    order = max(n for n in range(1, LONGEST_GRAM + 1) if size**n < 2**63)
    how = "ids, as they are" if common.shared else "ids of the text by the common tokenizer, after its BOS"
    return Judge(
        KNESER_NEY,
        lambda samples: samples.rows if common.shared else [[bos, *row] for row in samples.rows],
        KneserNey(training, size, order).score,
        {"scorer": KNESER_NEY, "order": order, "of": "the training text", "input": how},
    )


def _causal_judge(scorer: CausalScorer, common: Common) -> Judge:
    as_ids = common.shared and common.has_vocabulary_of(scorer.tokenizer)
    return Judge(
        scorer.name,
        lambda samples: samples.rows if as_ids else scorer.framed(samples.texts),
        scorer.score,
        scorer.protocol | scorer.input_protocol(retokenised=not as_ids),
        scorer.features,
    )


def scored(judges: list[Judge], sets: list[Samples], say: Say) -> Points:
    """Each judge's scores of each set of samples."""
    points: Points = {}
    for judge in judges:
        for i, samples in enumerate(sets):
            losses, tokens = judge.score(judge.inputs(samples))
            if not tokens.sum():
                raise ValueError(f"all samples of {samples.title} are empty: there is nothing to measure.")
            points[i, judge.name] = Point(losses, tokens, token_entropy(samples.rows))
        say(f"scored by {judge.name}")
    return points
