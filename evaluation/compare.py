"""The comparison behind `flm evaluate`: samples of models next to controls, measured in many ways.

[`compare`] returns one plain structure, which is written as `evaluation.json`:

    protocol   everything that the figures depend on: models and scorers with the SHA-256 of their weights, texts with
               the SHA-256 of their files, settings, seeds, numbers of samples, lengths, versions, device, times
    rows       one for each set of samples:
               {"model": name, "kind": "flow" | "causal" | "masked" | "file" | "control", "settings": {...},
                "evaluations": of the network for one sample, or null, "seconds": to write all of them, or null,
                "samples": number, "empty_samples": number,
                "metrics": {name: {"mean": number, "interval": [low, high] or null}}, "texts": the first two}
    frontier   one for each sweep and scorer: the perplexity at the entropy of real text, see `frontier.py`:
               {"model", "settings": those held fixed, "varied": setting, "values": [...], "metric": "gppl ...",
                "entropies": [lowest, highest], "entropy": of real text, "perplexity": number or null (not reached),
                "interval": [low, high] or null, "reached": share of the resamples that reach it}

The metrics are "gppl S" for each scorer S, "entropy" (within a sample), "pool entropy", "distinct 2", "self-BLEU" and
"repetition 4"; with a training text "memorised 8", "longest run", "known words" and "known pairs"; with mauve-text
"mauve". docs/evaluation.md defines them. Intervals are 95 % percentile bootstraps over samples. Metrics of all samples
together have none: a resample holds copies, and copies are what these metrics measure.
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
COPIED = 8  # number of tokens of an n-gram that counts as memorised
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "sacrebleu", "mauve-text")
SWEPT = ("temperature", "gamma", "num_steps")  # the first of these that a model was given is its sweep
TEXTS_KEPT = 2  # of each set of samples
PIECE_OF_TEXT = 2**20  # number of tokens of the training text that are searched at once

Say = Callable[[str], object]
Points = dict[tuple[int, str], Point]  # by the index of the set of samples and the name of the scorer


@dataclass(frozen=True)
class Samples:
    """A set of samples: its row of the result, ids by the common tokenizer, and texts without special tokens. All
    metrics but perplexity are computed from the ids."""

    row: dict
    rows: Rows
    texts: list[str]


@dataclass(frozen=True)
class Common:
    """The tokenizer that all samples are compared by, and whether all models share its vocabulary. If they do not,
    samples are compared as texts without special tokens, which this tokenizer tokenizes anew."""

    tokenizer: PreTrainedTokenizerBase
    shared: bool

    def samples(self, row: dict, ids: Rows) -> Samples:
        """A set of samples from ids of this tokenizer."""
        texts = self.tokenizer.batch_decode(list(ids), skip_special_tokens=True)
        return Samples(row, ids, texts) if self.shared else self.samples_of_texts(row, texts)

    def samples_of_texts(self, row: dict, texts: list[str]) -> Samples:
        """A set of samples from texts."""
        return Samples(row, self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"], texts)

    @property
    def described(self) -> str:
        """Which ids of the tokenizer are compared, for the protocol."""
        return "as they are, special tokens included" if self.shared else "of the texts, without special tokens"

    def has_vocabulary_of(self, other: PreTrainedTokenizerBase) -> bool:
        """Whether both tokenizers give every token the same id."""
        return self.tokenizer.get_vocab() == other.get_vocab()


@dataclass(frozen=True)
class Corpus:
    """The text of a file, its rows (n, length) of ids, packed as for training, and what the protocol says of it."""

    file: str
    rows: np.ndarray
    protocol: dict


@dataclass(frozen=True)
class Judge:
    """A scorer. `inputs` makes rows of its ids, whose first token is context only, from samples. `score` gives their
    sums of -log p in nats and their numbers of scored tokens, `features` their features (n, d) for MAUVE."""

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
    """Write samples with all `models` and measure them, next to controls.

    ```python
    result = compare(["hub_cards/fmlm-english-small", "samples.txt"], scorers=["gpt2"], reference="test.parquet")
    ```

    Args:
        models (`list[str]`): what [`open_writer`] opens: models, or files of samples. The first one must be a model:
            its tokenizer is that of all metrics but perplexity.
        scorers (`list[str]`): causal language models (folders or names on the Hub), and "kneser-ney" for an n-gram
            model of `training_text`. The first causal one gives the features of MAUVE.
        reference (`str`): a file of real, held-out text.
        training_text (`str`, *optional*): a file with the text that the models were trained on.
        sweep (`Sweep`, *optional*): the settings to write with; default: each model's own.
        num_samples (`int`): number of samples for each of `seeds`, >= 2.
        seeds (`list[int]`): seeds of the samples. The first one also draws the controls.
        length (`int`, *optional*): most tokens of a sample; default: the first model's context.
        device (`str`): where models and scorers run.
        trust_remote_code (`bool`): whether to run code that comes with the models and scorers.
        say (`Callable`): is given a line for each thing that is done.

    Returns:
        the structure that the head of this file describes.

    Raises:
        ValueError: something cannot be loaded, there is too little text, or a model wrote empty samples only.
    """
    began = time.perf_counter()
    _check_request(scorers, reference, training_text, num_samples, seeds)
    sweep, total = sweep or Sweep(), num_samples * len(seeds)
    writers, common, length = _opened(models, length, total, device, trust_remote_code)
    training = _packed(training_text, common.tokenizer, length) if training_text else None
    real = _packed(reference, common.tokenizer, length)
    others, sets = _held_out(real, training, total, seeds[0], common)
    judges = _judges(scorers, common, training, device, trust_remote_code)

    for writer in writers:
        for settings in writer.settings(sweep):
            sets.append(_written(writer, settings, num_samples, seeds, length, common))
            say(f"{_title(sets[-1])}: {total} samples in {sets[-1].row['seconds']} s")
    points = _scored(judges, sets, say)
    feature_judge = next((judge for judge in judges if judge.features and _version("mauve-text")), None)
    _measure(sets, others, training, common, judges, points, feature_judge)
    say("variety and novelty measured")

    protocol = {
        "models": [writer.description for writer in writers],
        "scorers": [judge.protocol for judge in judges],
        "metrics_by": f"ids of the tokenizer of {writers[0].name}, {common.described}",
        "reference": real.protocol,
        "training_text": training and training.protocol,
        "mauve": _mauve_protocol(feature_judge, total),
        "self_bleu": f"each sample against the {total - 1} others",
        "num_samples": num_samples,
        "seeds": list(seeds),
        "length": length,
        "sweep": asdict(sweep),
        "intervals": f"{COVERAGE:.0%}, percentile bootstrap over samples, {RESAMPLES} resamples",
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "seconds": round(time.perf_counter() - began, 1),
    }
    frontier = _frontier(sets, judges, points, real.protocol["entropy"])
    return {"protocol": protocol, "rows": [samples.row for samples in sets], "frontier": frontier}


def _check_request(
    scorers: Sequence[str], reference: str, training_text: str | None, num_samples: int, seeds: Sequence[int]
) -> None:
    """Refuse a request that lacks something, before anything is loaded."""
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
    """The writers, the common tokenizer and the most tokens of a sample. A file with fewer than `total` texts is
    refused here, before any samples are written."""
    writers = [open_writer(source, device, trust_remote_code) for source in models]
    first = writers[0]
    if isinstance(first, FileWriter):
        raise ValueError(f"{first.name} is a file, but the first model's tokenizer measures all: put a model first.")
    common = Common(first.tokenizer, shared=True)
    for writer in writers:
        if isinstance(writer, FileWriter):
            writer.check(total)
        if writer.tokenizer is None or not common.has_vocabulary_of(writer.tokenizer):
            common = Common(first.tokenizer, shared=False)
    return writers, common, length or first.length


# -- samples ----------------------------------------------------------------------------------------------------------


def _documents(file: str) -> Dataset:
    return load_text(DataSource.parse(str(Path(file).resolve()), "."))


def _packed(file: str, tokenizer: PreTrainedTokenizerBase, length: int) -> Corpus:
    path = Path(file)
    rows = np.array(pack(_documents(file), tokenizer, length).with_format("numpy")["input_ids"][:])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Corpus(file, rows, {"file": path.name, "sha256": digest, "rows": len(rows), "length": length})


def _held_out(
    real: Corpus, training: Corpus | None, total: int, seed: int, common: Common
) -> tuple[Samples, list[Samples]]:
    """`total` held-out rows for MAUVE, and controls that are made from the others."""
    count, length = real.rows.shape
    if count < 2 * total:
        raise ValueError(
            f"{real.file} fills {count} rows of {length} tokens, but {total} samples need twice as many: one half to "
            "compare, the other to compare with. Ask for fewer samples."
        )
    real.protocol["entropy"] = float(token_entropy(common.samples({}, real.rows).rows).mean())
    rows = np.random.default_rng(seed).permutation(real.rows)
    row: dict = {"kind": "control", "settings": {}, "evaluations": None, "seconds": None}
    sets = controls(rows[total:], training.rows if training else None, total, seed)
    return common.samples({}, rows[:total]), [common.samples({"model": name} | row, ids) for name, ids in sets.items()]


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


# -- scorers ----------------------------------------------------------------------------------------------------------


def _judges(
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


def _scored(judges: list[Judge], sets: list[Samples], say: Say) -> Points:
    """Each judge's scores of each set of samples."""
    points: Points = {}
    for judge in judges:
        for i, samples in enumerate(sets):
            losses, tokens = judge.score(judge.inputs(samples))
            if not tokens.sum():
                raise ValueError(f"all samples of {_title(samples)} are empty: there is nothing to measure.")
            points[i, judge.name] = Point(losses, tokens, token_entropy(samples.rows))
        say(f"scored by {judge.name}")
    return points


# -- metrics ----------------------------------------------------------------------------------------------------------


def _measure(
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


def _mauve_protocol(judge: Judge | None, total: int) -> str:
    if judge is None:
        return "not measured: it needs mauve-text and a causal scorer"
    against = f"against {total} held-out rows that are in no control"
    return f"last hidden states of {judge.name}, {against}, {max(2, round(total / 10))} clusters, seed 25"


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
    documents = filter(None, _documents(training_text)["text"])
    texts = [apart(samples.rows, common.tokenizer) if common.shared else samples.texts for samples in sets]
    words, pairs = known_words([text for some in texts for text in some], documents)
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
        "self-BLEU": _mean(self_bleu_scores(rows)),
        "repetition 4": _mean(repetition(rows, 4)),
    }


def _frontier(sets: list[Samples], judges: list[Judge], points: Points, entropy: float) -> list[dict]:
    """The perplexity at `entropy`, that of real text, of every sweep and under every scorer. A sweep is the sets of
    samples of one model that differ in one setting, the first one of `SWEPT` that they have."""
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
