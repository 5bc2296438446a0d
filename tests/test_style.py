"""What benchmarks/style.py says of samples: its judges, its markers, its loss."""

import numpy as np
import pytest
import torch
from tiny import random_ids, tiny_model

from benchmarks.style import MARKERS, denoising_loss, log_likelihood_ratio, per_thousand_words
from evaluation.ngram import KneserNey


def markov(next_token: dict[int, tuple[int, int]], rows: int, seed: int) -> np.ndarray:
    """Rows of 20 tokens of 4, each followed by one of two with equal probability."""
    rng = np.random.default_rng(seed)
    out = rng.integers(4, size=(rows, 20))
    for i in range(1, 20):
        out[:, i] = [rng.choice(next_token[t]) for t in out[:, i - 1]]
    return out


def test_the_ratio_of_two_known_languages():
    up = {0: (0, 1), 1: (1, 2), 2: (2, 3), 3: (3, 0)}
    down = {0: (0, 3), 1: (1, 0), 2: (2, 1), 3: (3, 2)}
    judges = [KneserNey(markov(language, 300, seed=0), 4, order=2) for language in (up, down)]
    for language, sign in ((up, 1), (down, -1)):
        ratio = log_likelihood_ratio(*judges, markov(language, 50, seed=1))
        assert ratio.shape == (50,) and (sign * ratio > 0.3).all()
    same = np.repeat(np.arange(4)[:, None], 20, axis=1)  # every token after itself: as likely in both
    assert np.abs(log_likelihood_ratio(*judges, same)).max() < 0.1
    rows = markov(up, 5, seed=2)
    assert log_likelihood_ratio(*judges[::-1], rows) == pytest.approx(-log_likelihood_ratio(*judges, rows))


def test_markers_are_counted_by_thousand_words():
    play = "KING.\nThou art my lord; what Hath he done?\n\nFIRST LORD.\nNo, thy\nK. is a. KING."
    text = "The Government of the United States, and the country's thousand"
    found = {name: per_thousand_words(pattern, [play, text]) for name, pattern in MARKERS.items()}
    words = len(play.split()) + len(text.split())
    assert found == {name: 1000 * count / words for name, count in (("speakers", 2), ("thou", 3), ("states", 4))}


def test_the_denoising_loss_is_that_of_the_model_at_fixed_noise():
    model, rows = tiny_model(), random_ids(40, 12).numpy()
    loss = denoising_loss(model, rows)
    assert loss == denoising_loss(model, rows)
    with torch.no_grad():
        whole = model(
            labels=torch.from_numpy(rows), timesteps=(torch.arange(40) + 0.5) / 40, noise_seed=list(range(40))
        ).loss
    assert loss == pytest.approx(float(whole), rel=1e-5)
