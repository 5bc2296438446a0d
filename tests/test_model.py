"""The models: how they start, what enters their loss and what does not, and that every way to run them agrees."""

import copy
import math

import flex
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_ids, tiny_config, tiny_model
from transformers.integrations.neftune import activate_neftune

from modeling_flm import FLMModel, FMLMModel
from modeling_flm.attention_flm import SOFTCAP_ATTENTION

IDS = random_ids(3, 12)
TAU = torch.tensor([0.15, 0.5, 0.85])
CLOSE = {"atol": 1e-5, "rtol": 0}
MODEL = tiny_model().requires_grad_(False)  # no test changes it
NOISED = {"labels": IDS, "noise_seed": [1, 2, 3]}


def noisy(model: FLMModel) -> dict:
    """A state of IDS and its times, as arguments."""
    state = 0.5 * model.embed_noise(3, 12, seeds=[0, 1, 2]) + 0.5 * model.embed_state(IDS)
    return {"inputs_embeds": state, "timesteps": TAU}


def right_padded(lengths: list[int], width: int = 12) -> torch.Tensor:
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


# -- how a model starts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class, name", [(FLMModel, "flm"), (FMLMModel, "fmlm")])
def test_a_new_model_is_uniform_and_its_blocks_pass_their_input_on(model_class, name):
    model = model_class(tiny_config(name)).eval()
    assert model(labels=IDS).loss.item() == pytest.approx(math.log(61), rel=1e-6)
    output = model(**noisy(model), output_hidden_states=True)
    assert (output.logits == 0).all() and len(output.hidden_states) == 3
    assert all(torch.equal(hidden, output.hidden_states[0]) for hidden in output.hidden_states)


def test_all_else_of_a_new_model_is_random():
    """The table as configured, linear layers uniform in +-1 / sqrt(fan-in)."""
    model = FMLMModel(tiny_config("fmlm", initializer_range=0.03, num_loops=2))
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and "norm" not in name:
            zero = any(part in name for part in ("modulation", "lm_head", "gates", "target_time_embedding.linear_2"))
            uniform = (3 * parameter.shape[1]) ** -0.5
            expected = 0 if zero else 0.03 if name == "embed_tokens.weight" else uniform
            assert parameter.std().item() == pytest.approx(expected, rel=0.2), name


def test_an_fmlm_with_an_flm_s_weights_is_that_flm_whatever_the_target_time():
    flm, fmlm = tiny_model(), FMLMModel(tiny_config("fmlm")).eval()
    missing = fmlm.load_state_dict(flm.state_dict(), strict=False).missing_keys
    assert missing and all(key.startswith("target_time_embedding.") for key in missing)
    for target in (None, TAU, 1.0, torch.tensor([0.2, 0.9, 1.0])):
        assert torch.equal(fmlm(**noisy(flm), target_timesteps=target).logits, flm(**noisy(flm)).logits)


def test_an_omitted_target_time_is_the_diagonal():
    model = tiny_model("fmlm")
    diagonal = model(**noisy(model), target_timesteps=TAU).logits
    assert torch.equal(model(**noisy(model)).logits, diagonal)
    assert not torch.allclose(model(**noisy(model), target_timesteps=1.0).logits, diagonal, atol=0.01)


def test_dropout_acts_in_training_alone():
    model = tiny_model(hidden_dropout=0.5)
    state, calls = noisy(model), []
    assert torch.equal(model(**state).logits, model(**state).logits)
    model.train()
    assert not torch.allclose(model(**state).logits, model(**state).logits, atol=0.01)
    model.layers[0].dropout.register_forward_hook(lambda *_: calls.append(1))
    model(**state)
    assert len(calls) == 2, "after attention and after the MLP"


# -- loops ------------------------------------------------------------------------------------------------------------


