"""The comparison behind `flm evaluate`: models, scorers and controls, and everything that the figures depend on.

[`compare`] gives one plain structure, which `evaluation.json` is:

    protocol   how everything was measured: models and scorers with the SHA-256 of their weights, texts with that of
               their files, settings, seeds, numbers of samples, lengths, versions, device, times
    rows       one for each set of samples:
               {"model": name, "kind": "flow" | "causal" | "masked" | "file" | "control", "settings": {...},
                "evaluations": of the network for one sample, or null, "seconds": of writing all, or null,
                "samples": number, "empty_samples": number,
                "metrics": {name: {"mean": number, "interval": [low, high] or null}}, "texts": the first two}
    frontier   one for each sweep and scorer: the perplexity at the data's entropy, see `frontier.py`:
               {"model", "settings": what is held fixed, "varied": setting, "values": [...], "metric": "gppl ...",
                "entropies": [lowest, highest], "entropy": the data's, "perplexity": number or null (not reached),
                "interval": [low, high] or null, "reached": share of the resamples that reach it}

The metrics: "gppl S" for each scorer S; "entropy" (within a sample), "pool entropy", "distinct 2", "self-BLEU",
"repetition 4", "memorised 8", "longest run", "known words" and "known pairs" (with a training text), "mauve" (with
mauve-text). docs/evaluation.md says what each is. Intervals are 95 % percentile bootstraps over samples; metrics of
the pool have none, as a resample holds copies, which is what they measure.
"""

import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from flm_data import DataSource, load_text, pack
from flm_data.paths import check_path

from .controls import controls
from .frontier import COVERAGE, RESAMPLES, Point, at_entropy, interval, resamples
from .mauve import mauve_score
from .ngram import KneserNey
from .scorers import CausalScorer, perplexity
from .text import (
    Rows,
    distinct_n,
    known_words,
    longest_matches,
    memorised,
    pool_entropy,
    repetition,
    self_bleu_scores,
    token_entropy,
)
from .writers import FileWriter, Sweep, Writer, open_writer

KNESER_NEY = "kneser-ney"
LONGEST_GRAM = 4  # of the Kneser-Ney model
COPIED = 8  # tokens of an n-gram that counts as memorised
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "sacrebleu", "mauve-text")
SWEPT = ("temperature", "gamma", "num_steps")
TEXTS_KEPT = 2  # of a set of samples
PIECE_OF_TEXT = 2**20  # tokens of the training text that are searched together

Say = Callable[[str], object]
Points = dict[tuple[int, str], Point]  # by the place of the samples and the name of the scorer


@dataclass
class Samples:
    """A set of samples: `rows` of the common tokenizer's ids, by which everything but perplexity is measured, their
    `texts`, and the `row` of the result that they become."""

    row: dict
    rows: Rows
    texts: list[str]


