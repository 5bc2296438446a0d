"""TinyStories as the benchmarks need them: their rows, those who judge texts by them, and options that say where they
are."""

import argparse
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from transformers import AutoTokenizer

from benchmarks.results import ROOT, Row
from evaluation.measures import apart
from evaluation.ngram import KneserNey
from evaluation.samples import packed_rows
from evaluation.text import known_words, token_entropy
from flm_data import DataSource, load_text

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
        return packed_rows(self._text(source), self.tokenizer, LENGTH)

    def judged(self, ids: torch.Tensor) -> Row:
        """Of texts (n, length): their perplexity, entropy, and shares of known words and pairs."""
        return {
            "gppl_ngram": float(np.exp(self.judge.token_losses(ids.numpy()).mean())),
            "entropy": float(token_entropy(ids.numpy()).mean()),
        } | self.known(ids)

    def known(self, ids: torch.Tensor) -> Row:
        """Of texts (n, length): their shares of known words and pairs."""
        words, pairs = known_words(apart(ids.tolist(), self.tokenizer), self.documents)
        return {"words": float(np.mean(words)), "pairs": float(np.mean(pairs))}


def add_stories(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the stories are, by default on the Hub."""
    parser.add_argument("--train", default="roneneldan/TinyStories")
    parser.add_argument("--validation", default={"path": "roneneldan/TinyStories", "split": "validation"})