def test_a_loop_with_an_open_gate_is_as_many_blocks_again():
    model = tiny_model(num_loops=3)
    for gate in model.loop_gates:
        torch.nn.init.zeros_(gate.weight)
        torch.nn.init.ones_(gate.bias)
    deep = tiny_model(num_hidden_layers=6)
    weights = {name: weight for name, weight in model.state_dict().items() if "loop_gates" not in name}
    for i in range(2, 6):
        weights |= {f"layers.{i}.{name}": weight for name, weight in model.layers[i % 2].state_dict().items()}
    deep.load_state_dict(weights)
    found, expected = (some(**noisy(some), output_hidden_states=True) for some in (model, deep))
    torch.testing.assert_close(found.logits, expected.logits, **CLOSE)
    for hidden, as_expected in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(hidden, as_expected, **CLOSE)


def test_a_closed_gate_leaves_what_the_first_pass_found():
    model, once = tiny_model(num_loops=2), tiny_model()
    once.load_state_dict(model.state_dict(), strict=False)
    assert not torch.allclose(model(**noisy(model)).logits, once(**noisy(once)).logits, atol=0.01)
    for parameter in model.loop_gates.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(model(**noisy(model)).logits, once(**noisy(once)).logits)


# -- inputs -----------------------------------------------------------------------------------------------------------


def test_a_time_for_all_is_that_time_for_each():
    each = MODEL(input_ids=IDS, timesteps=torch.full((3,), 0.3)).logits
    for time in (0.3, torch.tensor(0.3), [0.3, 0.3, 0.3], torch.full((3,), 0.3, dtype=torch.float64)):
        assert torch.equal(MODEL(input_ids=IDS, timesteps=time).logits, each)


def test_labels_alone_are_the_data_and_narrow_ids_are_ids():
    alone = MODEL(labels=IDS, noise_seed=[0, 1, 2])
    assert alone.logits is None and alone.timesteps.shape == (3,)
    for dtype in (torch.int16, torch.int32, torch.int64):
        both = MODEL(input_ids=IDS.to(dtype), labels=IDS.to(dtype), noise_seed=[0, 1, 2])
        assert torch.equal(both.token_losses, alone.token_losses)


def test_a_tuple_on_request_of_the_call_or_of_the_config():
    output = MODEL(**NOISED)
    loss, losses, scored, times, hidden = MODEL(**NOISED, output_hidden_states=True, return_dict=False)
    assert torch.equal(loss, output.loss) and torch.equal(losses, output.token_losses)
    assert torch.equal(scored, output.scored) and torch.equal(times, output.timesteps) and len(hidden) == 3
    assert torch.equal(MODEL(**NOISED, output_hidden_states=True)[0], loss)
    model = tiny_model(output_hidden_states=True, return_dict=False)
    logits, hidden = model(input_ids=IDS, timesteps=0.5)
    assert logits.shape == (3, 12, 61) and len(hidden) == 3
    output = model(input_ids=IDS, timesteps=0.5, output_hidden_states=False, return_dict=True)
    assert output.hidden_states is None and torch.equal(output.logits, logits)


# -- what is scored ---------------------------------------------------------------------------------------------------


def test_a_padded_batch_gives_each_example_the_loss_it_has_alone():
    """Whatever stands in the padding."""
    lengths = [12, 5, 8]
    mask = right_padded(lengths)
    batch, *others = (
        MODEL(labels=IDS.masked_fill(mask == 0, padding), attention_mask=mask.to(dtype), noise_seed=[7, 8, 9])
        for padding, dtype in ((0, torch.long), (60, torch.bool), (-100, torch.bool))
    )
    assert all(torch.equal(other.token_losses, batch.token_losses) for other in others)
    for row, length in enumerate(lengths):
        alone = MODEL(labels=IDS[row : row + 1, :length], noise_seed=[7 + row])
        torch.testing.assert_close(batch.token_losses[row, :length], alone.token_losses[0], **CLOSE)
        assert batch.timesteps[row] == alone.timesteps[0]
        assert not batch.token_losses[row, length:].any() and not batch.scored[row, length:].any()


