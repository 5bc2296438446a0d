"""Metrics of the variety, the novelty and the words of samples. Samples are rows of tokens: an array of ids
(n, length), or lists of ids or words of any lengths. Every sample counts, empty ones too."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

Rows = np.ndarray | Sequence[Sequence]

TOKENS_AT_ONCE = 2**22  # of a training text that is searched for runs
LETTERS = re.compile(r"[^\W\d_]+")  # of any script; numerals that are no digits, such as Ⅷ, are letters too


def words(samples: Sequence) -> Sequence[Sequence]:
    """Samples as rows of tokens: texts are split into words at white space, rows stay as they are."""
    return [row.split() if isinstance(row, str) else row for row in samples]


def _entropy(counts: np.ndarray) -> float:
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum()) + 0.0  # 0.0, not -0.0, for a single token


def token_entropy(rows: Rows) -> np.ndarray:
    """Entropy in nats of the tokens within each sample: (n,), in [0, log(length)]; 0 for an empty sample."""
    return np.array([_entropy(np.unique(row, return_counts=True)[1]) if len(row) else 0.0 for row in rows])


def pool_entropy(rows: Rows) -> float:
    """Entropy in nats of the tokens of all samples together.

    Raises:
        ValueError: all samples are empty.
    """
    if not sum(map(len, rows)):
        raise ValueError("the samples have no tokens: there is no entropy of their pool.")
    return _entropy(np.unique(np.concatenate([row for row in rows if len(row)]), return_counts=True)[1])


def _grams(row: Sequence, n: int) -> Iterator[tuple]:
    row = row.tolist() if isinstance(row, np.ndarray) else row
    return zip(*(row[i:] for i in range(n)), strict=False)


def distinct_n(rows: Rows, n: int) -> float:
    """Number of different n-grams of all samples, divided by the number of their n-grams (Li et al., 2016): in [0, 1];
    0 where there is no n-gram."""
    counts = Counter(gram for row in rows for gram in _grams(row, n))
    return len(counts) / max(counts.total(), 1)


def repetition(rows: Rows, n: int) -> np.ndarray:
    """Share of the n-grams of each sample that occurred earlier in it: (n,), in [0, 1).

    It is 1 - different n-grams / n-grams ("seq-rep-n" of Welleck et al., 2020; "rep-n" of Su et al., 2022), and 0 for
    a sample of fewer than n tokens.
    """
    return np.array([1 - len(set(_grams(row, n))) / (len(row) - n + 1) if len(row) >= n else 0.0 for row in rows])


def self_bleu_scores(rows: Rows) -> np.ndarray:
    """BLEU-4 of each sample against all others: (n,), in [0, 1].

    Raises:
        ValueError: there are fewer than two samples.
    """
    import sacrebleu  # of the extra `evaluation`

    if len(rows) < 2:
        raise ValueError(f"self-BLEU compares samples with each other, but there are {len(rows)} of them.")
    lines = [" ".join(map(str, row)) for row in rows]
    scores = []
    for i, line in enumerate(lines):
        others = lines[:i] + lines[i + 1 :]
        scores.append(sacrebleu.sentence_bleu(line, others, tokenize="none", smooth_method="exp").score)
    return np.array(scores) / 100


def self_bleu(rows: Rows) -> float:
    """Mean of [`self_bleu_scores`] (Zhu et al., 2018), in [0, 1]: 1 where all samples are the same."""
    return float(np.mean(self_bleu_scores(rows)))


def longest_matches(rows: Rows, training: Iterable[Sequence | np.ndarray]) -> list[np.ndarray]:
    """Length of the longest run of tokens that begins at each token of each sample and occurs in a row of `training`.

    An n-gram occurs in the training text if and only if the match of its first token is n or more. The search is
    exact: runs are numbered, not hashed, and grow token by token at those places where both texts still agree.

    Returns:
        one array for each sample, as long as the sample.
    """
    flat = np.concatenate([np.asarray(row) for row in rows if len(row)]) if any(map(len, rows)) else np.empty(0, int)
    known = np.unique(flat)
    samples = _stream(rows, known)
    best = np.zeros(len(samples), np.int64)
    for stream in _streams(training, known):
        _grow(samples, stream, best)
    ends = np.cumsum([len(row) + 1 for row in rows])
    return [best[end - len(row) - 1 : end - 1] for row, end in zip(rows, ends, strict=True)]


def memorised(matches: Sequence[np.ndarray], n: int) -> np.ndarray:
    """Share of the n-grams of each sample that occur in the training text: (n,), in [0, 1]; 0 for a sample of fewer
    than n tokens. `matches` are those of [`longest_matches`]."""
    return np.array(
        [float((match[: len(match) - n + 1] >= n).mean()) if len(match) >= n else 0.0 for match in matches]
    )


def known_words(texts: Iterable[str], training: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Share of the words of each text, and of its pairs of neighbouring words, that occur in `training`.

    Words are runs of letters in lower case. Two words are neighbours whatever stands between them, as long as it is no
    word. The first and the last word of a text are left out: a text that is cut from a stream may begin and end within
    a word. A pair occurs in `training` if its words are neighbours within one document.

    Returns:
        the shares of words (n,) and of pairs (n,), in [0, 1]; 0 for a text without any.
    """
    rows = [_letter_words(text)[1:-1] for text in texts]
    lengths = (1, 2)
    wanted = {n: {gram for row in rows for gram in _grams(row, n)} for n in lengths}
    known: dict[int, set[tuple]] = {n: set() for n in lengths}  # only the wanted ones: a training text has millions
    for document in training:
        row = _letter_words(document)
        for n in lengths:
            known[n] |= wanted[n].intersection(_grams(row, n))
    words, pairs = (
        np.array([sum(gram in known[n] for gram in _grams(row, n)) / max(len(row) - n + 1, 1) for row in rows])
        for n in lengths
    )
    return words, pairs


