"""Guidance, refinement and forbidden tokens: against the dense formulas over the vocabulary, and in `generate`."""

import copy

import pytest
import torch
from datasets import Dataset
from exact_models import exact_denoiser
from peft import LoraConfig, get_peft_model
from spy import spy
from tiny import random_ids, tiny_model
from training import arguments, fresh_model
from transformers import default_data_collator
from worlds import World, two_cities

from modeling_flm.flow_flm import interpolate
from modeling_flm.guidance_flm import ClassifierFree, DropoutGuided, ModelGuided, Predictor, _dropout, reward_gradient
from trainers import FLMTrainer

PROMPT, OTHERS = random_ids(3, 12), random_ids(3, 12, seed=4)
KEEP = torch.arange(12).expand(3, 12) < 4
SEEDS = [5, 6, 7]
TAU = torch.tensor(0.3)
CLOSE = dict(atol=2e-5, rtol=1e-4)


def window(kind=Predictor, *first, model=None, tokens=None):
    return kind(*first, model or tiny_model(), PROMPT, KEEP, SEEDS, tokens)


@torch.no_grad()
def dense(model, state) -> torch.Tensor:
    """The prediction for an embedded state, over the vocabulary."""
    return model(inputs_embeds=state, timesteps=TAU.expand(3)).logits.softmax(-1)


def states(width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 12, width, generator=torch.Generator().manual_seed(seed))