def test_an_example_that_is_all_padding_spoils_no_other():
    model, mask = tiny_model(), right_padded([12, 0, 8])
    output = model(labels=IDS, attention_mask=mask, noise_seed=[7, 8, 9])
    output.loss.backward()
    assert torch.isfinite(output.loss) and all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_prompt_labelled_minus_100_is_kept_clean_and_unscored():
    model, arguments = MODEL, {"timesteps": TAU, "noise_seed": [1, 2, 3]}
    prompt, start = (torch.arange(12).expand(3, -1) < length for length in (4, 2))
    sft = model(input_ids=IDS, labels=IDS.masked_fill(prompt, -100), **arguments)
    kept = model(labels=IDS, conditioning_mask=prompt, **arguments)
    half = IDS.masked_fill(start, -100)
    both = model(input_ids=IDS, labels=half, conditioning_mask=prompt & ~start, **arguments)  # they add up
    for same in (kept, both):
        assert torch.equal(sft.token_losses, same.token_losses) and torch.equal(sft.loss, same.loss)
    assert torch.equal(sft.scored == 1, ~prompt)

    noise = model.embed_noise(3, 12, seeds=[1, 2, 3])
    clean, t = model.embed_state(IDS), model.clock.t(TAU)[:, None, None]
    state = torch.where(prompt[..., None], clean, (1 - t) * noise + t * clean)
    by_hand = model(inputs_embeds=state, timesteps=TAU, labels=IDS.masked_fill(prompt, -100))
    torch.testing.assert_close(sft.token_losses, by_hand.token_losses, **CLOSE)
    assert not torch.allclose(sft.loss, model(labels=IDS, **arguments).loss, atol=1e-3)


@given(
    kinds=st.lists(st.sampled_from(["label", "-100", "padding", "kept"]), min_size=12, max_size=12),
    length=st.integers(1, 12),
)
def test_the_loss_is_the_mean_over_what_is_scored(kinds, length):
    kinds = ["label", *kinds[: length - 1]]  # something to score
    labels = IDS[:1, :length].clone()
    labels[0, [i for i, kind in enumerate(kinds) if kind == "-100"]] = -100
    attention, keep = (torch.tensor([[k == kind for k in kinds]]) for kind in ("padding", "kept"))
    masks = {"attention_mask": (~attention).long(), "conditioning_mask": keep}
    output = MODEL(input_ids=IDS[:1, :length], labels=labels, **masks, noise_seed=[0])
    scored = torch.tensor([[kind == "label" for kind in kinds]])
    assert torch.equal(output.scored == 1, scored)
    assert (output.token_losses[~scored] == 0).all() and (output.token_losses[scored] > 0).all()
    torch.testing.assert_close(output.loss, output.token_losses.sum() / scored.sum(), atol=1e-6, rtol=1e-6)


def test_num_items_in_batch_divides():
    model = tiny_model()
    plain = model(**NOISED)
    for items in (72, torch.tensor(72)):
        divided = model(**NOISED, num_items_in_batch=items)
        torch.testing.assert_close(divided.loss, plain.loss * 36 / 72)
        assert torch.equal(divided.token_losses, plain.token_losses)
    nothing = {"input_ids": IDS, "labels": torch.full_like(IDS, -100)}
    for items in (72, torch.tensor(0)):
        assert model(**nothing, num_items_in_batch=items).loss.isnan(), "a Trainer leaves it out"
    model.train()
    for items in (0, 72):
        loss = model(**nothing, num_items_in_batch=torch.tensor(items)).loss
        loss.backward()
        assert loss == 0 and all(not p.grad.any() for p in model.parameters())


def test_what_the_plain_trainer_may_do_to_a_model_is_refused():
    model = tiny_model()
    replica = model._replicate_for_data_parallel()  # as nn.DataParallel makes them on two GPUs or more
    with pytest.raises(ValueError, match="nn.DataParallel is not supported: run one process per GPU"):
        replica(**NOISED)
    activate_neftune(model, 5.0)
    with pytest.raises(ValueError, match="`neftune_noise_alpha` must be None"):
        model.train()(**NOISED)


