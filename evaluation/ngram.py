"""An interpolated Kneser-Ney n-gram model over token ids, a scorer of samples that owes nothing to neural networks.

The probability of a token w after a history h is

    p(w | h) = max(c(h w) - D, 0) / c(h) + D N(h) / c(h) p(w | h'),      h' = h without its first token,

where N(h) is the number of different tokens after h. In the highest order c(h w) counts the occurrences of `h w`, in
the lower orders the different tokens before it (Kneser and Ney, 1995). Each order has one discount
D = n1 / (n1 + 2 n2), from the numbers of n-grams that were seen once and twice (Chen and Goodman, 1999). Below the
unigrams is the uniform distribution, so every token has a probability.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass
class _Order:
    """The counts of one order. An n-gram is held as a key, its ids as the digits of a number in base V."""

    keys: np.ndarray  # of all `h w`, sorted
    counts: np.ndarray  # c(h w)
    contexts: np.ndarray  # keys of all h, sorted
    totals: np.ndarray  # c(h)
    followers: np.ndarray  # N(h)
    discount: float  # D


class KneserNey:
    """An interpolated Kneser-Ney model. N-grams do not reach across rows.

    Args:
        rows (`np.ndarray`): (n, length) ids in [0, vocab_size) to count. The first id of each row is context only.
        vocab_size (`int`): number of tokens V.
        order (`int`): length of the longest n-grams, >= 1.

    Raises:
        ValueError: V ** order does not fit 63 bits.
    """

    def __init__(self, rows: np.ndarray, vocab_size: int, order: int = 4):
        if order < 1 or vocab_size**order >= 2**63:
            raise ValueError(f"n-grams of order {order} over {vocab_size} tokens do not fit 63 bits.")
        self.vocab_size, self.order = vocab_size, order
        grams = _windows(rows, order, vocab_size)
        # The tokens at the beginning of a row have a shorter history: their shorter n-grams count by occurrence.
        openings = [_windows(rows[:, :n], n, vocab_size) for n in range(2, order)]
        keys, counts = np.unique(grams, return_counts=True)
        orders = []
        for n in range(order, 0, -1):
            orders.append(_order(keys, counts, vocab_size))
            shorter = keys % vocab_size ** (n - 1)  # as often as there are different tokens before it
            if n > 2:
                opened, times = np.unique(openings.pop(), return_counts=True)
                shorter = np.concatenate([shorter, np.repeat(opened, times)])
            keys, counts = np.unique(shorter, return_counts=True)
        self._orders = orders[::-1]

    def token_losses(self, rows: np.ndarray) -> np.ndarray:
        """-log p in nats of each token but the first of each row of ids (n, length): (n, length - 1)."""
        length = rows.shape[1]
        rows = rows.astype(np.int64)
        probability = np.full((len(rows), length - 1), 1 / self.vocab_size)
        for n, order in enumerate(self._orders, start=1):
            if n > length:
                break
            keys = _windows(rows, n, self.vocab_size)[:, (1 if n == 1 else 0) :]  # of the tokens from the max(n, 2)-th
            place = probability[:, max(n - 2, 0) :]
            counts = _look_up(order.keys, order.counts, keys)
            contexts = keys // self.vocab_size
            totals = _look_up(order.contexts, order.totals, contexts)
            followers = _look_up(order.contexts, order.followers, contexts)
            known = totals > 0
            total = np.where(known, totals, 1)
            own = np.maximum(counts - order.discount, 0) / total
            place[:] = np.where(known, own + order.discount * followers / total * place, place)
        return -np.log(probability)

    def score(self, rows: Sequence[Sequence[int]] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score n rows of ids of any lengths: the sum of -log p in nats over the tokens of each row but its first, and
        the number of these tokens, both (n,)."""
        losses = [self.token_losses(np.asarray(row)[None]).sum() if len(row) > 1 else 0.0 for row in rows]
        return np.array(losses), np.array([max(len(row) - 1, 0) for row in rows])


def _windows(rows: np.ndarray, n: int, vocab_size: int) -> np.ndarray:
    """The key of the n-gram that begins at each place of each row: (rows, length - n + 1)."""
    rows = rows.astype(np.int64)
    count = rows.shape[1] - n + 1
    keys = np.zeros((len(rows), count), np.int64)
    for i in range(n):
        keys = keys * vocab_size + rows[:, i : i + count]
    return keys


def _order(keys: np.ndarray, counts: np.ndarray, vocab_size: int) -> _Order:
    contexts, first = np.unique(keys // vocab_size, return_index=True)
    totals = np.add.reduceat(counts, first)
    followers = np.diff(np.append(first, len(keys)))
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    discount = once / (once + 2 * twice) if once else 0.5
    return _Order(keys, counts, contexts, totals, followers, float(discount))


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value that belongs to each of the `wanted` keys, 0 for a key that is not among `keys`."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