def _letter_words(text: str) -> list[str]:
    return LETTERS.findall(text.lower())


def _index(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """The index of each value in `ordered`, which is sorted; -1 for a value that is not in it."""
    if not len(values) or not len(ordered):
        return np.full(len(values), -1)
    place = np.searchsorted(ordered, values).clip(max=len(ordered) - 1)
    return np.where(ordered[place] == values, place, -1)


def _stream(rows: Iterable[Sequence | np.ndarray], known: np.ndarray) -> np.ndarray:
    """All rows one after another, with -1 behind each, and each token as its index in `known`, or -1."""
    parts = [np.append(_index(np.asarray(row), known), -1) for row in rows]
    return np.concatenate([np.empty(0, np.int64), *parts])


def _streams(rows: Iterable[Sequence | np.ndarray], known: np.ndarray) -> Iterator[np.ndarray]:
    """[`_stream`] of the rows in portions of about `TOKENS_AT_ONCE` tokens, which bounds the memory."""
    some: list[Sequence | np.ndarray] = []
    size = 0
    for row in rows:
        some.append(row)
        size += len(row)
        if size >= TOKENS_AT_ONCE:
            yield _stream(some, known)
            some, size = [], 0
    if some:
        yield _stream(some, known)


def _grow(samples: np.ndarray, training: np.ndarray, best: np.ndarray) -> None:
    """Raise `best` at each place of `samples` to the length of the longest run from there that occurs in `training`.

    `here` and `there` are the places in both streams at which a run begins that both have, `length` is its length,
    and `runs_here` and `runs_there` are its number. Each pass makes all runs one token longer.
    """
    base = max(samples.max(initial=0), training.max(initial=0)) + 1
    here, there = np.arange(len(samples)), np.arange(len(training))
    runs_here, runs_there = np.zeros_like(here), np.zeros_like(there)
    length = 0
    while len(here) and len(there):
        next_here, next_there = samples[here + length], training[there + length]
        # A run goes on unless its row ends there, or the samples lack its next token.
        on_here, on_there = next_here >= 0, next_there >= 0
        keys, runs_here = np.unique(runs_here[on_here] * base + next_here[on_here], return_inverse=True)
        runs_there = _index(runs_there[on_there] * base + next_there[on_there], keys)
        found = runs_there >= 0
        there, runs_there = there[on_there][found], runs_there[found]
        shared = np.zeros(len(keys), bool)
        shared[runs_there] = True
        here, runs_here = here[on_here][shared[runs_here]], runs_here[shared[runs_here]]
        length += 1
        best[here] = np.maximum(best[here], length)
