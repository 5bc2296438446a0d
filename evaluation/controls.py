"""Controls: sets of samples of known worth. A metric that ranks them wrongly says nothing about models either."""

import numpy as np

PIECE = 8  # number of tokens of a loop, and of a piece of the patchwork


def controls(real: np.ndarray, training: np.ndarray | None, count: int, seed: int) -> dict[str, np.ndarray]:
    """Rearrange real text into sets of samples, (count, length) each, by their names.

    Args:
        real (`np.ndarray`): (n, length) rows of held-out text, n >= count. The first and the last token of a row, BOS
            and EOS, stay in place.
        training (`np.ndarray`, *optional*): (m, length) rows of training text, m >= count. Without it there are
            neither copies nor a patchwork of it.
        count (`int`): number of rows of each set.
        seed (`int`): seed of all random choices.

    Raises:
        ValueError: there are fewer than `count` rows of a text.
    """
    for what, text in (("held-out", real), ("training", training)):
        if text is not None and len(text) < count:
            raise ValueError(f"the {what} text has {len(text)} rows, but {count} samples are compared: ask for fewer.")
    rng = np.random.default_rng(seed)
    held_out = real[rng.choice(len(real), count, replace=False)]
    length = held_out.shape[1]
    inside = slice(1, length - 1)

    def filled(body: np.ndarray) -> np.ndarray:
        rows = held_out.copy()
        rows[:, inside] = body
        return rows

    body = held_out[:, inside]
    loops = np.tile(body[:, :PIECE], length // PIECE + 1)[:, : length - 2]
    source = (real if training is None else training)[:, inside]
    sets = {
        "held-out text": held_out,
        "held-out text, shuffled within rows": filled(rng.permuted(body, axis=1)),
        "held-out text, shuffled across rows": filled(rng.permutation(body.ravel()).reshape(body.shape)),
        "tokens drawn by frequency": filled(rng.choice(source.ravel(), body.shape)),
        f"loops of {PIECE} tokens": filled(loops),
        "one held-out text, repeated": np.repeat(held_out[:1], count, axis=0),
    }
    if training is not None:
        sets["copies of training text"] = training[rng.choice(len(training), count, replace=False)]
        pieces = length // PIECE + 1
        rows = rng.integers(len(training), size=(count, pieces, 1))
        starts = rng.integers(1, max(length - PIECE, 2), size=(count, pieces, 1))
        patchwork = training[rows, np.minimum(starts + np.arange(PIECE), length - 2)].reshape(count, -1)
        sets[f"patchwork of {PIECE} training tokens"] = filled(patchwork[:, : length - 2])
    return sets
