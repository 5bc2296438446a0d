"""`generate`: what comes out, what its arguments mean, which of them wins, and how often the network is called."""

import copy
import io
import re

import numpy as np
import pytest
import torch
from spy import spy
from tiny import number_tokenizer, random_ids, tiny_model
from transformers import AutoTokenizer, CompileConfig, GenerationConfig, Trainer, TrainingArguments

from benchmarks.results import HUB
from modeling_flm import DraftStreamer, FLMModel, FlowGenerationConfig, FlowGenerationOutput, guidance_flm, prompt_ids
from trainers import FLMTrainer, FLMTrainingArguments

PROMPT = random_ids(2, 4)
FLOW, MAP = tiny_model(), tiny_model("fmlm")
FLOW.generation_config.num_steps = MAP.generation_config.num_steps = 3


@pytest.fixture(params=[FLOW, MAP], ids=["flm", "fmlm"])
def model(request):
    """Shared: no test changes it."""
    return request.param


# -- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, shape",
    [
        ({}, (1, 12)),
        ({"batch_size": 3, "num_return_sequences": 2, "max_length": 7}, (6, 7)),
        ({"max_new_tokens": 5}, (1, 5)),
        ({"input_ids": PROMPT, "batch_size": 2, "num_return_sequences": 3}, (6, 12)),
        ({"input_ids": PROMPT.int(), "max_length": 6}, (2, 6)),
        ({"input_ids": PROMPT, "max_new_tokens": 1}, (2, 5)),
        ({"input_ids": PROMPT[:, :0]}, (2, 12)),
        # as text pipelines ask
        ({"input_ids": PROMPT, "attention_mask": torch.ones(2, 4), "do_sample": True, "pad_token_id": 0}, (2, 12)),
    ],
    ids=str,
)
def test_shapes(model, arguments, shape):
    ids = model.generate(**arguments)
    assert ids.shape == shape and ids.dtype == torch.int64
    assert 0 <= ids.min() and ids.max() < 61
    given = arguments.get("input_ids", PROMPT[:, :0])
    if given.shape[1]:
        assert torch.equal(ids[:, :4], given.repeat_interleave(len(ids) // 2, dim=0))


def test_the_vocabulary_may_be_narrower_than_the_model(monkeypatch):
    model = tiny_model(vocab_size=23)
    calls = spy(monkeypatch, model, "embed_white_noise")
    ids = model.generate(num_steps=3, num_return_sequences=4, seed=0)
    assert ids.max() < 23 and len(ids.unique()) > 2
    assert any(args[0].shape == (4, 12, 23) for args in calls), "the noise was not dense"


def test_blanks_are_filled_and_the_rest_is_kept():
    model = tiny_model(mask_token_id=3)
    ids = torch.tensor([[7, 3, 9, 3, 3, 11, 12, 3, 14, 15, 16, 3]])
    kept, settings = ids[0] != 3, dict(num_steps=2, seed=0, num_return_sequences=3)
    out = model.generate(ids, return_dict_in_generate=True, **settings)
    assert torch.equal(out.sequences[:, kept], ids[:, kept].expand(3, -1)) and out.tokens_per_forward == 2.5
    assert torch.equal(out.sequences, model.generate(ids, conditioning_mask=kept[None].long(), **settings))
    other = model.generate(ids, num_steps=2, seed=0, conditioning_mask=(ids == 7).long())  # it goes before the blanks
    assert other[0, 0] == 7 and (other[0] == ids[0]).sum() < 7
    assert model.generate(ids[:, :4], seed=0).shape == (1, 12)


WEAK = tiny_model("fmlm", hidden_size=16, weights_seed=2)
BLANKS = tiny_model("fmlm", mask_token_id=0)


def reward(ahead):
    """Of the mean over a sequence: padding that counted would change it."""
    assert ahead.rows.shape == ahead.embedding.shape[:1]
    return ahead.probabilities[..., 5].mean(1).log()


ALONE = [
    {},
    {"max_length": 12, "max_new_tokens": None},
    {"sampler": "bridge", "top_p": 0.9},
    {"sampler": "multistep", "refine_steps": 2},
    {"sampler": "flow_map", "gamma": 0.5, "suppress_tokens": [1, 2]},
    {"guidance_scale": 2.0},
    {"guidance_scale": 2.0, "guidance_dropout": 0.3, "refine_steps": 1},
    {"guidance_scale": 2.0, "guidance_model": WEAK},
    {"reward_fn": reward, "reward_scale": 5.0},
    {"window_overlap": 3, "max_new_tokens": 21},
    {"window_overlap": 2, "max_length": 30, "max_new_tokens": None, "refine_steps": 1},
]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("settings", ALONE, ids=lambda settings: " ".join(settings))
def test_a_sequence_is_that_of_its_prompt_alone(settings, side):
    """Of prompts of different lengths and any sampler: the same ids, drafts and confidence as without the others."""
    ids, lengths = random_ids(4, 7).clamp(min=1), [7, 4, 4, 1]
    ids[1, 2], ids[2, 1:] = 0, 0  # blanks
    rows, mask = torch.full((4, 7), 9), torch.zeros(4, 7, dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(7 - length, 7) if side == "left" else slice(0, length)
        rows[row, place], mask[row, place] = ids[row, :length], 1
    settings = {"num_steps": 3, "max_new_tokens": 5, "num_return_sequences": 2, "pad_token_id": 60} | settings
    settings |= {"output_trajectory": "window_overlap" not in settings, "return_dict_in_generate": True}
    out = BLANKS.generate(rows, attention_mask=mask, seed=10, **settings)
    assert out.attention_mask.shape == out.sequences.shape and (out.sequences[out.attention_mask == 0] == 60).all()
    taken, written = 0, 0
    for row, length in enumerate(lengths):
        alone = BLANKS.generate(ids[row : row + 1, :length], seed=10 + 2 * row, **settings)
        own, total = slice(2 * row, 2 * row + 2), alone.sequences.shape[1]
        assert total == (settings["max_length"] if "max_length" in settings else length + settings["max_new_tokens"])
        assert torch.equal(out.attention_mask[own].sum(1), torch.tensor([total, total]))
        assert torch.equal(out.sequences[own, :total], alone.sequences)
        assert torch.equal(out.conditioning_mask[own, :total], alone.conditioning_mask)
        assert not out.conditioning_mask[own, total:].any()
        if out.trajectory is not None:
            assert torch.equal(out.trajectory[:, own, :total], alone.trajectory)
            torch.testing.assert_close(out.confidence[:, own, :total], alone.confidence, rtol=1e-3, atol=1e-5)
        written += (~alone.conditioning_mask).sum().item()
        taken += 2 * alone.num_function_evaluations
        assert out.num_function_evaluations >= alone.num_function_evaluations
    assert out.tokens_per_forward == written / taken


def test_a_conditioning_mask_in_a_batch_of_different_lengths():
    model, ids = tiny_model(), random_ids(2, 6)
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    keep = torch.tensor([[1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 1]])  # what it says of padding does not matter
    out = model.generate(ids, attention_mask=mask, conditioning_mask=keep, max_new_tokens=3, num_steps=3, seed=[4, 5])
    for row, start in ((0, 0), (1, 2)):
        own = dict(conditioning_mask=keep[row : row + 1, start:], max_new_tokens=3, num_steps=3, seed=4 + row)
        alone = model.generate(ids[row : row + 1, start:], **own)
        assert torch.equal(out[row, : 9 - start], alone[0])
    assert (out[1, 7:] == 0).all()  # there is no padding token


def test_rows_of_equal_length_are_evaluated_without_a_mask(model, monkeypatch):
    masks, denoise = [], model.denoise
    monkeypatch.setattr(model, "denoise", lambda *args, **mask: masks.append(mask) or denoise(*args, **mask))
    padded = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    model.generate(PROMPT, max_new_tokens=5, attention_mask=torch.ones_like(PROMPT))
    model.generate(PROMPT, attention_mask=padded)
    assert len(masks) == 6 and not any(masks)
    model.generate(PROMPT, max_new_tokens=5, attention_mask=padded)
    assert [mask["attention_mask"].sum(1).tolist() for mask in masks[6:]] == [[9, 7]] * 3


def test_prompts_are_clean_at_every_state_and_matter(model, monkeypatch):
    calls = spy(monkeypatch, model, "denoise")
    ids = model.generate(PROMPT, num_steps=4, seed=[0, 0])
    states = torch.stack([state for state, *_ in calls])
    assert states.shape == (4, 2, 12, 32)
    assert torch.equal(states[:, :, :4], model.embed_state(PROMPT).expand(4, -1, -1, -1))
    assert (states[1:, :, 4:] != states[:-1, :, 4:]).any(-1).all(), "the rest moves on"
    assert not torch.equal(ids[0, 4:], ids[1, 4:])


def test_the_output_counts_and_its_seeds_write_it_again(model):
    given = dict(num_steps=4, num_return_sequences=2, max_length=10)
    for seed in (6, None):
        output = model.generate(PROMPT, return_dict_in_generate=True, seed=seed, **given)
        assert isinstance(output, FlowGenerationOutput) and output.sequences.shape == (4, 10)
        assert output.num_function_evaluations == 4 and output.tokens_per_forward == (10 - 4) / 4
        assert torch.equal(model.generate(PROMPT, seed=output.seeds, **given), output.sequences)
        assert seed is None or output.seeds == [6, 7, 8, 9]


# -- seeds ------------------------------------------------------------------------------------------------------------


def test_a_seed_counts_up_over_the_sequences_and_a_list_names_each(model):
    together = model.generate(num_return_sequences=4, seed=20)
    assert torch.equal(together, torch.cat([model.generate(seed=seed) for seed in range(20, 24)]))
    assert len({tuple(row) for row in together.tolist()}) == 4
    assert torch.equal(together, model.generate(batch_size=2, num_return_sequences=2, seed=20))
    for seeds in ([23, 21, 23], (23, 21, 23), torch.tensor([23, 21, 23])):
        assert torch.equal(model.generate(batch_size=3, seed=seeds), together[[3, 1, 3]])


def test_a_model_in_training_mode_writes_without_dropout():
    model, weak = (tiny_model(hidden_dropout=0.5, weights_seed=seed) for seed in (0, 1))
    settings = dict(guidance_model=weak, guidance_scale=2.0, num_return_sequences=4, num_steps=4, seed=0)
    wanted = model.generate(**settings)
    model.train(), weak.train()
    model.layers[0].eval()
    assert torch.equal(model.generate(**settings), wanted)
    assert model.training and weak.training and not model.layers[0].training and model.layers[1].dropout.training


def test_a_generator_repeats_its_texts_and_without_one_the_global_one_decides(model):
    def write(**given):
        return model.generate(num_return_sequences=3, **given)

    before = torch.get_rng_state()
    one, same, other = (write(generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    one, other = write(), write()
    torch.manual_seed(3)
    assert torch.equal(write(), one) and not torch.equal(one, other)


# -- which setting wins -----------------------------------------------------------------------------------------------


def steps_and_length(model, *args, **kwargs) -> tuple[int, int]:
    output = model.generate(*args, return_dict_in_generate=True, **kwargs)
    return output.num_function_evaluations, output.sequences.shape[1]


def test_a_call_wins_over_a_config_and_that_over_the_model_s():
    model = tiny_model()
    model.generation_config.num_steps, model.generation_config.max_length = 2, 9
    assert steps_and_length(model) == (2, 9)
    config = FlowGenerationConfig(num_steps=3)
    assert steps_and_length(model, generation_config=config) == (3, 9)
    assert steps_and_length(model, generation_config=config, num_steps=4, max_length=8) == (4, 8)
    assert steps_and_length(model, generation_config=GenerationConfig(max_length=7)) == (2, 7)
    assert (model.generation_config.num_steps, config.num_steps) == (2, 3), "no call changes a config"


@pytest.mark.parametrize("low, high", [("max_length", "max_new_tokens"), ("max_new_tokens", "max_length")])
def test_a_length_replaces_the_other_name_for_it(low, high):
    model = tiny_model()
    setattr(model.generation_config, low, 9)
    config = GenerationConfig(**{high: 5})
    assert steps_and_length(model, num_steps=1, **{high: 5}) == (1, 5)
    assert steps_and_length(model, num_steps=1, generation_config=config) == (1, 5)
    assert steps_and_length(model, num_steps=1, generation_config=config, **{low: 6}) == (1, 6)


def test_the_type_of_a_model_gives_its_defaults():
    for name, num_steps, sampler in (("flm", 64, "euler"), ("fmlm", 1, "flow_map")):
        model = tiny_model(name)
        assert (model.generation_config.num_steps, model.generation_config.sampler) == (num_steps, sampler)
        model.generation_config.num_steps = model.generation_config.sampler = None
        assert steps_and_length(model) == (num_steps, 12)


def test_a_temperature_chooses_the_sampler_that_has_one_and_says_so_once(model, monkeypatch):
    said, drawing = [], dict(do_sample=True, temperature=0.7, top_p=0.9)
    monkeypatch.setattr("modeling_flm.requests_flm.logger.warning_once", said.append)
    ids = model.generate(PROMPT, seed=0, sampler="bridge", **drawing)
    assert said == []
    assert torch.equal(ids, model.generate(PROMPT, seed=0, **drawing)) and len(said) == 1
    assert re.match('.*is a setting of sampler="bridge", which writes instead of "(euler|flow_map)"', said[0])
    assert torch.equal(ids, model.generate(PROMPT, GenerationConfig(**drawing), seed=0))
    assert not torch.equal(ids, model.generate(PROMPT, seed=0))


# -- the integration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 4])
def test_n_steps_even_in_tau_embed_n_minus_1_predictions(model, num_steps, monkeypatch):
    calls = spy(monkeypatch, model, "denoise")
    embedded, decoded = (spy(monkeypatch, guidance_flm, name) for name in ("expected_embedding", "most_likely_token"))
    model.generate(num_steps=num_steps, batch_size=2, seed=0)
    assert (len(calls), len(embedded), len(decoded)) == (num_steps, num_steps - 1, 1)
    taus = torch.stack([tau for _, tau, _ in calls])
    torch.testing.assert_close(taus, (torch.arange(num_steps) / num_steps)[:, None].expand(-1, 2))
    if model.config.model_type == "fmlm":
        torch.testing.assert_close(torch.stack([target for *_, target in calls]), taus + 1 / num_steps)


def test_euler_takes_a_flow_map_on_its_diagonal(monkeypatch):
    calls = spy(monkeypatch, MAP, "denoise")
    euler = MAP.generate(num_steps=3, sampler="euler", num_return_sequences=4, seed=0)
    assert [target for _, _, target in calls] == [None] * 3
    assert not torch.equal(euler, MAP.generate(num_steps=3, num_return_sequences=4, seed=0))


def test_one_step_and_two_by_hand(model):
    def logits(state, tau, end):
        target = {"target_timesteps": end} if model.config.model_type == "fmlm" else {}
        return model(inputs_embeds=state, timesteps=tau, **target).logits

    noise, t = model.embed_noise(3, 12, seeds=[4, 5, 6]), model.clock.t(torch.tensor(0.5))
    settings = dict(num_return_sequences=3, seed=4)
    assert torch.equal(model.generate(num_steps=1, **settings), logits(noise, 0.0, 1.0).argmax(-1))
    state = (1 - t) * noise + t * model.embed_state(logits(noise, 0.0, 0.5).softmax(-1))
    assert torch.equal(model.generate(num_steps=2, **settings), logits(state, 0.5, 1.0).argmax(-1))


def test_half_precision_writes_nearly_the_same():
    full = FLOW.generate(num_steps=4, num_return_sequences=8, seed=0)
    for dtype in (torch.bfloat16, torch.float16):
        half = tiny_model().to(dtype).generate(num_steps=4, num_return_sequences=8, seed=0)
        assert (full == half).float().mean() > 0.8


# -- long texts, and their ends ---------------------------------------------------------------------------------------


def test_a_long_text_is_written_in_windows(model, monkeypatch):
    calls, integrate = [], model._integrate

    def watched(window, *rest):
        calls.append((window.prompt.clone(), window.keep.clone(), window.seeds))
        return integrate(window, *rest)

    monkeypatch.setattr(model, "_integrate", watched)
    out = model.generate(PROMPT, max_length=31, window_overlap=4, num_steps=2, seed=0, return_dict_in_generate=True)
    assert out.sequences.shape == (2, 31) and torch.equal(out.sequences[:, :4], PROMPT)
    begins = [0, 8, 16, 19]  # the last one is moved to end with the text
    assert len(calls) == len(begins) and out.num_function_evaluations == 2 * len(begins)
    for (ids, keep, _), begin in zip(calls[1:], begins[1:], strict=True):
        given = 4 if begin < 19 else 9
        assert keep[:, :given].all() and not keep[:, given:].any()
        assert torch.equal(ids[:, :given], out.sequences[:, begin : begin + given])
    assert len({tuple(seeds) for _, _, seeds in calls}) == len(calls)
    alone = model.generate(PROMPT[1:], max_length=31, window_overlap=4, num_steps=2, seed=1)
    assert torch.equal(alone, out.sequences[1:])
    short = model.generate(PROMPT, num_steps=2, seed=0)
    assert torch.equal(short, out.sequences[:, :12])  # the first window is the text of that length


def test_a_prompt_longer_than_the_context(model):
    prompt = random_ids(1, 30)
    out = model.generate(prompt, max_length=33, window_overlap=4, seed=0, return_dict_in_generate=True)
    assert torch.equal(out.sequences[:, :30], prompt)
    assert out.num_function_evaluations == model.generation_config.num_steps


TOKENIZER = number_tokenizer(eos_token="3", pad_token="5", mask_token="7")


def test_a_model_of_the_plain_trainer_ends_its_texts(tmp_path):
    """The Trainer makes `eos_token_id` a list, and leaves the mask token out."""
    model = tiny_model()
    rows = [{"input_ids": row, "labels": row} for row in random_ids(2, 12).tolist()]
    arguments = TrainingArguments(tmp_path, max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=TOKENIZER)
    trainer.train()
    trainer.save_model()
    model = FLMModel.from_pretrained(tmp_path).eval()
    assert model.generation_config.eos_token_id == [3] and model.config.mask_token_id is None
    model.generation_config.eos_token_id = [3, 4]
    settings = dict(num_return_sequences=30, num_steps=2, seed=0)
    plain, padded = model.generate(**settings), model.generate(**settings, pad_after_eos=True)
    assert (plain != padded).any()
    for row, cut in zip(plain.tolist(), padded.tolist(), strict=True):
        end = min((place + 1 for place, token in enumerate(row) if token in (3, 4)), default=12)
        assert cut == row[:end] + [5] * (12 - end)

    blanks = TOKENIZER("20 7 7 21", return_tensors="pt").input_ids
    filled = model.generate(blanks, max_length=4, num_steps=2, tokenizer=TOKENIZER)
    assert filled[0, 0] == 20 and filled[0, 3] == 21
    with pytest.raises(ValueError, match="`config.mask_token_id` is not set. Set it, or give `tokenizer`"):
        model.generate(blanks, max_length=4)
    write = model.pipeline(TOKENIZER)
    (text,) = write("20 7 7 21", max_length=4, num_steps=2, skip_special_tokens=False, seed=1)
    expected = model.generate(blanks, max_length=4, num_steps=2, tokenizer=TOKENIZER, seed=1)
    assert text["generated_text"].split() == [str(token) for token in expected[0].tolist()]


def test_a_model_of_the_own_trainer_knows_its_blanks(tmp_path):
    arguments = FLMTrainingArguments(tmp_path, report_to="none", use_cpu=True)
    for own, expected in ((None, 7), (2, 2)):
        trainer = FLMTrainer(tiny_model(mask_token_id=own), arguments, processing_class=TOKENIZER)
        assert trainer.model.config.mask_token_id == expected
    rows = [{"input_ids": row} for row in random_ids(4, 12).tolist()]
    arguments = FLMTrainingArguments(tmp_path, report_to="none", use_cpu=True, max_steps=1, disable_tqdm=True)
    anew = FLMTrainer(args=arguments, model_init=lambda: tiny_model(), train_dataset=rows, processing_class=TOKENIZER)
    anew.train()
    assert anew.model.config.mask_token_id == 7


def test_padding_after_the_end(model):
    settings = dict(num_return_sequences=20, seed=0)
    ids = model.generate(**settings)
    eos = int(ids[0, 5])
    padding = dict(eos_token_id=eos, pad_token_id=60, pad_after_eos=True)
    for plain, row in zip(ids.tolist(), model.generate(**settings, **padding).tolist(), strict=True):
        end = plain.index(eos) + 1 if eos in plain else 12
        assert row == plain[:end] + [60] * (12 - end)
    out = model.generate(**settings, **padding, output_trajectory=True)
    before = (ids == eos).cumsum(1) - (ids == eos).long()
    assert torch.equal(out.attention_mask, (before == 0).long()) and not out.attention_mask.all()
    assert torch.equal(out.trajectory[-1], out.sequences)
    given = torch.full((1, 4), eos)  # an EOS of the prompt ends nothing
    row = model.generate(given, seed=0, **padding)
    assert torch.equal(row[:, :5], model.generate(given, seed=0)[:, :5])
    begins = copy.deepcopy(model)
    begins.config.bos_token_id = first = int(ids[0, 0])  # BOS is EOS, too, as in GPT-2's vocabulary
    row = begins.generate(seed=0, eos_token_id=first, pad_token_id=60, pad_after_eos=True)[0].tolist()
    end = ids[0].tolist().index(first, 1) + 1 if first in ids[0, 1:] else 12
    assert row == ids[0].tolist()[:end] + [60] * (12 - end) and end > 1
    own = model.generate(**settings, eos_token_id=3, pad_token_id=5, pad_after_eos=True)
    assert torch.equal(model.generate(**settings, tokenizer=TOKENIZER, pad_after_eos=True), own)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_known_without_a_mask(side):
    padded = torch.tensor([[20, 5, 21, 22], [23, 24, 5, 5]])  # a 5 within a text is a token
    if side == "left":
        padded[1] = padded[1].flip(0)
    own = dict(pad_token_id=5, eos_token_id=3, seed=0)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]] if side == "right" else [[1, 1, 1, 1], [0, 0, 1, 1]])
    written = MAP.generate(padded, **own)
    assert torch.equal(written, MAP.generate(padded, attention_mask=mask, **own))
    assert (written[1, :2] == padded[1][mask[1] == 1]).all() and (written[0, :4] == padded[0]).all()
    kept = MAP.generate(padded, conditioning_mask=torch.ones_like(padded), **own)
    as_end = MAP.generate(padded, **own | {"eos_token_id": 5})
    assert torch.equal(kept[:, :4], padded) and torch.equal(as_end, kept)


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_settings_may_be_tensors_and_arrays(kind):
    plain = FLOW.generate(timesteps=[0.0, 0.5], suppress_tokens=[3, 4], eos_token_id=5, seed=0)
    settings = dict(timesteps=kind([0.0, 0.5]), suppress_tokens=kind([3, 4]), eos_token_id=kind(5))
    assert torch.equal(FLOW.generate(**settings, seed=0), plain)
    assert torch.equal(FLOW.generate(num_steps=kind(2), seed=0), FLOW.generate(num_steps=2, seed=0))


def test_the_ids_of_a_prompt():
    assert prompt_ids("20 21", TOKENIZER).tolist() == [[20, 21]] and prompt_ids("", TOKENIZER).shape == (1, 0)
    english = AutoTokenizer.from_pretrained(HUB / "flm-english-small")
    ids = english("In the beginning", return_tensors="pt").input_ids
    assert ids[0, 0] == english.bos_token_id and torch.equal(prompt_ids("In the beginning", english), ids)
    assert torch.equal(prompt_ids("<bos>In the beginning", english), ids)


# -- seeing it --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "bridge"])
def test_the_trajectory_holds_the_draft_of_every_step(model, sampler):
    ids = torch.cat([PROMPT, random_ids(2, 8, seed=1)], 1)
    keep = torch.arange(12).expand(2, -1) < 4
    settings = dict(conditioning_mask=keep, num_steps=3, sampler=sampler, seed=0)
    out = model.generate(ids, output_trajectory=True, **settings)
    assert out.trajectory.shape == out.confidence.shape == (3, 2, 12)
    assert torch.equal(out.trajectory[-1], out.sequences)
    assert torch.equal(out.sequences, model.generate(ids, **settings))  # looking changes nothing
    assert (out.trajectory[:, keep] == ids[keep]).all() and (out.confidence[:, keep] == 1).all()
    assert (out.confidence > 0).all() and (out.confidence[:, ~keep] < 1).all()


@pytest.mark.parametrize("cap", [None, 3.0])
def test_confidence_is_the_probability_of_the_token(cap, monkeypatch):
    monkeypatch.setattr("modeling_flm.vocabulary_flm._CPU_BLOCK", 640)  # several blocks of the vocabulary
    model = tiny_model(final_logit_softcapping=cap, vocab_size=200)
    out = model.generate(num_steps=1, num_return_sequences=3, seed=0, output_trajectory=True)
    logits = model(inputs_embeds=model.embed_noise(3, 12, seeds=[0, 1, 2]), timesteps=0.0).logits
    exact = logits.softmax(-1).gather(-1, out.sequences[..., None]).squeeze(-1)
    torch.testing.assert_close(out.confidence[0], exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_streamer_is_put_every_draft(model, terminal, monkeypatch):
    settings, file = dict(num_return_sequences=2, seed=0), io.StringIO()
    out = model.generate(num_steps=3, output_trajectory=True, **settings)
    monkeypatch.setattr(file, "isatty", lambda: terminal)
    streamer = DraftStreamer(TOKENIZER, file, skip_special_tokens=True)
    for num_steps in (3, 1):
        model.generate(num_steps=num_steps, streamer=streamer, **settings)
    shown = file.getvalue()
    for draft in out.trajectory:
        assert "\n\n".join(TOKENIZER.batch_decode(draft, skip_special_tokens=True)) in shown
    assert shown.count("step 1\n") == 2 and shown.count("step 3\n") == 1
    assert shown.count("\x1b[2J") == (4 if terminal else 0)


# -- how it runs ------------------------------------------------------------------------------------------------------

RUNS = [
    ("flm", {"sampler": "multistep"}),
    ("flm", {"sampler": "bridge", "temperature": 0.8}),
    ("fmlm", {"gamma": 0.5}),
    ("fmlm", {"guidance_scale": 3, "guidance_dropout": 0.2, "refine_steps": 2}),
]


@pytest.mark.parametrize("kind, settings", RUNS, ids=str)
def test_what_is_taken_at_a_time_changes_nothing(kind, settings, monkeypatch):
    model = tiny_model(kind, vocab_size=200)
    whole = model.generate(num_steps=5, num_return_sequences=8, seed=0, **settings)
    monkeypatch.setattr("modeling_flm.vocabulary_flm._CPU_BLOCK", 1)  # tokens one by one, or
    monkeypatch.setattr("modeling_flm.vocabulary_flm._COLUMNS", 64)  # blocks of 64 of the vocabulary
    monkeypatch.setattr(guidance_flm, "_CPU_TOKENS", 3 * model.config.max_position_embeddings)
    calls = spy(monkeypatch, model, "denoise")
    assert torch.equal(whole, model.generate(num_steps=5, num_return_sequences=8, seed=0, **settings))
    assert [len(call[0]) for call in calls[:3]] == [3, 3, 2]


DIFFERENT = {"input_ids": PROMPT, "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]), "max_new_tokens": 5}


@pytest.mark.parametrize("kind, settings", [*RUNS, ("flm", DIFFERENT)], ids=str)
def test_a_compiled_step_writes_the_same(kind, settings):
    """By the graph that torch.compile makes, run as it is; twice, without compiling anew."""
    model, graphs = tiny_model(kind), []
    config = CompileConfig(backend=lambda graph, _: graphs.append(graph) or graph, mode=None, fullgraph=True)
    settings = settings | dict(num_steps=3, num_return_sequences=4, seed=0)
    compiled = settings | {"compile_config": config}
    written = model.generate(**compiled)
    made = len(graphs)
    assert made and torch.equal(written, model.generate(**settings))
    model.generate(**compiled)
    assert len(graphs) == made


def test_many_steps_with_a_progress_bar(capsys):
    FLOW.generate(num_steps=256, max_length=2, progress_bar=True)
    shown = capsys.readouterr().err
    assert "generate: 100%" in shown and "256/256" in shown
    FLOW.generate(num_steps=2)
    assert capsys.readouterr().err == ""