def entries(probabilities: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return probabilities.gather(-1, ids[..., None]).squeeze(-1)


def agrees(prediction, probabilities: torch.Tensor, table: torch.Tensor, ids: torch.Tensor) -> None:
    """A prediction with probabilities over the vocabulary; its confidence in `ids`, too."""
    torch.testing.assert_close(prediction.embedding(), probabilities @ table, **CLOSE)
    assert torch.equal(prediction.most_likely(), probabilities.argmax(-1))
    torch.testing.assert_close(prediction.confidence(ids), entries(probabilities, ids).clamp(0, 1), **CLOSE)


def pair(kind: str = "flm", **settings) -> tuple:
    """A strong and a weak model, and their tables side by side."""
    strong, weak = tiny_model(kind, **settings), tiny_model(kind, hidden_size=16, weights_seed=1, **settings)
    return strong, weak, torch.cat([strong.embed_tokens.weight, weak.embed_tokens.weight], dim=1)


# -- the weak networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("scale", [0, 0.5, 4, 50])
@torch.no_grad()
def test_a_weak_model_with_a_table_of_its_own(scale, cap):
    strong, weak, tables = pair(final_logit_softcapping=cap)
    guided = window(ModelGuided, weak, scale, model=strong)
    state = states(61) @ tables  # of one state over V
    d_strong, d_weak = dense(strong, state[..., :32]), dense(weak, state[..., 32:])
    agrees(guided.predict(state, TAU), d_weak + scale * (d_strong - d_weak), tables, OTHERS)
    torch.testing.assert_close(guided.clean, tables[PROMPT])


@pytest.mark.parametrize("vocab_size", [23, 61])  # dense noise, and embedded noise
@torch.no_grad()
def test_joint_noise_is_the_models_own_and_has_the_joint_law(vocab_size):
    strong, weak, tables = pair(vocab_size=vocab_size)
    nothing = torch.zeros(400, 12, dtype=torch.long)
    rest = (nothing, nothing.bool(), list(range(400)))
    alone, guided = Predictor(strong, *rest), ModelGuided(weak, 2.0, strong, *rest)
    torch.testing.assert_close(guided.start[..., :32], alone.start, atol=1e-4, rtol=1e-4)
    (own, uniform), (joint, same_uniform) = next(alone.fresh_noise()), next(guided.fresh_noise())
    torch.testing.assert_close(joint[..., :32], own, atol=1e-4, rtol=1e-4)
    assert torch.equal(uniform, same_uniform)
    exact = tables.T @ tables
    for noise in (guided.start, joint):
        rows = noise.flatten(0, 1)
        assert (rows.T @ rows / len(rows) - exact).norm() < 0.1 * exact.norm()


@torch.no_grad()
def test_classifier_free_guidance_hides_the_prompt_from_the_weak_network():
    model = tiny_model()
    guided = window(ClassifierFree, 3.0, model=model)
    state = torch.where(KEEP[..., None], guided.clean, states(32))
    noisy = interpolate(guided.start, guided.clean, model.clock.t(TAU))
    hidden_prompt = torch.where(KEEP[..., None], noisy, state)
    d, d_weak = dense(model, state), dense(model, hidden_prompt)
    agrees(guided.predict(state, TAU), d_weak + 3 * (d - d_weak), model.embed_tokens.weight, OTHERS)


@torch.no_grad()
def test_dropout_is_of_its_rate_and_goes_away():
    model = tiny_model()
    guided = window(DropoutGuided, 0.5, 2.0, model=model)
    first, second = guided.predict(guided.start, TAU), guided.predict(guided.start, TAU)
    assert not torch.equal(first.embedding(), second.embedding())  # drawn anew at each step
    assert torch.equal(first.parts[0].hidden, second.parts[0].hidden)  # the strong network has none
    with _dropout(model, 0.5, [(seed, 12) for seed in SEEDS]):
        dropped = model.layers[0].dropout(torch.ones(3, 12, 32)) == 0
    assert dropped.double().mean() == pytest.approx(0.5, abs=0.05)
    assert not any(module._forward_hooks for module in model.modules())


WEAK = {
    "model": lambda: dict(guidance_model=tiny_model("fmlm", hidden_size=16, weights_seed=1)),
    "dropout": lambda: dict(guidance_dropout=0.3),
    "prompt": lambda: dict(input_ids=PROMPT[:, :4]),
}


@pytest.mark.parametrize("weak", WEAK)
def test_scale_1_is_the_model_itself(weak):
    model, settings = tiny_model("fmlm"), dict(input_ids=PROMPT[:, :4], num_steps=4, seed=0)
    plain = model.generate(**settings)
    same, guided = (model.generate(**WEAK[weak]() | settings, guidance_scale=scale) for scale in (1, 8))
    assert torch.equal(plain, same) and not torch.equal(plain, guided)


@pytest.mark.parametrize("kind, sampler", [("flm", "euler"), ("flm", "multistep"), ("fmlm", "flow_map")])
def test_a_weak_model_that_is_as_strong_changes_nothing(kind, sampler):
    model = tiny_model(kind)
    settings = dict(num_steps=4, num_return_sequences=4, seed=0, sampler=sampler)
    same = model.generate(**settings, guidance_scale=5, guidance_model=copy.deepcopy(model))
    assert torch.equal(same, model.generate(**settings))


def test_guidance_counts_its_evaluations(monkeypatch):
    model, settings = tiny_model("fmlm"), dict(num_steps=3, guidance_scale=2, refine_steps=2)
    calls = spy(monkeypatch, model, "denoise")
    settings |= dict(reward_fn=lambda ahead: ahead.embedding.sum((1, 2)), return_dict_in_generate=True)
    out = model.generate(PROMPT[:, :4], **settings)
    assert len(calls) == out.num_function_evaluations == 2 * (3 + 2) + 2
    assert out.tokens_per_forward == pytest.approx(8 / 12)


# -- reward -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("kind", ["flm", "fmlm"])
def test_the_reward_gradient_is_that_over_the_vocabulary(kind, cap):
    """grad_x of r(X_{t,1}(x)) for a state over the vocabulary, embedded by two tables."""
    model, weak, tables = pair(kind, final_logit_softcapping=cap)
    guided = window(ModelGuided, weak, 2.0, model=model)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1))

    def reward(ahead):
        return (ahead.embedding @ direction).tanh().sum(1) + ahead.probabilities[:, 2, 7].log()

    x = states(61).requires_grad_()
    end = {} if kind == "flm" else {"target_timesteps": torch.ones(3)}
    logits = model(inputs_embeds=x @ model.embed_tokens.weight, timesteps=TAU.expand(3), **end).logits
    p = logits.softmax(-1)
    value = (p @ model.embed_tokens.weight.detach() @ direction).tanh().sum() + p[:, 2, 7].log().sum()
    (gradient,) = torch.autograd.grad(value, x)
    with torch.no_grad():
        got = reward_gradient(guided, reward, x @ tables, TAU)
        torch.testing.assert_close(got, gradient @ tables, atol=1e-4, rtol=1e-3)