def test_labels_that_are_not_scored_do_not_divide():
    """The count is of labels: where padding or what is kept clean has some, the mean is still over the others."""
    mask = {"attention_mask": right_padded([12, 5, 8])}
    kept = {"conditioning_mask": torch.arange(12).expand(3, -1) % 4 == 0}
    for inputs in (NOISED | mask, NOISED | kept, NOISED | mask | kept):
        torch.testing.assert_close(MODEL(**inputs, num_items_in_batch=36).loss, MODEL(**inputs).loss)
        torch.testing.assert_close(MODEL(**inputs, num_items_in_batch=144).loss, MODEL(**inputs).loss / 4)


# -- noise and times --------------------------------------------------------------------------------------------------


def test_a_seed_gives_an_example_the_same_loss_whatever_the_batch():
    ids, seeds = random_ids(6, 12), torch.tensor([11, 5, 2**32 - 1, 7, 0, 3])
    whole = MODEL(labels=ids, noise_seed=seeds)
    for rows in ([0], [3, 1], [5, 4, 2, 0]):
        part = MODEL(labels=ids[rows], noise_seed=seeds[rows].tolist())
        torch.testing.assert_close(part.token_losses, whole.token_losses[rows], **CLOSE)
        assert torch.equal(part.timesteps, whole.timesteps[rows])
    assert len(set(whole.timesteps.tolist())) == 6


@pytest.mark.parametrize("vocab_size", [61, 23], ids=["embedded", "dense"])
def test_a_seed_s_noise_starts_the_same_at_every_length(vocab_size):
    model = tiny_model(vocab_size=vocab_size)
    longest = model.embed_noise(2, 12, seeds=[4, 5])
    for length in (1, 5, 11):
        torch.testing.assert_close(model.embed_noise(2, length, seeds=[4, 5]), longest[:, :length], **CLOSE)


@pytest.mark.parametrize("model", [MODEL, tiny_model(learned_positions=True)], ids=["rotary", "learned positions"])
def test_evaluation_takes_noise_and_times_from_the_ids(model):
    ids, lengths = random_ids(6, 12), [12, 5, 8, 1, 7, 3]
    rows = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    alone = [model(labels=row[None]) for row in rows]
    assert len({float(one.timesteps) for one in alone}) == 6
    right = right_padded(lengths)
    left, unlabelled = right.flip(1), ids.masked_fill(right == 0, -100)
    shifted = torch.zeros_like(ids).masked_scatter(left.bool(), torch.cat(rows))
    for labels, mask in ((ids, right), (shifted, left), (ids.int(), right.bool()), (unlabelled, right)):
        found = model(labels=labels, attention_mask=mask)
        for one, losses, seen in zip(alone, found.token_losses, mask.bool(), strict=True):
            torch.testing.assert_close(losses[seen], one.token_losses[0], **CLOSE)
        torch.testing.assert_close(found.timesteps, torch.cat([one.timesteps for one in alone]), rtol=0, atol=0)
    prompt = ids.masked_fill(torch.arange(12) < 4, -100)
    assert torch.equal(model(input_ids=ids, labels=prompt).timesteps, model(labels=ids).timesteps)


