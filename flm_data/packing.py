"""Turns documents into rows of tokens, which models are trained on.

[`pack`] makes rows of one length of documents of any length, as the published models were trained on (arXiv
2602.16813). The documents are joined, each followed by EOS, and cut into pieces. A row is `[BOS] piece [EOS]`, without
padding. [`one_row_each`] makes a row of each document, as for Sudoku grids.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .detokenizers import DETOKENIZERS

DOCUMENTS_PER_BATCH = 1000  # packed together, as in the published code; what is left over is dropped
DOCUMENTS_PER_CALL = 16  # tokenised together: few, since the result takes hundreds of bytes per token


def load_tokenizer(
    name_or_path: str, bos_token: str | None = None, eos_token: str | None = None
) -> PreTrainedTokenizerBase:
    """Load a tokenizer with the BOS, EOS and padding tokens that packed rows need.

    BERT's [CLS] and [SEP] stand in for missing BOS and EOS. A missing padding token is added as [PAD]: so the GPT-2
    vocabulary of the paper has 50,258 entries.

    Args:
        bos_token, eos_token (`str`, *optional*): tokens of the vocabulary to take for BOS and EOS.

    Raises:
        ValueError: neither BOS nor [CLS] is there or named, or neither EOS nor [SEP].
    """
    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    for role, named, stand_in in (("bos_token", bos_token, "cls_token"), ("eos_token", eos_token, "sep_token")):
        token = named or getattr(tokenizer, role) or getattr(tokenizer, stand_in)
        if token is None:
            raise ValueError(
                f"The tokenizer {name_or_path} has no `{role}`, nor a `{stand_in}` to take its place: name one of its "
                f"tokens (data.{role}=...), or make each document a row (data.packing=rows)."
            )
        setattr(tokenizer, role, token)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


def _token_id(tokenizer: PreTrainedTokenizerBase, role: str) -> int:
    """The id of the tokenizer's token for `role`, such as "bos_token"."""
    token = getattr(tokenizer, role)
    if token is None:
        raise ValueError(f"The tokenizer has no `{role}`: load it with `load_tokenizer`.")
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        raise ValueError(f"`{role}` {token!r} is not in the tokenizer's vocabulary.")
    return vocabulary[token]


