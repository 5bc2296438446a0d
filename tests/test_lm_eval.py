"""Flow language models in the lm-eval harness: tasks run offline, and the answers are the bounds of the package."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from tiny import tiny_model
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from evaluation.likelihood import log_likelihood
from evaluation.lm_eval_adapter import FlowLM
from evaluation.sudoku import is_valid

ROOT = Path(__file__).parent.parent
TASKS = ROOT / "examples" / "lm_eval"
FAST = dict(num_steps=4, end=0.9)


def request(kind: str, *arguments) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@pytest.fixture(scope="module")
def english(tmp_path_factory) -> FlowLM:
    """A tiny model of random weights with the corpus's tokenizer, and a context of 12 tokens."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model(vocab_size=4096, bos_token_id=0, eos_token_id=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "examples" / "corpus" / "tokenizer").save_pretrained(folder)
    return FlowLM(str(folder), batch_size=2, generation_steps=2, **FAST)


def test_a_batch_size_is_a_number():
    with pytest.raises(ValueError, match="`batch_size` must be a number here, but is 'auto'"):
        FlowLM("hub_cards/flm-shidoku", batch_size="auto")


def bound(lm: FlowLM, ids: list[int], given: int, seed: int = 0) -> float:
    mask = torch.arange(len(ids)) < given
    found = log_likelihood(lm.model, torch.tensor([ids]), conditioning_mask=mask[None], seed=seed, **FAST)
    return found.bound.item()


def test_the_harness_tells_grids_from_what_is_none(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = simple_evaluate(
        model="flm",
        model_args={"pretrained": "hub_cards/flm-shidoku", "num_steps": 8, "num_probes": 8, "batch_size": 12},
        tasks=["shidoku_choice", "shidoku_perplexity"],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        bootstrap_iters=0,
    )
    assert found["results"]["shidoku_choice"]["acc,none"] == 1
    bits = found["results"]["shidoku_perplexity"]["bits_per_byte,none"]
    assert 0.9 * np.log2(288) / 16 < bits < 1  # log2(4) = 2 for digits at random


def test_the_choices_are_a_grid_and_one_that_is_none():
    for line in (TASKS / "shidoku.jsonl").read_text().splitlines():
        doc = json.loads(line)
        grids = np.array([[int(digit) for digit in choice] for choice in doc["choices"]])
        assert is_valid(grids).tolist() == [doc["answer"] == 0, doc["answer"] == 1]
        assert doc["choices"][doc["answer"]] == doc["grid"]


def test_log_likelihoods_are_the_bounds(english):
    pairs = [("In the beginning", " was the word"), ("", "He said"), ("In the", " end")]
    answers = english.loglikelihood([request("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
    for (context, continuation), (value, is_greedy) in zip(pairs, answers, strict=True):
        given = [0, *english.tok_encode(context)]
        ids = [0, *english.tok_encode(context + continuation)]
        assert value == pytest.approx(bound(english, ids, len(given)), abs=1e-3) and is_greedy is False


def test_long_texts(english):
    long = " ".join(["In the beginning was the word and the word was good"] * 3)
    ids = english.tok_encode(long)
    assert 22 < len(ids) <= 33  # three windows of BOS and 11 tokens, the last one filled up with what comes before
    (total,) = english.loglikelihood_rolling([request("loglikelihood_rolling", long)], disable_tqdm=True)
    first = bound(english, [0, *ids[:11]], 1)
    second = bound(english, ids[10:22], 1, seed=1)
    last = bound(english, ids[-12:], 12 - (len(ids) - 22), seed=2)
    assert total == pytest.approx(first + second + last, abs=1e-3)

    context = english.tok_encode(long)
    ((cut, _),) = english.loglikelihood([request("loglikelihood", long, " amen")], disable_tqdm=True)
    whole = english.tok_encode(long + " amen")
    assert cut == pytest.approx(bound(english, whole[-12:], 12 - (len(whole) - len(context))), abs=1e-3)
    with pytest.raises(ValueError, match="can have between 1 and the model's context, 12"):
        english.loglikelihood([request("loglikelihood", "In", " " + long)], disable_tqdm=True)


def test_generation_goes_on_from_the_context_and_stops(english):
    context = "In the beginning"
    given = torch.tensor([[0, *english.tok_encode(context)]])
    ids = english.model.generate(given, num_steps=2, seed=0)[0, given.shape[1] :].tolist()
    ids = ids[: ids.index(1)] if 1 in ids else ids
    text = english.tokenizer.decode(ids, skip_special_tokens=True)
    stop = text[len(text) // 2 :][:2]
    short = english.model.generate(given, num_steps=2, seed=0, max_new_tokens=2)[0, -2:]
    settings = [{}, {"until": [stop], "temperature": 0.0}, {"max_gen_toks": 2}]
    requests = [request("generate_until", context, setting) for setting in settings]
    answers = [english.generate_until([one], disable_tqdm=True)[0] for one in requests]
    assert answers[0] == text and len(text) > 4
    assert answers[1] == text.split(stop)[0]
    assert answers[2] == english.tokenizer.decode(short, skip_special_tokens=True)
    many = "In the beginning was the word and the word was good " * 3
    assert english.generate_until([request("generate_until", many, {"max_gen_toks": 300})], disable_tqdm=True)[0]


def test_other_models_are_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`pretrained` must be a flow language model, but .* is GPT2Model"):
        FlowLM(str(tmp_path))
