"""The metric modules, loaded as their users do, against independent implementations and hand-worked cases."""

import hashlib
import math

import evaluate
import numpy as np
import pytest
import torch
from children import run_python
from hypothesis import given
from hypothesis import strategies as st
from local_hub import local_hub
from mauve import compute_mauve
from transformers import AutoTokenizer, GPT2LMHeadModel

import evaluation
from benchmarks.results import BASELINES, ROOT
from evaluation.scorers import CausalScorer, locate
from evaluation.text import known_words, longest_matches, memorised, pool_entropy, repetition, self_bleu_scores
from flm_data.paths import weights_sha256

SCORER = str(BASELINES / "ar-english-small")
TEXTS = ["the king went to the house of the king", "", "and it came to pass", "a"]


def load(metric: str):
    return evaluate.load(evaluation.path(metric))


@pytest.fixture(scope="module")
def scorer():
    return CausalScorer(SCORER)


def test_every_metric_loads_and_takes_ids_or_texts():
    ids, texts = [[1, 2, 1, 2], [3, 3, 3], [4, 5, 6, 7]], ["a b a b", "c c c", "d e f g"]
    for metric, settings, expected in (
        ("token_entropy", {}, {"token_entropy": (math.log(2) + 0 + math.log(4)) / 3}),
        ("distinct_n", {"n": 2}, {"distinct_n": 6 / 8}),  # ab ba ab | cc cc | de ef fg
        ("repetition", {"n": 2}, {"repetition": (1 / 3 + 1 / 2 + 0) / 3}),
    ):
        module = load(metric)
        for samples in (ids, texts):
            result = module.compute(predictions=samples, **settings)
            assert {name: result[name] for name in expected} == pytest.approx(expected)
    words = load("novelty").compute(predictions=texts, training=["x a b a", "e f g", "c"], n=2)
    # in training: ab ba, not the ab behind: it is the same bigram, so it is; cc, cc not; de not, ef fg
    assert words["novelty"] == pytest.approx((0 + 1 + 1 / 3) / 3)
    assert words["longest_run"] == 3 and words["sample_longest_runs"] == [3, 1, 3]
    numbers = load("novelty").compute(predictions=ids, training=[[9, 1, 2, 1], [5, 6, 7], [3]], n=2)
    assert numbers == words
    assert load("self_bleu").compute(predictions=["a b c d e"] * 3)["self_bleu"] == pytest.approx(1)
    with pytest.raises(ValueError, match="there is no metric 'bleu': choose from distinct_n"):
        evaluation.path("bleu")


def test_generative_perplexity_of_ids_is_the_models_own_loss():
    model = GPT2LMHeadModel.from_pretrained(SCORER).eval()
    ids = torch.randint(4, 4096, (5, 40), generator=torch.Generator().manual_seed(0))
    result = load("generative_perplexity").compute(predictions=ids.tolist(), scorer=SCORER)
    with torch.no_grad():
        expected = math.exp(model(ids, labels=ids).loss)
    assert result["perplexity"][SCORER] == pytest.approx(expected, rel=1e-5)
    protocol = result["protocol"][SCORER]
    assert protocol["tokens"] == 5 * 39 and protocol["samples"] == 5 and protocol["empty"] == 0
    assert protocol["weights_sha256"] == weights_sha256(BASELINES / "ar-english-small")
    assert (protocol["dtype"], protocol["context_length"]) == ("float32", 128)


def test_generative_perplexity_of_texts_retokenises_counts_every_token_and_the_empty_ones():
    result = load("generative_perplexity").compute(predictions=TEXTS, scorer=[SCORER, SCORER])
    model, tokenizer = GPT2LMHeadModel.from_pretrained(SCORER).eval(), AutoTokenizer.from_pretrained(SCORER)
    loss, count = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]])
        with torch.no_grad():
            log_p = model(ids).logits[0].log_softmax(-1)
        loss -= sum(float(log_p[i, token]) for i, token in enumerate(ids[0, 1:]))
        count += ids.shape[1] - 1
    assert result["perplexity"][SCORER] == pytest.approx(math.exp(loss / count), rel=1e-5)
    protocol = result["protocol"][SCORER]
    assert (protocol["tokens"], protocol["samples"], protocol["empty"]) == (count, 4, 1)
    assert "retokenised" in protocol["input"]
    with pytest.raises(ValueError, match="no sample has a token to score"):
        load("generative_perplexity").compute(predictions=["", ""], scorer=SCORER)


