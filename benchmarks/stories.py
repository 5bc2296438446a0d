"""TinyStories as the benchmarks need them: their rows, those who judge texts by them, and options that say where they
are. And the command of a benchmark of several models."""

import argparse
import json
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from benchmarks.results import ROOT, Row, measure_parts
from evaluation.measures import apart
from evaluation.ngram import KneserNey
from evaluation.text import known_words, token_entropy
from flm_data import DataSource, load_text, pack

LENGTH = 128  # tokens of a row


@dataclass
class Stories:
    """The data, and those who judge by it.

    Args:
        train, validation: what the recipe's `data` would name.
    """

    train: str | dict
    validation: str | dict

    @cached_property
    def tokenizer(self):
        """Whose tokens are judged."""
        return AutoTokenizer.from_pretrained(ROOT / "examples" / "stories" / "tokenizer")

    @cached_property
    def held_out(self) -> torch.Tensor:
        return torch.from_numpy(self._rows(self.validation)).long()

    @cached_property
    def judge(self) -> KneserNey:
        return KneserNey(self._rows(self.train), len(self.tokenizer))

    @cached_property
    def documents(self) -> list[str]:
        return self._text(self.train)["text"][:]

    def _text(self, source: str | dict):
        return load_text(DataSource.parse(source, "."))

    def _rows(self, source: str | dict) -> np.ndarray:
        return np.array(pack(self._text(source), self.tokenizer, LENGTH).with_format("numpy")["input_ids"][:])

    def judged(self, ids: torch.Tensor) -> Row:
        """Of texts (n, length): their perplexity, entropy, and shares of known words and pairs."""
        words, pairs = known_words(apart(ids.tolist(), self.tokenizer), self.documents)
        return {
            "gppl_ngram": float(np.exp(self.judge.token_losses(ids.numpy()).mean())),
            "entropy": float(token_entropy(ids.numpy()).mean()),
            "words": float(np.mean(words)),
            "pairs": float(np.mean(pairs)),
        }


def add_stories(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the stories are, by default on the Hub."""
    parser.add_argument("--train", default="roneneldan/TinyStories")
    parser.add_argument("--validation", default={"path": "roneneldan/TinyStories", "split": "validation"})


@dataclass
class Request:
    """What the command of a benchmark is to measure.

    Args:
        stories: where the stories are.
        models (*optional*): the models to measure, by default all.
    """

    stories: Stories
    models: Collection[str] | None = None

    def wants(self, model: str) -> bool:
        """Whether a model is to be measured."""
        return self.models is None or model in self.models


def measure_models(
    about: str,
    parts: Mapping[str, Callable[[Request], list[Row]]],
    results_file: Path,
    report: Callable[[dict[str, list[Row]]], str],
) -> None:
    """Run the command of a benchmark: `measure_parts` of the parts and models that its arguments name; `about` is the
    command's description."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; default: all")
    add_stories(parser)
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="these only; rows of other models stay")
    options = parser.parse_args()
    request = Request(Stories(options.train, options.validation), options.models)

    def measured(name: str) -> list[Row]:
        rows = parts[name](request)
        return rows if request.models is None else _beside_others(rows, name, request.models, results_file)

    measure_parts({name: partial(measured, name) for name in parts}, results_file, report, options.parts)


def _beside_others(rows: list[Row], part: str, models: Collection[str], results_file: Path) -> list[Row]:
    """The rows of `models` that were measured now, at their places among those of a part that were measured before."""
    if unknown := {*models} - {str(row.get("model")) for row in rows}:
        sys.exit(f"no model {', '.join(sorted(unknown))} in {part}.")
    by_model: dict[str, list[Row]] = {}
    for row in json.loads(results_file.read_text())[part]:
        by_model.setdefault(str(row.get("model")), []).append(row)
    for model in models:
        by_model[model] = [row for row in rows if row["model"] == model]
    return [row for rows in by_model.values() for row in rows]