def test_what_is_given_goes_before_the_ids():
    model = tiny_model()
    plain = model(labels=IDS)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert torch.equal(model(labels=IDS).loss, plain.loss), "nothing global enters"
    assert torch.equal(model(labels=IDS, timesteps=TAU).timesteps, TAU)
    assert torch.equal(model(labels=IDS, timesteps=plain.timesteps).loss, plain.loss)
    drawn = [model(labels=IDS, generator=torch.Generator().manual_seed(seed)).loss for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and plain.loss not in drawn
    assert not torch.equal(model(**NOISED).loss, plain.loss)
    assert torch.equal(torch.get_rng_state(), before)
    model.train()
    assert len({model(labels=IDS).loss.item() for _ in range(3)}) == 3


def test_a_map_is_trained_by_states_not_by_labels_alone():
    model = tiny_model("fmlm").train()
    with pytest.raises(ValueError, match="diagonal of a flow map alone.*FMLMTrainer"):
        model(**NOISED)
    with torch.no_grad():
        model(**NOISED)
    model(**noisy(model), labels=IDS).loss.backward()


def test_times_without_seeds_are_evenly_spread():
    times = MODEL(labels=random_ids(8, 12), generator=torch.Generator().manual_seed(0)).timesteps
    assert ((times >= 0) & (times < 1)).all()
    torch.testing.assert_close(times.sort().values.diff(), torch.full((7,), 1 / 8), **CLOSE)


# -- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, [12, 5, 8]], ids=["full", "padded"])
def test_attention_implementations_agree(lengths):
    """Flex attention without padding as its definition says, uncompiled: to compile it twice would take long."""
    mask = None if lengths is None else right_padded(lengths)
    real = torch.ones(3, 12, dtype=torch.bool) if mask is None else mask.bool()
    logits = {}
    flexible = ["flex_attention"] if flex.IS_SOUND else []
    with torch.no_grad(), torch.compiler.set_stance("default" if lengths else "force_eager"):
        for implementation in ("eager", SOFTCAP_ATTENTION, *flexible, None):
            cap = None if implementation is None else 2.0  # scores go beyond it, where it matters
            model = tiny_model(attn_implementation=implementation, attn_logit_softcapping=cap)
            assert model.config._attn_implementation == (implementation or "sdpa")
            logits[implementation] = model(**noisy(model), attention_mask=mask).logits[real]
    assert not torch.allclose(logits.pop(None), logits["eager"], atol=2e-2)
    for implementation, found in logits.items():
        torch.testing.assert_close(found, logits["eager"], atol=2e-4, rtol=0, msg=implementation)


def test_sdpa_is_the_default_without_a_cap_and_agrees():
    model = tiny_model(attn_logit_softcapping=None)
    assert model.config._attn_implementation == "sdpa"
    eager = tiny_model(attn_logit_softcapping=None, attn_implementation="eager")
    for mask in (None, right_padded([12, 5, 8])):
        one, other = (m(**NOISED, attention_mask=mask).token_losses for m in (model, eager))
        torch.testing.assert_close(one, other, **CLOSE)


def test_attention_can_be_changed_later():
    model = tiny_model()
    assert model.config._attn_implementation == SOFTCAP_ATTENTION
    before = model(**NOISED).token_losses
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**NOISED).token_losses, before, **CLOSE)
    with pytest.raises(ValueError, match="sdpa.*cannot cap.*flm_softcap"):
        model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "eager"


# -- ways to run ------------------------------------------------------------------------------------------------------


def gradients(model: FLMModel) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**NOISED).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("loops", [1, 2])
def test_activation_checkpointing_gives_the_same_gradients(loops):
    model, calls = tiny_model(hidden_dropout=0.0, num_loops=loops).train(), []
    plain = gradients(model)
    model.activation_checkpointing_enable()
    model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    recomputed = gradients(model)
    assert len(calls) == 2 * loops, "nothing was computed again"
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-7, rtol=1e-5, msg=name)


def test_bfloat16_is_near_float32():
    model = tiny_model()
    half = copy.deepcopy(model).to(torch.bfloat16)
    full, low = (m(**noisy(model)).logits for m in (model, half))
    assert low.dtype == torch.bfloat16 and (low - full).abs().max() < 0.05 * full.abs().max()
    loss = half(**NOISED).loss
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(model(**NOISED).loss.item(), rel=0.02)
    assert all(torch.isfinite(p.grad).all() for p in half.parameters())


TIMES = torch.arange(1000) / 1000