def test_samples_longer_than_the_context_count_to_the_last_token(scorer):
    row = torch.randint(4, 4096, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    losses, tokens = scorer.score([row, row[:1], row[:128], row[127:255], row[254:]])
    assert tokens.tolist() == [299, 0, 127, 127, 45]
    assert losses[0] == pytest.approx(losses[1:].sum(), rel=1e-6)


def test_mauve_is_its_authors_own_on_our_features(scorer, capfd):
    rng = np.random.default_rng(0)
    real, samples = rng.integers(4, 4096, (2, 24, 10)).tolist()
    result = load("mauve").compute(predictions=samples, real=real, scorer=SCORER)
    assert "clustering" not in capfd.readouterr().err  # faiss finds 24 samples in a cluster too few, and says so
    with torch.no_grad():
        hidden = [
            scorer.model.transformer(torch.tensor(rows)).last_hidden_state[:, -1].numpy() for rows in (real, samples)
        ]
    expected = compute_mauve(p_features=hidden[0], q_features=hidden[1], verbose=False)
    assert result == {"mauve": pytest.approx(expected.mauve, abs=1e-6), "num_buckets": 2}
    assert load("mauve").compute(predictions=real, real=real, scorer=SCORER)["mauve"] == pytest.approx(1, abs=0.05)
    ragged = [samples[0][:5], samples[1], samples[2][:5], samples[3]]
    alone = np.concatenate([scorer.features([row]) for row in ragged])
    assert scorer.features(ragged) == pytest.approx(alone, abs=1e-4)
    with pytest.raises(ValueError, match="sample 1 is empty"):
        scorer.features([[1], []])


def test_features_are_of_a_position_that_was_trained(scorer):
    """Where a row ends with EOS, or with the context, the state there predicts nothing."""
    bos, eos = scorer.tokenizer.bos_token_id, scorer.tokenizer.eos_token_id
    row = torch.randint(4, 4096, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    rows = [[bos, *row[:126], eos], [bos, *row[:126]], row, row[:127], [bos, eos], [bos]]
    features = scorer.features(rows)
    for ended, plain in ((0, 1), (2, 3), (4, 5)):
        assert features[ended] == pytest.approx(features[plain], abs=1e-4)


def test_what_is_no_scorer_is_refused():
    with pytest.raises(ValueError, match="no/such is no folder, and cannot be had from the Hub"):
        locate("no/such")
    with pytest.raises(ValueError, match="the scorer .*sudoku.* cannot be loaded"):
        CausalScorer(str(BASELINES.parent.parent / "examples" / "sudoku"))


FROM_THE_HUB = """
import sys
from evaluation.scorers import locate
from flm_data.paths import weights_sha256
for name in sys.argv[1:]:
    folder, commit = locate(name)
    print(commit, weights_sha256(folder), *sorted(path.name for path in folder.iterdir()))
"""


def test_a_model_on_the_hub_is_pinned_by_its_commit_and_nothing_pickled_is_fetched(tmp_path):
    key = ("models", "org/model")
    with local_hub(tmp_path) as (environment, hub):
        first, second = (
            hub.commit(key, {"config.json": b"{}", "model.safetensors": weights, "pytorch_model.bin": b"pickle"})
            for weights in (b"old", b"new")
        )
        command = ["-P", "-c", FROM_THE_HUB, f"org/model@{first}", "org/model"]
        shown = run_python(*command, cwd=tmp_path, **environment, PYTHONPATH=str(ROOT)).stdout
    expected = [
        f"{commit} {hashlib.sha256(weights).hexdigest()} config.json model.safetensors"
        for commit, weights in ((first, b"old"), (second, b"new"))
    ]
    assert shown.splitlines() == expected


def bleu(candidate: list, references: list[list]) -> float:
    """BLEU-4 by its definition (Papineni et al., 2002), no smoothing: there is an overlap of every order here."""
    logs = []
    for n in range(1, 5):
        count = {}
        for i in range(len(candidate) - n + 1):
            gram = tuple(candidate[i : i + n])
            count[gram] = count.get(gram, 0) + 1
        clipped = 0
        for gram, times in count.items():
            most = max(sum(tuple(other[i : i + n]) == gram for i in range(len(other) - n + 1)) for other in references)
            clipped += min(times, most)
        logs.append(math.log(clipped / sum(count.values())))
    closest = min((abs(len(other) - len(candidate)), len(other)) for other in references)[1]
    return min(1, math.exp(1 - closest / len(candidate))) * math.exp(sum(logs) / 4)


def test_self_bleu_is_bleu_by_its_definition():
    rows = np.random.default_rng(2).integers(0, 3, (5, 30))
    expected = [bleu(row.tolist(), [r.tolist() for j, r in enumerate(rows) if j != i]) for i, row in enumerate(rows)]
    assert self_bleu_scores(rows) == pytest.approx(expected)
    with pytest.raises(ValueError, match="self-BLEU compares samples with each other, but there are 1"):
        self_bleu_scores(rows[:1])


def test_pool_entropy_and_empty_samples():
    assert pool_entropy([[1, 1], [], [2, 2]]) == pytest.approx(math.log(2))
    assert evaluation.text.token_entropy([[1, 1], [], [1, 2]]) == pytest.approx([0, 0, math.log(2)])
    assert repetition([[], [1], [1, 1, 1]], 2).tolist() == [0, 0, 0.5]
    assert evaluation.text.distinct_n([[], [1]], 2) == 0
    with pytest.raises(ValueError, match="no tokens"):
        pool_entropy([[], []])


def test_known_words_are_worked_by_hand():
    training = ["The cat sat. On the mat,", "it slept", ""]
    texts = [
        "ed The CAT slept on the dog s",  # of six words dog is not known; the-cat and on-the of five pairs are
        "cat mat it the mat cat",  # of three pairs the-mat is known; mat-it is of two documents
        "zzz cat zzz",  # a word, no pair
        "zzz zzz",  # the first and the last word are left out: nothing is left
        "",
    ]
    words, pairs = [5 / 6, 1, 1, 0, 0], [2 / 5, 1 / 3, 0, 0, 0]
    assert np.stack(known_words(texts, training)) == pytest.approx(np.array([words, pairs]))
    expected = {"known_words": np.mean(words), "known_pairs": np.mean(pairs)}
    expected |= {"sample_known_words": words, "sample_known_pairs": pairs}
    result = load("known_words").compute(predictions=texts, training=iter(training))
    assert {name: pytest.approx(value) for name, value in expected.items()} == result


def test_words_are_runs_of_letters_of_any_script_without_digits_and_apostrophes():
    training = ["don't ÉCOLE naïve", "Война и мир", "abc1def_ghi"]
    for word, known in (
        ("don", 1), ("T", 1), ("dont", 0), ("école", 1), ("cole", 0), ("NAÏVE", 1), ("война", 1), ("МИР", 1),
        ("def", 1), ("abc", 1), ("abcdef", 0), ("42", 0), ("_", 0),
    ):  # fmt: skip
        assert known_words([f"x {word} x"], training)[0] == known, word
    words, pairs = known_words(["x don’t ¡école! 7 naïve y"], training)
    assert (words, pairs) == (1, 1)  # don-t, t-école, école-naïve


rows_of = st.lists(st.lists(st.integers(0, 3), max_size=8), min_size=1, max_size=4)


@given(rows_of, rows_of, st.integers(1, 5), st.integers(1, 12))
def test_longest_matches_are_those_of_plain_search(samples, training, n, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation.text, "TOKENS_AT_ONCE", at_once)
        matches = longest_matches(samples, training)

    def occurs(run: list) -> bool:
        return any(row[i : i + len(run)] == run for row in training for i in range(len(row) - len(run) + 1))

    for row, match in zip(samples, matches, strict=True):
        for i, length in enumerate(match):
            assert length == max(k for k in range(len(row) - i + 1) if k == 0 or occurs(row[i : i + k]))
    shares = []
    for row in samples:
        grams = [occurs(row[i : i + n]) for i in range(len(row) - n + 1)]
        shares.append(sum(grams) / len(grams) if grams else 0)
    assert memorised(matches, n) == pytest.approx(shares)
