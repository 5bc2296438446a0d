"""Any combination of arguments of `generate` that is allowed does what each of them says; one that is not is refused
by one clear line that names what is wrong."""

import re
from itertools import zip_longest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_ids, tiny_model
from transformers import GenerationConfig

from modeling_flm import FlowGenerationOutput

BLANK, EOS, PAD, VOCAB, CONTEXT = 0, 3, 5, 61, 12
MODELS = {kind: tiny_model(kind, mask_token_id=BLANK) for kind in ("flm", "fmlm")}
WEAK = {kind: tiny_model(kind, hidden_size=16, weights_seed=1) for kind in ("flm", "fmlm")}


def total(ahead):
    return ahead.embedding.sum((1, 2))


@st.composite
def allowed(draw) -> tuple[str, dict]:
    """A kind of model and arguments that go together, most of them given."""
    kind = draw(st.sampled_from(list(MODELS)))
    some = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    often = st.sampled_from([True, True, False])
    given_: dict = {"num_steps": some(1, 2, 3)}
    if draw(often):
        given_["sampler"] = some("euler", "multistep", "bridge", *(["flow_map"] if kind == "fmlm" else []))
    chosen = given_.get("sampler", {"flm": "euler", "fmlm": "flow_map"}[kind])
    if chosen == "bridge" or ("sampler" not in given_ and some(True, False)):
        given_ |= {"temperature": some(0, 0.5, 1), "top_k": some(None, 1, 5, 100), "top_p": some(None, 0.3, 1.0)}
        chosen = "bridge"
    if chosen == "flow_map" and draw(often):
        given_ |= {"gamma": some(0, 0.5, 1.0), "renoise": some(None, "official", "markov")}
    if draw(often):
        given_["timesteps"] = some([0], [0, 0.4], [0, 0.9, 0.95])
        given_["num_steps"] = some(None, len(given_["timesteps"]))

    batch = some(1, 2, 3)
    if draw(often):
        width = some(1, 4, 7)
        ids = random_ids(batch, width, seed=some(0, 1, 2)).clamp(min=1)
        ids[0, -1] = some(int(ids[0, -1]), BLANK)
        given_["input_ids"] = ids
        if draw(often):  # a prompt may be empty, but not all of them
            lengths = torch.tensor([width, *(draw(st.integers(0, width)) for _ in range(batch - 1))])[:, None]
            place = torch.arange(width)
            given_["attention_mask"] = (place >= width - lengths if some(True, False) else place < lengths).long()
        if draw(often):
            given_["conditioning_mask"] = torch.tensor(draw(st.lists(st.booleans(), min_size=width, max_size=width)))
            given_["conditioning_mask"] = given_["conditioning_mask"].expand(batch, width)
        given_["batch_size"] = some(None, batch)
    else:
        given_["batch_size"] = batch
    length = some("max_length", "max_new_tokens", None)
    windows = draw(st.booleans())
    if length:
        given_[length] = some(*(1, 5) if length == "max_new_tokens" else (8, 12), *([15] if windows else []))
    if windows:
        given_["window_overlap"] = some(0, 3, 11)

    if chosen != "bridge" and draw(often):
        given_["guidance_scale"] = some(0, 1, 3.0)
        given_ |= some({"guidance_dropout": 0.2}, {"guidance_model": WEAK[kind]})
    steps = given_["num_steps"] or len(given_["timesteps"])
    if steps > 1 and draw(often):
        given_ |= {"reward_fn": total, "reward_scale": some(None, 0, 2.0)}
    if draw(often):
        given_ |= {"refine_steps": some(1, 2), "refine_fraction": some(None, 0.5, 1)}
    if draw(often):
        given_ |= {"suppress_tokens": some([], [1, 2]), "bad_words_ids": some(None, [[4]])}
    if draw(often):
        given_ |= {"pad_after_eos": some(True, False), "eos_token_id": some(EOS, [EOS, 9]), "pad_token_id": PAD}
    given_ |= {"num_return_sequences": some(None, 1, 2), "seed": some(0, 7), "progress_bar": some(False, None)}
    given_ |= {"return_dict_in_generate": some(None, True, False), "do_sample": some(None, True)}
    if (given_.get(length, 0) if length else 0) <= CONTEXT and "window_overlap" not in given_:
        given_["output_trajectory"] = draw(st.booleans())
    if draw(often):  # by a configuration
        given_["generation_config"] = GenerationConfig(
            do_sample=True, num_return_sequences=given_.pop("num_return_sequences")
        )
    return kind, {name: value for name, value in given_.items() if value is not None}


def ids_of(out) -> torch.Tensor:
    return out if isinstance(out, torch.Tensor) else out.sequences


SETTINGS = settings(max_examples=120, derandomize=False, deadline=None, print_blob=True, database=None)