def time_networks(model: FLMModel, times: torch.Tensor = TIMES) -> list[torch.Tensor]:
    """What the three networks of a flow map that see times make of them, float32 (times, ...)."""
    parts = (model.time_embedding, model.target_time_embedding, model.loss_weighting)
    with torch.no_grad():
        outputs = [part(times) for part in parts]
    assert all(output.dtype == torch.float32 for output in outputs)
    return outputs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_times_are_told_apart_in_half_precision(tmp_path, dtype):
    """Loaded so, the networks are those that were saved. A cast rounds their weights, and nothing that they compute:
    1/1000 is as far as it was."""
    model = tiny_model("fmlm", loss_weighting=True)
    plain = time_networks(model)
    with torch.autocast("cpu", dtype=dtype):
        assert all(torch.equal(a, b) for a, b in zip(time_networks(model), plain, strict=True))
    model.save_pretrained(tmp_path)
    loaded = FMLMModel.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.dtype == loaded.layers[0].mlp.up_proj.weight.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(time_networks(loaded), plain, strict=True))
    for found, expected in zip(time_networks(copy.deepcopy(model).to(dtype)), plain, strict=True):
        assert len(found.unique(dim=0)) == 1000
        apart, as_before = found.diff(dim=0), expected.diff(dim=0)
        assert (apart - as_before).norm() < 0.05 * as_before.norm()
    assert loaded(**NOISED).loss.item() == pytest.approx(model(**NOISED).loss.item(), rel=0.02)


@pytest.mark.parametrize("backward", ["inside", "outside"])
def test_autocast_is_near_float32(backward):
    model = tiny_model()
    plain = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**NOISED).loss
        if backward == "inside":
            loss.backward()
    if backward == "outside":
        loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad - plain[name]).norm() < 0.05 * plain[name].norm(), name


def test_compiled_logits_and_loss_are_the_same():
    model = tiny_model(num_hidden_layers=1, num_loops=2)
    compiled, state = torch.compile(model), noisy(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**state).logits, model(**state).logits, atol=1e-4, rtol=0)
        for seeds in ({"noise_seed": torch.tensor([1, 2, 3])}, {}):
            found, expected = compiled(labels=IDS, **seeds), model(labels=IDS, **seeds)
            torch.testing.assert_close(found.loss, expected.loss, atol=1e-4, rtol=0)
            assert torch.equal(found.timesteps, expected.timesteps)


def test_the_network_exports_as_one_graph():
    model = tiny_model(num_loops=2)
    exported = torch.export.export(model, (), noisy(model), strict=False).module()
    torch.testing.assert_close(exported(**noisy(model)).logits, model(**noisy(model)).logits, **CLOSE)


def test_training_goes_on_after_inference_mode():
    model = tiny_model()
    with torch.inference_mode():
        model.generate(num_steps=2, seed=0)
    model(**NOISED).loss.backward()
    assert model.embed_tokens.weight.grad.abs().sum() > 0


# -- changing a model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [70, 40])
def test_a_resized_vocabulary_has_its_own_clock(size):
    model = tiny_model()
    old = model.clock.t(TAU)
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == model.clock.vocab_size == size
    assert not torch.equal(model.clock.t(TAU), old)
    ids = random_ids(3, 12, vocab_size=size)
    output = model(labels=ids, noise_seed=[1, 2, 3])
    output.loss.backward()
    assert torch.isfinite(output.loss) and model(input_ids=ids, timesteps=0.5).logits.shape == (3, 12, size)
    assert model.generate(num_steps=2, seed=0).max() < size


def test_loss_weighting_starts_at_nothing_and_scales_the_training_loss():
    model = tiny_model(hidden_dropout=0.0).train()
    before = model(**NOISED, timesteps=TAU)
    model.add_loss_weighting()
    torch.testing.assert_close(model(**NOISED, timesteps=TAU).loss, before.loss)
    torch.nn.init.normal_(model.loss_weighting.linear_2.weight, generator=torch.Generator().manual_seed(0))
    weighted, w = model(**NOISED, timesteps=TAU).loss, model.loss_weighting(TAU)
    torch.testing.assert_close(weighted, (torch.exp(-w) * before.token_losses.mean(1) + w).mean())
    weighted.backward()
    slope = (1 - torch.exp(-w) * before.token_losses.mean(1)).mean()  # the bias adds to every w
    torch.testing.assert_close(model.loss_weighting.linear_2.bias.grad, slope[None].detach())
    torch.testing.assert_close(model.eval()(**NOISED, timesteps=TAU).loss, before.loss)
