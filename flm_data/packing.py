"""From documents to rows of tokens.

Documents of any length become rows of one length, as the published models were trained (arXiv 2602.16813): a
row is `[BOS] piece [EOS]`, a piece being cut from a stream of documents that are each followed by EOS. No row
is padded.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .detokenizers import DETOKENIZERS

DOCUMENTS_PER_BATCH = 1000  # packed together, as in the published code
DOCUMENTS_PER_CALL = 16  # tokenised together: few, as a tokenizer's answer takes hundreds of bytes a token


def load_tokenizer(name_or_path: str, for_wrapping: bool = True) -> PreTrainedTokenizerBase:
    """A tokenizer; `for_wrapping`, with the BOS, EOS and padding tokens which wrapped rows need.

    BERT's [CLS] and [SEP] stand in for BOS and EOS. Where there is no padding token, [PAD] is added: that is
    how the paper's GPT-2 vocabulary comes to 50,258 entries.

    Raises:
        ValueError: there is neither BOS nor [CLS], or neither EOS nor [SEP].
    """
    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    if not for_wrapping:
        return tokenizer
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.cls_token
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token
    for role, stand_in in (("bos_token", "cls_token"), ("eos_token", "sep_token")):
        if getattr(tokenizer, role) is None:
            raise ValueError(
                f"The tokenizer {name_or_path} has no `{role}`, nor a `{stand_in}` to take its place: "
                f"set `{role}` to one of its tokens and save it; or make each document a row (data.packing=rows)."
            )
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


def _token_id(tokenizer: PreTrainedTokenizerBase, role: str, token: str | None) -> int:
    """The id of `token`, or of the tokenizer's own token for that role where `token` is None."""
    token = getattr(tokenizer, role) if token is None else token
    if token is None:
        raise ValueError(f"The tokenizer has no `{role}`: load it with `load_tokenizer`, or name one.")
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
    bos_token: str | None = None,
    eos_token: str | None = None,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Rows of exactly `length` `input_ids` (int32), and nothing else, from the documents of `dataset`.

    Each document is tokenised without special tokens and followed by EOS. The documents of a batch (1,000)
    are joined and cut into pieces of `length - 2` tokens, each written as `[BOS] piece [EOS]`; what fills no
    piece at the end of a batch is dropped. Documents that are None or hold no token are skipped.

    Args:
        dataset: documents; rows of an `IterableDataset` are made as they are read, in the same order.
        tokenizer: see [`load_tokenizer`].
        length (`int`): tokens a row, at least 3.
        text_column (`str`): the column with the documents.
        detokenizer (`str`, *optional*): undoes what a corpus did to its text, before tokenising: `lm1b`.
        bos_token, eos_token (`str`, *optional*): tokens to use instead of the tokenizer's own.
        num_proc (`int`, *optional*): processes, each with an unbroken share of the documents (and so its own
            last batch); an `IterableDataset` is packed where it is read.

    Raises:
        ValueError: an argument breaks its rule, a document is not text, or the whole corpus fills no row.
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
        # Arguments, not a closure: `datasets` hashes them to find the rows again in its cache.
        "fn_kwargs": {
            "tokenizer": tokenizer,
            "length": length,
            "detokenizer": detokenizer,
            "bos": _token_id(tokenizer, "bos_token", bos_token),
            "eos": _token_id(tokenizer, "eos_token", eos_token),
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
) -> Dataset | IterableDataset:
    """Rows of exactly `length` `input_ids` (int32), one for each document: its tokens and nothing else.

    Raises:
        ValueError: there is no such column, or a document does not have `length` tokens.
    """
    columns = _columns(dataset, text_column)
    options: dict[str, Any] = {
        "batched": True,
        "input_columns": [text_column],
        "remove_columns": columns,
        "features": Features({"input_ids": List(Value("int32"))}),
        "fn_kwargs": {"tokenizer": tokenizer, "length": length},
    }
    if isinstance(dataset, IterableDataset):
        return dataset.map(_tokenise_rows, **options)
    return dataset.map(_tokenise_rows, num_proc=num_proc, desc="Tokenising", **options)


def _tokenise_rows(texts: list[str], tokenizer: PreTrainedTokenizerBase, length: int) -> dict[str, list[list[int]]]:
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    for text, row in zip(texts, rows, strict=True):
        if len(row) != length:
            raise ValueError(
                f"the document {text[:40]!r} has {len(row)} tokens, but the model's rows have {length}: with "
                "`packing: rows` each document must fill one."
            )
    return {"input_ids": rows}


def _columns(dataset: Dataset | IterableDataset, text_column: str) -> list[str]:
    """The names of the columns, `text_column` among them. A stream may not know them before its first row."""
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if text_column not in columns:
        raise ValueError(f"There is no column `{text_column}` in the corpus; its columns are {columns}.")
    return columns


def _pack_batch(
    texts: list[str | None],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    detokenizer: str | None,
    bos: int,
    eos: int,
) -> dict[str, list[list[int]]]:
    """The rows of one batch of documents: `input_ids`, a list of lists of `length` ids."""
    documents = [*_tokenise(texts, tokenizer, detokenizer, eos), np.empty(0, np.int32)]
    stream = np.concatenate(documents)
    count = len(stream) // (length - 2)
    rows = np.empty((count, length), np.int32)
    rows[:, 0] = bos
    rows[:, 1:-1] = stream[: count * (length - 2)].reshape(count, length - 2)
    rows[:, -1] = eos
    return {"input_ids": rows.tolist()}


def _tokenise(
    texts: list[str | None], tokenizer: PreTrainedTokenizerBase, detokenizer: str | None, eos: int
) -> Iterator[np.ndarray]:
    """The tokens of each document that has any, followed by `eos`."""
    present = [text for text in texts if text is not None]
    for text in present:
        if not isinstance(text, str):
            raise ValueError(f"A document must be a string, but there is {text!r}, a {type(text).__name__}.")
    if detokenizer is not None:
        present = [DETOKENIZERS[detokenizer](text) for text in present]
    for start in range(0, len(present), DOCUMENTS_PER_CALL):
        some = present[start : start + DOCUMENTS_PER_CALL]
        # Not verbose: a warning about long texts would be beside the point, and change the tokenizer's hash.
        for ids in tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]:
            if ids:
                yield np.array([*ids, eos], np.int32)