def test_a_reward_of_any_size_in_half_precision():
    model = tiny_model().half()
    settings = dict(num_steps=3, num_return_sequences=4, seed=0)

    def written(size: float) -> torch.Tensor:
        return model.generate(
            **settings, reward_fn=lambda ahead: size * ahead.embedding.float().sum((1, 2)), reward_scale=0.5 / size
        )

    assert torch.equal(written(1e3), written(1.0)) and torch.equal(written(1e-3), written(1.0))
    assert not torch.equal(written(1.0), model.generate(**settings))


def test_a_call_switches_off_what_the_model_s_own_settings_switch_on():
    model, weak = tiny_model(), tiny_model(hidden_size=16, num_attention_heads=1)
    model.generation_config.refine_steps, model.generation_config.refine_fraction = 2, 0.5
    plain = model.generate(num_steps=2, refine_steps=0, seed=0)
    assert torch.equal(plain, tiny_model().generate(num_steps=2, seed=0))
    own = dict(guidance_scale=2.0, guidance_dropout=0.1, refine_steps=None, refine_fraction=None)
    for name, value in own.items():
        setattr(model.generation_config, name, value)
    guided = model.generate(num_steps=2, guidance_model=weak, seed=0)
    assert torch.equal(guided, tiny_model().generate(num_steps=2, guidance_model=weak, guidance_scale=2.0, seed=0))


def test_reward_guidance_raises_the_reward():
    """Two pairs of cities, 70 % of the first: rewarded for the second, more and more come out as the second."""
    world = two_cities()
    model, second = exact_denoiser(world), world.ids[1, 0]
    settings = dict(num_steps=16, num_return_sequences=500, seed=0)
    settings |= dict(reward_fn=lambda ahead: ahead.probabilities[:, 0, second])
    shares = []
    for scale in (0.0, 0.3, 1.0):
        items = world.items(model.generate(**settings, reward_scale=scale))
        assert (items < 0).double().mean() < 0.05  # and they stay pairs
        shares.append((items == 1).double().mean().item())
    assert shares[0] == pytest.approx(0.3, abs=0.08) and shares[0] + 0.05 < shares[1] < shares[2] - 0.05


@pytest.mark.parametrize(
    "reward_fn, message",
    [
        (lambda ahead: 1.0, "returned 1.0"),
        (lambda ahead: ahead.embedding.sum(), r"returned \(\)"),
        (lambda ahead: ahead.embedding.detach().sum((1, 2)), "differentiable"),
        (lambda ahead: ahead.embedding.sum((1, 2)) / 0, "the gradient of `reward_fn` is not finite"),
    ],
)
def test_a_reward_that_is_none(reward_fn, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().generate(num_steps=2, reward_fn=reward_fn)


# -- refinement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, settings", [("flm", {}), ("flm", {"sampler": "bridge"}), ("fmlm", {}), ("fmlm", {"guidance_scale": 2})]
)
def test_refinement_writes_the_least_certain_tokens_anew(kind, settings):
    model = tiny_model(kind)
    arguments = dict(input_ids=PROMPT[:, :4], num_steps=2, seed=0, output_trajectory=True) | settings
    plain = model.generate(**arguments)
    refined = model.generate(**arguments, refine_steps=3, refine_fraction=0.75)
    drafts, sure = refined.trajectory, refined.confidence
    assert drafts.shape == sure.shape == (5, 3, 12)
    assert torch.equal(drafts[:2], plain.trajectory) and torch.equal(drafts[-1], refined.sequences)
    for before, count in zip(range(1, 4), (6, 4, 2), strict=True):  # of the eight
        least = sure[before, :, 4:].argsort(dim=1)[:, :count] + 4
        changed = sure[before] != sure[before + 1]
        assert torch.equal(changed, torch.zeros_like(changed).scatter(1, least, True))
        assert torch.equal(drafts[before][~changed], drafts[before + 1][~changed])


