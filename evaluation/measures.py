"""The metrics of `flm evaluate`: of each set of samples, and along each sweep of settings."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby

import numpy as np
from transformers import PreTrainedTokenizerBase

from .frontier import Point, at_entropy, interval, resamples
from .judges import Judge, Points
from .mauve import SEED, mauve_score
from .samples import Common, Corpus, Samples, documents
from .scorers import perplexity
from .text import (
    Rows,
    distinct_n,
    known_words,
    longest_matches,
    memorised,
    pool_entropy,
    repetition,
    self_bleu,
    token_entropy,
)

COPIED = 8  # number of tokens of an n-gram that counts as memorised
SWEPT = ("temperature", "gamma", "num_steps")  # the first of these with several values is a sweep
TEXTS_KEPT = 2  # of each set of samples
PIECE_OF_TEXT = 2**20  # number of tokens of the training text that are searched at once


def measure(
    sets: list[Samples],
    others: Samples,
    training: Corpus | None,
    common: Common,
    judges: list[Judge],
    points: Points,
    feature_judge: Judge | None,
) -> None:
    """Complete the row of each set of samples: its metrics, how many samples it has, and the first texts."""
    overlaps = _overlaps(feature_judge, sets, others) if feature_judge else None
    matches = _matches(sets, training.rows, common) if training else None
    known = _known(sets, training.file, common) if training else {}
    for i, samples in enumerate(sets):
        metrics = {f"gppl {judge.name}": _gppl(points[i, judge.name]) for judge in judges} | _variety(samples.rows)
        if matches is not None:
            metrics[f"memorised {COPIED}"] = _mean(memorised(matches[i], COPIED))
            metrics["longest run"] = _plain(max(int(match.max(initial=0)) for match in matches[i]))
        metrics |= {name: _mean(shares[i]) for name, shares in known.items()}
        if overlaps is not None:
            metrics["mauve"] = _plain(overlaps[i])
        empty = sum(not text.strip() for text in samples.texts)
        samples.row.update(samples=len(samples.texts), empty_samples=empty, metrics=metrics)
        samples.row["texts"] = samples.texts[:TEXTS_KEPT]


def _overlaps(judge: Judge, sets: list[Samples], others: Samples) -> list[float]:
    """MAUVE of each set of samples against real text. An empty sample is given the features of the token 0."""

    def features(samples: Samples) -> np.ndarray:
        assert judge.features is not None
        return judge.features([row if len(row) else [0] for row in judge.inputs(samples)])

    real = features(others)
    return [mauve_score(real, features(samples))[0] for samples in sets]


def mauve_protocol(judge: Judge | None, total: int) -> str:
    if judge is None:
        return "not measured: it needs mauve-text and a causal scorer"
    against = f"against {total} held-out rows that are in no control"
    return f"last hidden states of {judge.name}, {against}, {max(2, round(total / 10))} clusters, seed {SEED}"


def _matches(sets: list[Samples], training: np.ndarray, common: Common) -> list[list[np.ndarray]]:
    """[`longest_matches`] of the samples of each set, in the training text as one stream, since its rows begin and end
    anywhere. BOS, EOS and padding at the ends of a sample are left out."""
    tokenizer = common.tokenizer
    around = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    stream = training[:, 1:-1].ravel()
    if not common.shared:
        stream = stream[stream != tokenizer.eos_token_id]
    rows = [_trimmed(row, around) for samples in sets for row in samples.rows]
    longest = max(map(len, rows))  # pieces overlap by as much: no run is cut
    pieces = (stream[start : start + PIECE_OF_TEXT + longest] for start in range(0, len(stream), PIECE_OF_TEXT))
    matches = iter(longest_matches(rows, pieces))
    return [[next(matches) for _ in samples.rows] for samples in sets]


def _trimmed(row: Sequence[int], around: set[int]) -> Sequence[int]:
    inside = [i for i, token in enumerate(row) if token not in around]
    return row[inside[0] : inside[-1] + 1] if inside else row[:0]


def _known(sets: list[Samples], training_text: str, common: Common) -> dict[str, np.ndarray]:
    """[`known_words`] of the samples of each set, (sets, samples) by the name of the metric. The training text is read
    as whole documents, since its rows are cut within words."""
    known_from = filter(None, documents(training_text)["text"])
    texts = [apart(samples.rows, common.tokenizer) if common.shared else samples.texts for samples in sets]
    words, pairs = known_words([text for some in texts for text in some], known_from)
    return {"known words": words.reshape(len(sets), -1), "known pairs": pairs.reshape(len(sets), -1)}


def apart(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of rows of ids, with a space in place of special tokens, which part words."""
    special = set(tokenizer.all_special_ids)
    parts = ([list(part) for between, part in groupby(row, special.__contains__) if not between] for row in rows)
    return [" ".join(tokenizer.batch_decode(some)) for some in parts]


def _plain(value: float) -> dict:
    """A metric without an interval."""
    return {"mean": value, "interval": None}


def _mean(values: np.ndarray) -> dict:
    """The mean over samples of a metric, with its interval."""
    return {"mean": float(values.mean()), "interval": interval(values[resamples(len(values))].mean(1))}


def _gppl(point: Point) -> dict:
    _, drawn = point.place(resamples(len(point.losses)))
    return {"mean": perplexity(point.losses, point.tokens), "interval": interval(np.exp(drawn[np.isfinite(drawn)]))}


def _variety(rows: Rows) -> dict[str, dict]:
    return {
        "entropy": _mean(token_entropy(rows)),
        "pool entropy": _plain(pool_entropy(rows)),
        "distinct 2": _plain(distinct_n(rows, 2)),
        "self-BLEU": _plain(self_bleu(rows)),
        "repetition 4": _mean(repetition(rows, 4)),
    }


def frontiers(sets: list[Samples], judges: list[Judge], points: Points, entropy: float) -> list[dict]:
    """The perplexity at `entropy`, that of real text, of every sweep and under every scorer. A sweep is the sets of
    samples of one model that differ in one setting, the first one of `SWEPT` in which they do."""

    def possible(samples: Samples) -> Iterator[tuple]:
        settings = samples.row["settings"]
        for varied in SWEPT:
            if varied in settings:
                fixed = tuple((name, value) for name, value in settings.items() if name != varied)
                yield samples.row["model"], varied, fixed

    sizes = Counter(sweep for samples in sets for sweep in possible(samples))
    sweeps: dict[tuple, list[int]] = {}
    for i, samples in enumerate(sets):
        chosen = next((sweep for sweep in possible(samples) if sizes[sweep] > 1), None)
        if chosen is not None:
            sweeps.setdefault(chosen, []).append(i)
    found = []
    for (model, varied, fixed), sweep in sweeps.items():
        if len(sweep) < 2:
            continue
        values = {i: sets[i].row["settings"][varied] for i in sweep}
        sweep.sort(key=values.__getitem__)
        entropies = [sets[i].row["metrics"]["entropy"]["mean"] for i in sweep]
        for judge in judges:
            found.append(
                {
                    "model": model,
                    "settings": dict(fixed),
                    "varied": varied,
                    "values": [values[i] for i in sweep],
                    "metric": f"gppl {judge.name}",
                    "entropies": [min(entropies), max(entropies)],
                    "entropy": entropy,
                }
                | asdict(at_entropy([points[i, judge.name] for i in sweep], entropy))
            )
    return found
