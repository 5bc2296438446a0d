"""How varied samples are, how new, and how far they are made of real words. Samples are rows of tokens: ids
(n, length), or lists of ids or words of any lengths; or texts, where the letters matter. Every sample counts."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

Rows = np.ndarray | Sequence[Sequence]

TOKENS_AT_ONCE = 2**22  # of a training text, when runs are looked for in it
LETTERS = re.compile(r"[^\W\d_]+")  # of any script, and numerals that are no digits, as Ⅷ


def words(samples: Sequence) -> Sequence[Sequence]:
    """Rows of tokens as they are; of texts, their words, between white space."""
    return [row.split() if isinstance(row, str) else row for row in samples]


def _entropy(counts: np.ndarray) -> float:
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum()) + 0.0  # no minus zero


def token_entropy(rows: Rows) -> np.ndarray:
    """Entropy in nats of the distribution of tokens within each sample: (n,), at most log(length); of none 0."""
    return np.array([_entropy(np.unique(row, return_counts=True)[1]) if len(row) else 0.0 for row in rows])


def pool_entropy(rows: Rows) -> float:
    """Entropy in nats of the distribution of tokens of all samples together.

    Raises:
        ValueError: there is no token.
    """
    if not sum(map(len, rows)):
        raise ValueError("the samples have no tokens: there is no entropy of their pool.")
    return _entropy(np.unique(np.concatenate([row for row in rows if len(row)]), return_counts=True)[1])


def _grams(row: Sequence, n: int) -> Iterator[tuple]:
    row = row.tolist() if isinstance(row, np.ndarray) else row
    return zip(*(row[i:] for i in range(n)), strict=False)


def distinct_n(rows: Rows, n: int) -> float:
    """Share of different n-grams among all n-grams of all samples (Li et al., 2016); 0 where there is none."""
    counts = Counter(gram for row in rows for gram in _grams(row, n))
    return len(counts) / max(counts.total(), 1)


def repetition(rows: Rows, n: int) -> np.ndarray:
    """Of each sample, the share of its n-grams that it has already had: 1 - different n-grams / n-grams, (n,).

    "seq-rep-n" of Welleck et al. (2020), "rep-n" of Su et al. (2022). A sample of fewer than n tokens repeats none.
    """
    return np.array(
        [1 - len(set(_grams(row, n))) / max(len(row) - n + 1, 1) if len(row) >= n else 0.0 for row in rows]
    )


def self_bleu_scores(rows: Rows) -> np.ndarray:
    """BLEU-4, in [0, 1], of each sample against all others: (n,).

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
    """Mean of [`self_bleu_scores`] (Zhu et al., 2018): 1 where all samples are the same."""
    return float(np.mean(self_bleu_scores(rows)))


def longest_matches(rows: Rows, training: Iterable[Sequence | np.ndarray]) -> list[np.ndarray]:
    """For every token of every sample: the length of the longest run from there on that some row of `training` has.

    So an n-gram occurs in the training text where its first token's match is n or more. Exact: runs are numbered, not
    hashed, and grow token by token in those places of both texts that still agree.
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
    """Of each sample, the share of its n-grams that occur in the training text, from [`longest_matches`]; 0 where it
    has none."""
    return np.array(
        [float((match[: len(match) - n + 1] >= n).mean()) if len(match) >= n else 0.0 for match in matches]
    )


def known_words(texts: Iterable[str], training: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Of each text, the share of its words that occur in the documents of `training`, and the share of its pairs of
    neighbouring words that are neighbours in one of them: (n,), (n,), in [0, 1]; 0 where it has none.

    Words are runs of letters, in lower case; whatever is between two of them, they are neighbours. Left out are the
    first and the last word of a text, as one that is cut from a stream may begin and end within a word.
    """
    rows = [_letter_words(text)[1:-1] for text in texts]
    lengths = (1, 2)
    wanted = {n: {gram for row in rows for gram in _grams(row, n)} for n in lengths}
    known: dict[int, set[tuple]] = {n: set() for n in lengths}  # of the wanted only: a training text has millions
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


def _stream(rows: Iterable[Sequence | np.ndarray], known: np.ndarray) -> np.ndarray:
    """All rows one after another, as places in the sorted tokens `known`; -1 for another token, and after each row."""
    parts = [np.empty(0, np.int64)]
    for row in rows:
        codes = np.full(len(row) + 1, -1)
        if len(row) and len(known):
            place = np.searchsorted(known, np.asarray(row)).clip(max=len(known) - 1)
            codes[:-1] = np.where(known[place] == np.asarray(row), place, -1)
        parts.append(codes)
    return np.concatenate(parts)


def _streams(rows: Iterable[Sequence | np.ndarray], known: np.ndarray) -> Iterator[np.ndarray]:
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
    """Raise `best`, of each place of `samples`, to the length of the longest run from there that `training` has."""
    base = max(samples.max(initial=0), training.max(initial=0)) + 1
    here, there = np.arange(len(samples)), np.arange(len(training))
    runs_here, runs_there = np.zeros_like(here), np.zeros_like(there)  # the number of the run that begins at a place
    length = 0
    while len(here) and len(there):
        next_here, next_there = samples[here + length], training[there + length]
        inside_here, inside_there = next_here >= 0, next_there >= 0  # a run that goes on has not met a row's end
        here, there = here[inside_here], there[inside_there]
        keys_here = runs_here[inside_here] * base + next_here[inside_here]
        keys_there = runs_there[inside_there] * base + next_there[inside_there]
        keys = np.unique(keys_here)
        if not len(keys):
            break
        place = np.searchsorted(keys, keys_there).clip(max=len(keys) - 1)
        found = keys[place] == keys_there
        there, runs_there = there[found], place[found]
        shared = np.zeros(len(keys), bool)
        shared[runs_there] = True
        runs_here = np.searchsorted(keys, keys_here)
        here, runs_here = here[shared[runs_here]], runs_here[shared[runs_here]]
        length += 1
        best[here] = np.maximum(best[here], length)
