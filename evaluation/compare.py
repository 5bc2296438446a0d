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

import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from flm_data.paths import check_path

from .controls import controls
from .frontier import COVERAGE, RESAMPLES
from .judges import KNESER_NEY, Say, open_judges, scored
from .measures import frontiers, mauve_protocol, measure
from .samples import Common, Corpus, Samples, packed
from .text import token_entropy
from .writers import FileWriter, Sweep, Writer, open_writer

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "sacrebleu", "mauve-text")
MOST_TOKENS = 10**6  # of a text; transformers says 1e30 for a tokenizer that names no limit


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
    planned = [(writer, settings) for writer in writers for settings in _settings(writer, sweep)]
    training = packed(training_text, common.tokenizer, length) if training_text else None
    real = packed(reference, common.tokenizer, length)
    others, sets = _held_out(real, training, total, seeds[0], common)
    judges = open_judges(scorers, common, training, device, trust_remote_code)
    _check_names([judge.name for judge in judges])

    for writer, settings in planned:
        sets.append(_written(writer, settings, num_samples, seeds, length, common))
        say(f"{sets[-1].title}: {total} samples in {sets[-1].row['seconds']} s")
    points = scored(judges, sets, say)
    feature_judge = next((judge for judge in judges if judge.features and _version("mauve-text")), None)
    measure(sets, others, training, common, judges, points, feature_judge)
    say("variety and novelty measured")

    protocol = {
        "models": [writer.description for writer in writers],
        "scorers": [judge.protocol for judge in judges],
        "metrics_by": f"ids of the tokenizer of {writers[0].name}, {common.described}",
        "reference": real.protocol,
        "training_text": training and training.protocol,
        "mauve": mauve_protocol(feature_judge, total),
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
    return {
        "protocol": protocol,
        "rows": [samples.row for samples in sets],
        "frontier": frontiers(sets, judges, points, real.protocol["entropy"]),
    }


def _check_request(
    scorers: Sequence[str], reference: str, training_text: str | None, num_samples: int, seeds: Sequence[int]
) -> None:
    """Refuse a request that lacks something, before anything is loaded."""
    if not scorers or num_samples < 2 or not seeds:
        raise ValueError("a comparison takes a scorer or more, a seed or more, and two samples or more for each.")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` has one twice, whose samples would be the same: {', '.join(map(str, seeds))}.")
    if _version("sacrebleu") is None:
        raise ValueError("self-BLEU needs sacrebleu: pip install 'flow-language-models[evaluation]'.")
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
    length = length or first.length
    if length > MOST_TOKENS:
        raise ValueError(f"{first.name} does not say how long its texts are: give a `length` (`--length`).")
    for writer in writers:
        if isinstance(writer, FileWriter):
            writer.check(total)
        elif writer.length < length:
            raise ValueError(
                f"{writer.name} writes up to {writer.length} tokens, not {length}: ask for a lower `length`."
            )
    _check_names([writer.name for writer in writers])
    alike = Common(first.tokenizer, shared=True, length=length)
    shared = all(w.tokenizer is not None and alike.has_vocabulary_of(w.tokenizer) for w in writers)
    return writers, Common(first.tokenizer, shared, length), length


def _settings(writer: Writer | FileWriter, sweep: Sweep) -> list[dict]:
    """The settings of a writer, which has some."""
    if not (found := writer.settings(sweep)):
        raise ValueError(f"{writer.name} is no flow map: it writes with none of {', '.join(sweep.samplers)}.")
    return found


def _check_names(names: list[str]) -> None:
    """Refuse names that stand for several models or scorers, which a table could not tell apart."""
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ValueError(f"several are called {', '.join(twice)}: give them folders of different names, or links.")


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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