def pack(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    text_column: str = "text",
    detokenizer: str | None = None,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Tokenise documents and pack them into rows of exactly `length` tokens, with the one column `input_ids` (int32).

    Each document is tokenised without special tokens and followed by EOS. The documents of a batch (1,000) are joined
    and cut into pieces of `length - 2` tokens. A row is `[BOS] piece [EOS]`. Tokens at the end of a batch that do not
    fill a piece are dropped. Documents that are None or have no token are skipped.

    Args:
        dataset: the documents. Those of an `IterableDataset` are packed as they are read, in the same order.
        tokenizer: a tokenizer with BOS and EOS, see [`load_tokenizer`].
        length (`int`): tokens per row, at least 3.
        text_column (`str`): the column with the documents.
        detokenizer (`str`, *optional*): "lm1b" to undo what LM1B did to its text, before it is tokenised.
        num_proc (`int`, *optional*): number of processes. Each packs an unbroken share of the documents, with a last
            batch of its own. Without effect on an `IterableDataset`.

    Raises:
        ValueError: if an argument breaks its rule, a document is not text, or the whole corpus does not fill a row.
    """
    if length < 3:
        raise ValueError(f"`length` is {length}, but a row is [BOS], a token or more, and [EOS]: at least 3.")
    if detokenizer is not None and detokenizer not in DETOKENIZERS:
        raise ValueError(f"Unknown `detokenizer` {detokenizer!r}; there are {sorted(DETOKENIZERS)}.")
    columns = _columns(dataset, text_column)
    options: dict[str, Any] = {
        "batched": True,
        "batch_size": DOCUMENTS_PER_BATCH,
        "input_columns": [text_column],
        "remove_columns": columns,
        "features": Features({"input_ids": List(Value("int32"))}),
        # Arguments, not a closure: `datasets` hashes them to find packed rows again in its cache.
        "fn_kwargs": {
            "tokenizer": tokenizer,
            "length": length,
            "detokenizer": detokenizer,
            "bos": _token_id(tokenizer, "bos_token"),
            "eos": _token_id(tokenizer, "eos_token"),
        },
    }
    if isinstance(dataset, IterableDataset):
        return dataset.map(_pack_batch, **options)
    rows = dataset.map(_pack_batch, num_proc=num_proc, desc="Packing", **options)
    if len(rows) == 0:
        raise ValueError(f"The corpus is too small: {len(dataset)} documents fill no row of {length} tokens.")
    return rows


def one_row_each(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    text_column: str = "text",
    num_proc: int | None = None,
    given_column: str | None = None,
) -> Dataset | IterableDataset:
    """Tokenise each document to a row of its own, without special tokens, with a column `input_ids` (int32).

    Args:
        dataset, tokenizer, text_column, num_proc: as those of [`pack`].
        length (`int`): tokens that every document has.
        given_column (`str`, *optional*): a column with the documents as far as they are given, with the tokenizer's
            mask token in place of the others, as a puzzle has blanks. The rows then have a column `conditioning_mask`,
            1 at given tokens, which trainers keep clean and do not score.

    Raises:
        ValueError: if a column is missing, a document does not have exactly `length` tokens, a given token is another
            one than the document's, or `given_column` is named and the tokenizer has no mask token.
    """
    read, made = [text_column], ["input_ids"]
    if given_column is not None:
        if tokenizer.mask_token_id is None:
            raise ValueError(
                "`given_column` needs a tokenizer with a mask token: it stands for what is to be written."
            )
        read, made = [*read, given_column], [*made, "conditioning_mask"]
    columns = _columns(dataset, *read)
    options: dict[str, Any] = {
        "batched": True,
        "input_columns": read,
        "remove_columns": columns,
        "features": Features({name: List(Value("int32")) for name in made}),
        "fn_kwargs": {"tokenizer": tokenizer, "length": length},
    }
    if isinstance(dataset, IterableDataset):
        return dataset.map(_tokenise_rows, **options)
    return dataset.map(_tokenise_rows, num_proc=num_proc, desc="Tokenising", **options)


def _tokenise_rows(
    texts: list[str], given: list[str] | None = None, *, tokenizer: PreTrainedTokenizerBase, length: int
) -> dict[str, list[list[int]]]:
    def ids(documents: list[str]) -> list[list[int]]:
        _check_strings(documents)
        rows = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
        for text, row in zip(documents, rows, strict=True):
            if len(row) != length:
                raise ValueError(
                    f"the document {text[:40]!r} has {len(row)} tokens, but the model's rows have {length}: with "
                    "`packing: rows` each document must fill one."
                )
        return rows

    rows = ids(texts)
    if given is None:
        return {"input_ids": rows}
    clues = np.array(ids(given))
    kept = clues != tokenizer.mask_token_id
    if (wrong := (kept & (clues != np.array(rows))).any(1)).any():
        raise ValueError(
            f"given tokens must be those of the document, but those of {given[wrong.argmax()]!r} are not."
        )
    return {"input_ids": rows, "conditioning_mask": kept.astype(int).tolist()}


def _columns(dataset: Dataset | IterableDataset, *needed: str) -> list[str]:
    """All columns' names. Raises if a `needed` one is missing. A stream may only know them from its first row."""
    columns = dataset.column_names or list(next(iter(dataset), {}))
    for name in needed:
        if name not in columns:
            raise ValueError(f"There is no column `{name}` in the corpus; its columns are {columns}.")
    return columns


def _pack_batch(
    texts: list[str | None],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    detokenizer: str | None,
    bos: int,
    eos: int,
) -> dict[str, list[list[int]]]:
    """Pack one batch of documents into rows: `input_ids`, lists of `length` ids."""
    documents = [*_tokenise(texts, tokenizer, detokenizer, eos), np.empty(0, np.int32)]
    stream = np.concatenate(documents)
    count = len(stream) // (length - 2)
    rows = np.empty((count, length), np.int32)
    rows[:, 0] = bos
    rows[:, 1:-1] = stream[: count * (length - 2)].reshape(count, length - 2)
    rows[:, -1] = eos
    return {"input_ids": rows.tolist()}


def _check_strings(documents: list) -> None:
    for text in documents:
        if not isinstance(text, str):
            raise ValueError(f"A document must be a string, but there is {text!r}, a {type(text).__name__}.")


def _tokenise(
    texts: list[str | None], tokenizer: PreTrainedTokenizerBase, detokenizer: str | None, eos: int
) -> Iterator[np.ndarray]:
    """Yield the tokens of each document, followed by `eos`. Documents without tokens are skipped."""
    present = [text for text in texts if text is not None]
    _check_strings(present)
    if detokenizer is not None:
        present = [DETOKENIZERS[detokenizer](text) for text in present]
    for start in range(0, len(present), DOCUMENTS_PER_CALL):
        some = present[start : start + DOCUMENTS_PER_CALL]
        # Not verbose: the warning about long texts does not apply here, and would change the tokenizer's hash.
        for ids in tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]:
            if ids:
                yield np.array([*ids, eos], np.int32)