@dataclass(frozen=True)
class Common:
    """The tokenizer by which all are compared; `shared`, if all models have it. Else samples are compared as texts,
    without special tokens, that it tokenises anew."""

    tokenizer: PreTrainedTokenizerBase
    shared: bool

    def samples(self, row: dict, ids: Rows) -> Samples:
        """Ids of this tokenizer."""
        texts = self.tokenizer.batch_decode(list(ids), skip_special_tokens=True)
        return Samples(row, ids, texts) if self.shared else self.samples_of_texts(row, texts)

    def samples_of_texts(self, row: dict, texts: list[str]) -> Samples:
        return Samples(row, self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"], texts)

    def has_vocabulary_of(self, other: PreTrainedTokenizerBase) -> bool:
        return self.tokenizer.get_vocab() == other.get_vocab()


@dataclass(frozen=True)
class Judge:
    """A scorer: `score` of what `inputs` makes of samples, each row with a first token that is context only."""

    name: str
    inputs: Callable[[Samples], Rows]
    score: Callable[[Rows], tuple[np.ndarray, np.ndarray]]
    protocol: dict
    features: Callable[[Rows], np.ndarray] | None = None


def compare(
    models: Sequence[str],
    *,
    scorers: Sequence[str],
    reference: str,
    training_text: str | None = None,
    sweep: Sweep | None = None,
    num_samples: int = 64,
    seeds: Sequence[int] = (0,),
    length: int | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    say: Say = lambda line: None,
) -> dict:
    """Write samples with all `models` and measure them, next to controls: see the head of this file.

    Args:
        models: see [`open_writer`]. The first one's tokenizer is that of all metrics but perplexity; it is no file.
        scorers: causal language models (folders or names on the Hub), and "kneser-ney" for an n-gram model of
            `training_text`. The features of MAUVE are those of the first causal one.
        reference: a file of real, held-out text.
        training_text (*optional*): a file with the text that the models were trained on.
        num_samples: for each of `seeds`.
        length (*optional*): most tokens of a sample, default the first model's context.
        say: is told what goes on, a line at a time.

    Raises:
        ValueError: something cannot be loaded, there is too little text, or a model wrote empty samples only.
    """
    began = time.perf_counter()
    _check_request(scorers, reference, training_text, num_samples, seeds)
    sweep, total = sweep or Sweep(), num_samples * len(seeds)
    writers, common, length = _opened(models, length, total, device, trust_remote_code)

    real, real_protocol = _packed(reference, common.tokenizer, length)
    training, training_protocol = _packed(training_text, common.tokenizer, length) if training_text else (None, None)
    if len(real) < 2 * total:
        raise ValueError(
            f"{reference} fills {len(real)} rows of {length} tokens, but {total} samples need twice as many: one half "
            "to compare, the other to compare with. Ask for fewer samples."
        )
    real_protocol["entropy"] = float(token_entropy(common.samples({}, real).rows).mean())
    real = np.random.default_rng(seeds[0]).permutation(real)
    others = common.samples({}, real[:total])
    judges = _judges(scorers, common, training, device, trust_remote_code)

    sets = []
    for name, rows in controls(real[total:], training, total, seeds[0]).items():
        row: dict = {"model": name, "kind": "control", "settings": {}, "evaluations": None, "seconds": None}
        sets.append(common.samples(row, rows))
    for writer in writers:
        for settings in writer.settings(sweep):
            sets.append(_written(writer, settings, num_samples, seeds, length, common))
            say(f"{_title(sets[-1])}: {total} samples in {sets[-1].row['seconds']} s")

    points = _scored(judges, sets, say)
    feature_judge = next((judge for judge in judges if judge.features), None)
    if feature_judge is not None and _version("mauve-text") is None:
        feature_judge = None
    overlaps = _overlaps(feature_judge, sets, others) if feature_judge else None
    matches = _matches(sets, training, common) if training is not None else None
    known = _known(sets, training_text, common) if training_text else None
    for i, samples in enumerate(sets):
        metrics = {f"gppl {judge.name}": _gppl(points[i, judge.name]) for judge in judges} | _variety(samples.rows)
        if matches is not None:
            metrics[f"memorised {COPIED}"] = _mean(memorised(matches[i], COPIED))
            metrics["longest run"] = _plain(max(int(match.max(initial=0)) for match in matches[i]))
        if known is not None:
            metrics |= {name: _mean(shares[i]) for name, shares in known.items()}
        if overlaps is not None:
            metrics["mauve"] = _plain(overlaps[i])
        empty = sum(not text.strip() for text in samples.texts)
        samples.row |= {"samples": total, "empty_samples": empty, "metrics": metrics}
        samples.row["texts"] = samples.texts[:TEXTS_KEPT]
    say("variety and novelty measured")

    protocol = {
        "models": [writer.description for writer in writers],
        "scorers": [judge.protocol for judge in judges],
        "metrics_by": f"ids of the tokenizer of {writers[0].name}, "
        + ("as they are, special tokens included" if common.shared else "of the texts, without special tokens"),
        "reference": real_protocol,
        "training_text": training_protocol,
        "mauve": f"last hidden states of {feature_judge.name}, against {total} held-out rows that are in no "
        f"control, {max(2, round(total / 10))} clusters, seed 25"
        if feature_judge
        else "not measured: it needs mauve-text and a causal scorer",
        "self_bleu": f"each sample against the {total - 1} others",
        "num_samples": num_samples,
        "seeds": list(seeds),
        "length": length,
        "sweep": asdict(sweep),
        "intervals": f"{COVERAGE:.0%}, percentile bootstrap over samples, {RESAMPLES} resamples",
        "device": device,
    }
    return {
        "protocol": protocol | _machine() | {"seconds": round(time.perf_counter() - began, 1)},
        "rows": [samples.row for samples in sets],
        "frontier": _frontier(sets, judges, points, real_protocol["entropy"]),
    }


def _check_request(
    scorers: Sequence[str], reference: str, training_text: str | None, num_samples: int, seeds: Sequence[int]
) -> None:
    """What is missing shall be said before anything is loaded."""
    if not scorers or num_samples < 2 or not seeds:
        raise ValueError("a comparison takes a scorer or more, a seed or more, and two samples or more for each.")
    for name in scorers:
        check_path(name)
    for file in (reference, *([training_text] if training_text else [])):
        if not Path(file).is_file():
            raise ValueError(f"there is no file {file}.")
    if KNESER_NEY in scorers and training_text is None:
        raise ValueError(f"the scorer {KNESER_NEY} is made from a training text, but there is none.")


def _opened(
    models: Sequence[str], length: int | None, total: int, device: str, trust_remote_code: bool
) -> tuple[list[Writer | FileWriter], Common, int]:
    """The writers, the tokenizer that measures them all, and the most tokens of a sample. What can fail fails before
    samples are written."""
    writers = [open_writer(source, device, trust_remote_code) for source in models]
    first = writers[0]
    if isinstance(first, FileWriter):
        raise ValueError(f"{first.name} is a file, but the first model's tokenizer measures all: put a model first.")
    common = Common(first.tokenizer, shared=True)
    for writer in writers:
        if isinstance(writer, FileWriter):
            writer.check(total)
    if not all(writer.tokenizer is not None and common.has_vocabulary_of(writer.tokenizer) for writer in writers):
        common = Common(first.tokenizer, shared=False)
    return writers, common, length or first.length


def _scored(judges: list[Judge], sets: list[Samples], say: Say) -> Points:
    """What each judge says of each set of samples."""
    points: Points = {}
    for judge in judges:
        for i, samples in enumerate(sets):
            losses, tokens = judge.score(judge.inputs(samples))
            if not tokens.sum():
                raise ValueError(f"all samples of {_title(samples)} are empty: there is nothing to measure.")
            points[i, judge.name] = Point(losses, tokens, token_entropy(samples.rows))
        say(f"scored by {judge.name}")
    return points


def _machine() -> dict:
    return {
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


# -- samples and scorers ----------------------------------------------------------------------------------------------


def _documents(file: str) -> Dataset:
    return load_text(DataSource.parse(str(Path(file).resolve()), "."))


def _packed(file: str, tokenizer: PreTrainedTokenizerBase, length: int) -> tuple[np.ndarray, dict]:
    """Rows (n, length) of a file of text, as a model of this tokenizer is trained on; and which file it was."""
    path = Path(file)
    rows = np.array(pack(_documents(file), tokenizer, length).with_format("numpy")["input_ids"][:])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return rows, {"file": path.name, "sha256": digest, "rows": len(rows), "length": length}


def _written(
    writer: Writer | FileWriter, settings: dict, count: int, seeds: Sequence[int], length: int, common: Common
) -> Samples:
    start = time.perf_counter()
    written = writer.write(settings, count, seeds, length)
    row = {
        "model": writer.name,
        "kind": writer.kind,
        "settings": settings,
        "evaluations": written.evaluations,
        "seconds": round(time.perf_counter() - start, 2),
    }
    if written.ids is not None and common.shared:
        return common.samples(row, written.ids)
    return common.samples_of_texts(row, written.texts)


def _judges(
    scorers: Sequence[str], common: Common, training: np.ndarray | None, device: str, trust_remote_code: bool
) -> list[Judge]:
    judges = []
    for name in dict.fromkeys(scorers):
        if name == KNESER_NEY and training is not None:
            judges.append(_ngram_judge(common, training))
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


def _overlaps(judge: Judge, sets: list[Samples], others: Samples) -> list[float]:
    """MAUVE of each set against other real text. An empty sample has the features of the token 0."""

    def inputs(samples: Samples) -> Rows:
        return [row if len(row) else [0] for row in judge.inputs(samples)]

    assert judge.features is not None
    real = judge.features(inputs(others))
    return [mauve_score(real, judge.features(inputs(samples)))[0] for samples in sets]


def _matches(sets: list[Samples], training: np.ndarray, common: Common) -> list[list[np.ndarray]]:
    """[`longest_matches`] of each set's samples, without the BOS, EOS and padding around them, in the training text as
    one stream, as its rows begin and end anywhere."""
    tokenizer = common.tokenizer
    around = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    stream = training[:, 1:-1].ravel()
    if not common.shared:
        stream = stream[stream != tokenizer.eos_token_id]
    rows = [_trimmed(row, around) for samples in sets for row in samples.rows]
    longest = max(map(len, rows))  # pieces overlap by as much, so that no run is cut
    pieces = (stream[start : start + PIECE_OF_TEXT + longest] for start in range(0, len(stream), PIECE_OF_TEXT))
    matches = iter(longest_matches(rows, pieces))
    return [[next(matches) for _ in samples.rows] for samples in sets]


def _trimmed(row: Sequence[int], around: set[int]) -> Sequence[int]:
    inside = [i for i, token in enumerate(row) if token not in around]
    return row[inside[0] : inside[-1] + 1] if inside else row[:0]


def _known(sets: list[Samples], training_text: str, common: Common) -> dict[str, np.ndarray]:
    """[`known_words`] of each set's samples, by their names: (sets, samples). The documents of the training text are
    read whole, as its rows are cut within words."""
    documents = filter(None, _documents(training_text)["text"])
    texts = [apart(samples.rows, common.tokenizer) if common.shared else samples.texts for samples in sets]
    words, pairs = known_words([text for some in texts for text in some], documents)
    return {"known words": words.reshape(len(sets), -1), "known pairs": pairs.reshape(len(sets), -1)}


def apart(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of rows of ids, with a space for special tokens: the words on either side of them are two."""
    special = set(tokenizer.all_special_ids)
    parts = ([list(part) for between, part in groupby(row, special.__contains__) if not between] for row in rows)
    return [" ".join(tokenizer.batch_decode(some)) for some in parts]


# -- figures ----------------------------------------------------------------------------------------------------------


def _plain(value: float) -> dict:
    return {"mean": value, "interval": None}


def _mean(values: np.ndarray) -> dict:
    return {"mean": float(values.mean()), "interval": interval(values[resamples(len(values))].mean(1))}


def _gppl(point: Point) -> dict:
    _, drawn = point.place(resamples(len(point.losses)))
    return {"mean": perplexity(point.losses, point.tokens), "interval": interval(np.exp(drawn[np.isfinite(drawn)]))}


def _variety(rows: Rows) -> dict[str, dict]:
    return {
        "entropy": _mean(token_entropy(rows)),
        "pool entropy": _plain(pool_entropy(rows)),
        "distinct 2": _plain(distinct_n(rows, 2)),
        "self-BLEU": _mean(self_bleu_scores(rows)),
        "repetition 4": _mean(repetition(rows, 4)),
    }


def _frontier(sets: list[Samples], judges: list[Judge], points: Points, entropy: float) -> list[dict]:
    """The perplexity at the data's entropy of every sweep: of the temperature or gamma, whichever a model was given,
    or else of the number of steps; what else there is held fixed."""
    sweeps: dict[tuple, list[int]] = {}
    for i, samples in enumerate(sets):
        settings = samples.row["settings"]
        if varied := next((name for name in SWEPT if name in settings), None):
            fixed = tuple((name, value) for name, value in settings.items() if name != varied)
            sweeps.setdefault((samples.row["model"], varied, fixed), []).append(i)
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


def _title(samples: Samples) -> str:
    settings = (f"{name} {value}" for name, value in samples.row["settings"].items())
    return " ".join([samples.row["model"], *settings])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
