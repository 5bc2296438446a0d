"""Metrics of samples against hand-worked cases and independent implementations."""

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from evaluation.ngram import KneserNey
from evaluation.scorers import causal_losses
from evaluation.text import distinct_n, self_bleu, token_entropy


def test_token_entropy():
    ids = np.array([[1, 1, 2, 2], [3, 3, 3, 3], [1, 2, 3, 4]])
    assert token_entropy(ids) == pytest.approx([math.log(2), 0, math.log(4)])


def test_distinct_n():
    ids = np.array([[1, 2, 1, 2], [1, 2, 3, 4]])  # bigrams 12 21 12 | 12 23 34
    assert distinct_n(ids, 2) == pytest.approx(4 / 6)


def test_self_bleu():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 50, (1, 20))
    assert self_bleu(np.repeat(one, 4, axis=0)) == pytest.approx(1)
    assert self_bleu(np.arange(80).reshape(4, 20)) < 0.05
    half = np.concatenate([np.repeat(one[:, :10], 4, axis=0), 100 + np.arange(40).reshape(4, 10)], axis=1)
    assert 0.3 < self_bleu(half) < 0.6


def test_causal_losses_are_those_of_the_model():
    torch.manual_seed(0)
    scorer = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=12)).eval()
    ids = torch.randint(30, (5, 12))
    losses = causal_losses(scorer, ids, batch_size=2)
    assert losses.shape == (5, 11)
    assert losses.mean() == pytest.approx(float(scorer(ids, labels=ids).loss), rel=1e-5)


def slow_kneser_ney(rows, vocab_size: int, order: int, history: tuple, word: int) -> float:
    """The definition, straight down, with sets and dictionaries."""
    if order == 0:
        return 1 / vocab_size
    longest = slow_kneser_ney.order
    counts: Counter = Counter()
    if order == longest:
        counts.update(tuple(row[i : i + order]) for row in rows for i in range(len(row) - order + 1))
    else:
        before = defaultdict(set)
        for row in rows:
            for i in range(1, len(row) - order + 1):
                before[tuple(row[i : i + order])].add(row[i - 1])
        counts.update({gram: len(tokens) for gram, tokens in before.items()})
        if order > 1:  # what begins a row has no token before it
            counts.update(tuple(row[:order]) for row in rows)
    times = Counter(counts.values())
    discount = times[1] / (times[1] + 2 * times[2]) if times[1] else 0.5
    history = tuple(history[len(history) - (order - 1) :])
    lower = slow_kneser_ney(rows, vocab_size, order - 1, history[1:], word)
    followers = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == history}
    if not followers:
        return lower
    total = sum(followers.values())
    return max(followers.get(word, 0) - discount, 0) / total + discount * len(followers) / total * lower


@pytest.mark.parametrize("order", [1, 2, 3])
def test_kneser_ney_is_its_definition_and_sums_to_one(order):
    rng = np.random.default_rng(order)
    rows = rng.choice(4, (12, 6), p=[0.1, 0.2, 0.3, 0.4])
    model = KneserNey(rows, 4, order)
    slow_kneser_ney.order = order
    for history in itertools.product(range(4), repeat=2):
        p = np.exp(-model.token_losses(np.array([[*history, word] for word in range(4)]))[:, -1])
        slow = [slow_kneser_ney(rows.tolist(), 4, order, history[3 - order :], word) for word in range(4)]
        assert p == pytest.approx(slow) and p.sum() == pytest.approx(1)


def test_kneser_ney_prefers_what_it_has_seen():
    rows = np.tile(np.arange(20), (3, 1))
    model = KneserNey(rows, 20, 3)
    assert model.token_losses(rows).mean() < 1 < model.token_losses(rows[:, ::-1]).mean()
    with pytest.raises(ValueError, match="do not fit 63 bits"):
        KneserNey(rows, 50_000, 5)