# -- forbidden tokens -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_forbidden_tokens_share_their_probability_among_the_others():
    model = tiny_model()
    predictor = window(model=model, tokens=torch.tensor([token for token in range(61) if token % 3]))
    p = dense(model, predictor.start)
    p[..., ::3] = 0
    p /= p.sum(-1, keepdim=True)
    prediction = predictor.predict(predictor.start, TAU)
    drawn = prediction.draw(torch.full((3, 12), 0.5), temperature=1.0)
    agrees(prediction, p, model.embed_tokens.weight, drawn)
    upto, own = entries(p.cumsum(-1), drawn), entries(p, drawn)
    assert (upto - own <= 0.5001).all() and (upto >= 0.4999).all()


GUIDED = {"guidance_dropout": 0.3, "guidance_scale": 3}


def test_dropout_of_an_adapter_is_not_that_of_the_guidance():
    model, asked = tiny_model(), GUIDED | dict(num_steps=2, num_return_sequences=2, seed=0)
    expected = model.generate(**asked)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", lora_dropout=0.5)).eval()
    assert torch.equal(adapted.generate(**asked), expected)  # a new adapter adds nothing


def test_a_reward_needs_gradients():
    with torch.inference_mode(), pytest.raises(ValueError, match="`reward_fn` needs gradients: .*inference_mode"):
        tiny_model().generate(num_steps=2, reward_fn=lambda ahead: ahead.embedding.sum((1, 2)))


@pytest.mark.parametrize("settings", [{}, {"sampler": "bridge"}, {"refine_steps": 2}, GUIDED], ids=str)
def test_forbidden_tokens_are_not_written(settings):
    model, forbidden = tiny_model(), list(range(0, 61, 2))
    arguments = dict(num_steps=4, num_return_sequences=8, seed=0) | settings
    out = model.generate(suppress_tokens=forbidden, output_trajectory=True, **arguments)
    assert (out.trajectory % 2 == 1).all() and (model.generate(**arguments) % 2 == 0).any()
    assert torch.equal(model.generate(bad_words_ids=[[token] for token in forbidden], **arguments), out.sequences)


# -- infilling --------------------------------------------------------------------------------------------------------


def test_infilling_gives_the_exact_conditional_distribution(tmp_path):
    """A model trained with clean positions, clamped: p(rest | given) of a world to 0.08 in total variation."""
    ids = torch.tensor([[0, 1, 2], [0, 1, 3], [4, 1, 2], [4, 5, 3], [6, 5, 3], [6, 5, 7]])
    world = World(ids, 12, torch.tensor([0.3, 0.1, 0.1, 0.1, 0.1, 0.3]))
    sizes = dict(vocab_size=12, max_position_embeddings=3, conditioning_size=32, time_embedding_size=32)
    model = fresh_model(**sizes, learned_positions=True, initializer_range=0.3)
    rows = Dataset.from_dict({"input_ids": world.draw(20_000, torch.Generator().manual_seed(0)).tolist()})
    steps = dict(max_steps=500, per_device_train_batch_size=256, lr_scheduler_type="cosine", logging_steps=100)
    args = arguments(tmp_path, **steps, ema_decay=0.98, conditioning_rate=0.7)
    trainer = FLMTrainer(model, args, train_dataset=rows, data_collator=default_data_collator)
    trainer.train()
    middle, distances = torch.tensor([[0, 1, 0]]).expand(4000, 3), []
    with trainer.averaged_weights():
        for given, items in ((1, slice(0, 3)), (5, slice(3, 6))):
            out = model.eval().generate(given * middle, conditioning_mask=middle, num_steps=32, seed=0)
            assert (out[:, 1] == given).all()
            found = world.items(out)
            shares = torch.stack([(found == item).float().mean() for item in range(6)])
            exact = torch.zeros(6)
            exact[items] = world.weights[items] / world.weights[items].sum()
            distances.append(((shares - exact).abs().sum() + (found < 0).float().mean()).item() / 2)
    print(distances)
    assert max(distances) < 0.08