@SETTINGS
@given(allowed())
def test_what_is_allowed_does_what_it_says(drawn):
    kind, arguments = drawn
    model = MODELS[kind]
    out = model.generate(**arguments)
    ids = ids_of(out)
    whole = arguments.get("return_dict_in_generate") or arguments.get("output_trajectory")
    assert isinstance(out, FlowGenerationOutput if whole else torch.Tensor)

    prompts = arguments.get("input_ids", torch.empty(arguments.get("batch_size", 1), 0, dtype=torch.long))
    masks = arguments.get("attention_mask", torch.ones_like(prompts)).bool()
    keeps = arguments.get("conditioning_mask", prompts != BLANK).bool()
    config = arguments.get("generation_config", GenerationConfig())
    repeats = arguments.get("num_return_sequences", config.num_return_sequences or 1)
    assert ids.dtype == torch.int64 and len(ids) == repeats * len(prompts)
    assert 0 <= ids.min() and ids.max() < VOCAB
    lengths, padded = [], []
    for row in range(len(ids)):
        mask = masks[row // repeats]
        prompt, keep = prompts[row // repeats][mask], keeps[row // repeats][mask]
        longest = arguments.get("max_length", CONTEXT)
        lengths.append(len(prompt) + arguments["max_new_tokens"] if "max_new_tokens" in arguments else longest)
        text = ids[row, : lengths[-1]]
        assert torch.equal(text[: len(prompt)][keep], prompt[keep])
        written = torch.cat([text[: len(prompt)][~keep], text[len(prompt) :]])
        ends = {EOS, *(x for x in [arguments.get("eos_token_id")] if isinstance(x, int))}
        ends |= set(arguments["eos_token_id"]) if isinstance(arguments.get("eos_token_id"), list) else set()
        if arguments.get("pad_after_eos"):
            end = next((place for place, token in enumerate(written.tolist()) if token in ends), len(written))
            assert (written[end + 1 :] == PAD).all()
            padded.append(len(written[end + 1 :]))
            written = written[: end + 1]
        forbidden = {*arguments.get("suppress_tokens", []), *(word[0] for word in arguments.get("bad_words_ids", []))}
        assert not forbidden & set(written.tolist())
        assert (ids[row, lengths[-1] :] == arguments.get("pad_token_id", 0)).all()
    assert ids.shape[1] == max(lengths)
    assert torch.equal(ids, ids_of(model.generate(**arguments)))  # a seed writes the same
    if whole:
        assert out.seeds == list(range(arguments["seed"], arguments["seed"] + len(ids)))
        texts = [length - more for length, more in zip_longest(lengths, padded, fillvalue=0)]
        assert out.attention_mask.sum(1).tolist() == texts
        assert out.num_function_evaluations >= arguments.get("num_steps", 1) and out.tokens_per_forward > 0
    if arguments.get("output_trajectory"):
        assert out.trajectory.shape[1:] == out.confidence.shape[1:] == ids.shape
        assert ((out.confidence >= 0) & (out.confidence <= 1)).all()


WRONG = {
    "num_steps": [0, -1, 2.0, "4", True],
    "timesteps": [[], [0.5], [0, 0.5, 0.5], [0, 0.5, 0.500000001], [0, 1.0]],
    "sampler": ["heun", 3],
    "top_k": [0, 2.5],
    "top_p": [0, 1.5],
    "temperature": [-1, float("nan")],
    "gamma": [-0.1, 2],
    "renoise": ["no"],
    "max_length": [0, 2.0],
    "max_new_tokens": [0, -3],
    "window_overlap": [-1, CONTEXT],
    "batch_size": [0, "2"],
    "num_return_sequences": [0, 1.5],
    "seed": ["x", 1.5, [1] * 50, 2**64],
    "guidance_scale": [-1, "2"],
    "guidance_dropout": [0, 1.0],
    "guidance_model": ["gpt2"],
    "reward_fn": [3],
    "reward_scale": [float("inf")],
    "refine_steps": [-1, 0.5],
    "refine_fraction": [0, 2],
    "suppress_tokens": [[VOCAB], ["a"], list(range(VOCAB))],
    "bad_words_ids": [[[4, 5]], 4],
    "eos_token_id": [-1, [1.5]],
    "tokenizer": [3],
    "generator": [3],
    "input_ids": [torch.ones(2, 2), torch.tensor([[VOCAB]]), [[1, 2]]],
    "attention_mask": [torch.ones(9, 9)],
    "conditioning_mask": [torch.ones(9, 9)],
    "generation_config": [{"num_steps": 4}],
    "do_sample": [False],
    "num_beams": [2],
    "num_stps": [2],
}


@SETTINGS
@given(allowed(), st.sampled_from([(name, value) for name, values in WRONG.items() for value in values]))
def test_what_is_not_allowed_is_named(drawn, wrong):
    """Among any others that are: unless they already contradict it, which is said too."""
    kind, arguments = drawn
    if wrong[0] == "input_ids":
        arguments.pop("batch_size", None)  # which would not agree with them
    with pytest.raises(ValueError) as caught:
        MODELS[kind].generate(**arguments | dict([wrong]))
    message = str(caught.value)
    assert "\n" not in message and len(message) > 20
    assert re.search(rf"\b{wrong[0]}\b", message), message
