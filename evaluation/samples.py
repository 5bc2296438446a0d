"""What `flm evaluate` compares: sets of samples, and real text, in the ids of a common tokenizer."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from flm_data import DataSource, load_text, pack
from flm_data.paths import sha256

from .text import Rows


@dataclass(frozen=True)
class Samples:
    """A set of samples: its row of the result, ids by the common tokenizer, and texts without special tokens. All
    metrics but perplexity are computed from the ids."""

    row: dict
    rows: Rows
    texts: list[str]

    @property
    def title(self) -> str:
        """The model and its settings, as the user is told of them."""
        settings = (f"{name} {value}" for name, value in self.row["settings"].items())
        return " ".join([self.row["model"], *settings])


@dataclass(frozen=True)
class Common:
    """The tokenizer that all samples are compared by, and whether all models share its vocabulary. If they do not,
    samples are compared as texts without special tokens, which this tokenizer tokenizes anew and cuts to `length`
    tokens."""

    tokenizer: PreTrainedTokenizerBase
    shared: bool
    length: int

    def samples(self, row: dict, ids: Rows) -> Samples:
        """A set of samples from ids of this tokenizer."""
        texts = self.tokenizer.batch_decode(list(ids), skip_special_tokens=True)
        return Samples(row, ids, texts) if self.shared else self.samples_of_texts(row, texts)

    def samples_of_texts(self, row: dict, texts: list[str]) -> Samples:
        """A set of samples from texts."""
        whole = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        rows = [ids[: self.length] for ids in whole]
        each = zip(texts, whole, rows, strict=True)
        kept = [text if ids == cut else str(self.tokenizer.decode(cut)) for text, ids, cut in each]
        return Samples(row, rows, kept)

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


def documents(file: str) -> Dataset:
    return load_text(DataSource.parse(os.path.abspath(file), "."))


def packed_rows(texts: Dataset, tokenizer: PreTrainedTokenizerBase, length: int) -> np.ndarray:
    """Rows (n, length) of ids, packed as for training."""
    return np.array(pack(texts, tokenizer, length).with_format("numpy")["input_ids"][:])


def packed(file: str, tokenizer: PreTrainedTokenizerBase, length: int) -> Corpus:
    path = Path(file)
    rows = packed_rows(documents(file), tokenizer, length)
    return Corpus(file, rows, {"file": path.name, "sha256": sha256(path), "rows": len(rows), "length": length})
