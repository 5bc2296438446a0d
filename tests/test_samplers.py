"""The samplers on worlds where the exact denoiser and the exact flow map are known, and their steps by themselves."""

import copy
import math
from itertools import repeat

import pytest
import torch
from exact_models import exact_denoiser, exact_map
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from worlds import shidoku, two_cities

from command.generate import GENERATION_SETTINGS
from command.main import _parser
from modeling_flm import FlowGenerationConfig
from modeling_flm.flow_flm import bridge_step, renoise
from modeling_flm.generation_config_flm import HONOURED
from modeling_flm.guidance_flm import Predictor
from modeling_flm.noise_flm import step_seeds
from modeling_flm.samplers_flm import SAMPLERS, SETTINGS
from modeling_flm.vocabulary_flm import draw_token

CITIES = two_cities()
SPREAD = (0.7 * 0.3) ** 0.5  # of one draw of the first city


def predictor_of(model, length: int, seeds: list[int]) -> Predictor:
    """Without a prompt."""
    nothing = torch.zeros(len(seeds), length, dtype=torch.long)
    return Predictor(model, nothing, nothing.bool(), seeds)


MARKOV = {"gamma": 0.5, "renoise": "markov"}


@pytest.mark.parametrize("settings", [{"num_steps": 1}, {}, {"gamma": 1.0}, MARKOV], ids=str)
def test_the_exact_map_keeps_the_marginals(settings):
    model = exact_map(CITIES, 50)
    items = CITIES.items(model.generate(num_return_sequences=4000, seed=0, **{"num_steps": 4} | settings))
    assert (items >= 0).all(), "a pair that is none"
    assert (items == 0).double().mean() == pytest.approx(0.7, abs=4 * SPREAD / 4000**0.5)


# -- samplers of the denoiser -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, order", [("euler", 1), ("multistep", 2)])
@pytest.mark.parametrize("world", [two_cities, shidoku], ids=["two cities", "4x4 Sudoku"])
def test_order_of_convergence(name, order, world):
    """Halving the steps divides the error at tau = 0.8 by 2 ** order."""
    world, errors = world(), []
    noise = world.noise(100, seed=1)
    exact = world.flow(noise, 200, end=0.8)
    for steps in (16, 32, 64):
        tau = torch.linspace(0, 0.8, steps + 1)
        predictor = predictor_of(exact_denoiser(world), world.ids.shape[1], [0] * 100)
        sampler, state = SAMPLERS[name](predictor, FlowGenerationConfig(), tau, repeat(None)), noise.float()
        for step in range(steps):
            state = sampler.advance(state, predictor.predict(state, tau[step]), step)
        errors.append((state - exact).square().mean().sqrt().item())
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert 2 ** (order - 0.25) < coarse / fine < 2 ** (order + 0.45), errors


def test_the_bridge_comes_to_the_data_as_steps_grow():
    model, settings = exact_denoiser(CITIES), dict(sampler="bridge", num_return_sequences=4000, seed=0)
    few, many = (CITIES.items(model.generate(num_steps=n, **settings)) for n in (1, 64))
    assert (few < 0).double().mean() == pytest.approx(2 * 0.7 * 0.3, abs=0.03)  # independent tokens
    assert (many < 0).double().mean() < 0.005
    assert (many == 0).double().mean() == pytest.approx(0.7, abs=4 * SPREAD / 4000**0.5)


def test_the_bridge_covers_4x4_sudoku_evenly():
    world = shidoku()
    settings = dict(num_steps=96, sampler="bridge", num_return_sequences=2016, seed=0)
    items = world.items(exact_denoiser(world).generate(**settings))
    assert (items < 0).double().mean() < 0.02
    counts = torch.bincount(items[items >= 0], minlength=288)
    statistic = ((counts - counts.sum() / 288) ** 2 / (counts.sum() / 288)).sum()
    assert abs(statistic - 287) < 4 * (2 * 287) ** 0.5


def test_temperature_sharpens():
    model, settings = exact_denoiser(CITIES), dict(num_steps=8, sampler="bridge", num_return_sequences=2000, seed=0)
    first = [model.generate(temperature=t, **settings)[:, 0] == 0 for t in (2.0, 1.0, 0.5, 0)]
    shares = [found.double().mean().item() for found in first]
    assert shares == sorted(shares) and shares[0] < 0.67 and shares[2] > 0.75 and shares[3] > 0.8


# -- samplers of the map ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.5, 0.8])
def test_the_bias_of_the_official_form(gamma):
    """Of one step from noise to tau = 0.5: `markov` keeps `E |x_t|^2 = L (t^2 + V (1-t)^2)`, the published form, with
    the same noise, makes states too long."""
    count, tau = 4000, torch.tensor([0, 0.5, 1.0])
    model, length = exact_map(CITIES, 30), CITIES.ids.shape[1]
    t = model.clock.t(tau)[1].item()
    exact = length * (t**2 + CITIES.vocab_size * (1 - t) ** 2)
    predictor, squares = predictor_of(model, length, list(range(count))), {}
    for form in ("official", "markov"):
        config = FlowGenerationConfig(gamma=gamma, renoise=form)
        sampler = SAMPLERS["flow_map"](predictor, config, tau, predictor.fresh_noise())
        prediction = predictor.predict(predictor.start, tau[0], sampler.target(0))
        squares[form] = sampler.advance(predictor.start, prediction, 0).square().sum((1, 2)) / exact
    more = squares["official"] - squares["markov"]
    print(f"gamma {gamma}: markov {squares['markov'].mean() - 1:+.4f}, official {more.mean():+.4f} beyond it")
    assert abs(squares["markov"].mean() - 1) < 4 * squares["markov"].std() / count**0.5
    assert more.mean() > 4 * more.std() / count**0.5


def test_no_gamma_is_the_deterministic_map_and_the_official_form_is_by_default():
    model = tiny_model("fmlm")

    def write(**settings):
        return model.generate(num_steps=4, num_return_sequences=4, seed=0, **settings)

    plain, half, official = write(), write(gamma=0.5), write(gamma=0.5, renoise="official")
    assert torch.equal(plain, write(gamma=0)) and torch.equal(half, official)
    assert torch.equal(write(gamma=1), write(gamma=1, renoise="markov"))
    assert not torch.equal(plain, half) and not torch.equal(half, write(gamma=0.5, renoise="markov"))


# -- the steps --------------------------------------------------------------------------------------------------------

times = st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3, unique=True).map(sorted)


def coefficients(s: float, t: float) -> tuple[float, float, float]:
    """a, b and sqrt(v) of the bridge from s to t."""
    s, t = torch.tensor([s, t], dtype=torch.float64)
    return tuple(bridge_step(*torch.eye(3, dtype=torch.float64)[..., None], s, t).flatten().tolist())


@given(times)
def test_the_bridge_has_the_law_of_the_interpolant(grid):
    """Given x_1 = y, x_t ~ N(t y, (1-t)^2) wherever the bridge comes from; two bridges in a row are one."""
    s, u, t = grid
    a, b, spread = coefficients(s, t)
    assert a * s + b == pytest.approx(t)
    assert a**2 * (1 - s) ** 2 + spread**2 == pytest.approx((1 - t) ** 2)
    assert a * (1 - s) ** 2 == pytest.approx(s / t * (1 - t) ** 2)  # the covariance with x_s, that of the noising
    (a1, b1, spread1), (a2, b2, spread2) = coefficients(s, u), coefficients(u, t)
    assert a1 * a2 == pytest.approx(a) and a2 * b1 + b2 == pytest.approx(b)
    assert math.hypot(a2 * spread1, spread2) == pytest.approx(spread)


@given(times)
def test_noising_undoes_the_time_and_keeps_the_law(grid):
    t, _, s = grid
    times = torch.tensor([s, t], dtype=torch.float64)
    kept, spread = renoise(*torch.eye(2, dtype=torch.float64)[..., None], *times).flatten().tolist()
    assert kept * s == pytest.approx(t)
    assert kept**2 * (1 - s) ** 2 + spread**2 == pytest.approx((1 - t) ** 2)


# -- drawing tokens ---------------------------------------------------------------------------------------------------


def head(vocab_size: int = 61, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) for shape in ((5, 8), (vocab_size, 8), (vocab_size,)))


@pytest.mark.parametrize(
    "top_k, top_p, cap",
    [(None, None, 3.0), (3, None, None), (None, 0.6, None), (10, 0.5, 3.0), (100, None, None), (None, 1.0, None)]
    + [(1, 0.1, None)],
)
def test_tokens_are_drawn_by_their_probability_among_those_of_transformers_filters(top_k, top_p, cap, monkeypatch):
    monkeypatch.setattr("modeling_flm.vocabulary_flm._CPU_BLOCK", 100 * 61)  # a hundred rows at a time
    hidden, weight, bias = head()
    count = 20_000 if top_k is top_p is None else 4000
    uniform = (torch.arange(count) + 0.5) / count  # even: the counts are the probabilities, to one in `count`
    rows = hidden.repeat_interleave(count, 0)
    drawn = draw_token(rows, weight, bias, uniform.repeat(5), cap, 1.5, top_k, top_p).view(5, count)
    logits = hidden @ weight.T + bias
    logits = TemperatureLogitsWarper(1.5)(None, logits if cap is None else cap * torch.tanh(logits / cap))
    if top_k is not None:
        logits = TopKLogitsWarper(top_k)(None, logits)
    if top_p is not None:
        logits = TopPLogitsWarper(top_p)(None, logits)
    counts = torch.stack([torch.bincount(row, minlength=61) for row in drawn])
    torch.testing.assert_close(counts / count, logits.softmax(-1), atol=2 / count, rtol=0)


def test_the_ends_of_a_distribution_and_one_that_is_none():
    """A uniform number of exactly 0 or 1 draws a token that can be."""
    hidden, weight = torch.ones(2, 1), torch.tensor([[-1e4], [0.0], [1.0], [-1e4]])
    for top_k in (None, 2):
        drawn = draw_token(hidden, weight, torch.zeros(4), torch.tensor([0.0, 1.0]), None, 1.0, top_k)
        assert sorted(drawn.tolist()) == [1, 2]
    assert draw_token(torch.tensor([[torch.nan]]), torch.ones(3, 1), torch.zeros(3), torch.zeros(1)).tolist() == [-1]


# -- in generate ------------------------------------------------------------------------------------------------------

STOCHASTIC = [
    ("flm", {"sampler": "bridge", "temperature": 0.8, "top_p": 0.9}),
    ("fmlm", {"sampler": "bridge"}),
    ("fmlm", {"gamma": 0.7}),
]


@pytest.mark.parametrize("kind, settings", STOCHASTIC, ids=str)
def test_a_sequence_depends_on_its_seed_alone(kind, settings):
    model = tiny_model(kind)
    many = model.generate(num_steps=4, seed=[3, 4, 5, 6], num_return_sequences=4, **settings)
    two = model.generate(num_steps=4, seed=[5, 3], num_return_sequences=2, **settings)
    assert torch.equal(two, many[[2, 0]])
    assert not torch.equal(many, model.generate(num_steps=4, seed=7, num_return_sequences=4, **settings))
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    model.generate(num_steps=4, seed=1, **settings)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("vocab_size", [23, 61])  # dense noise, and embedded noise
def test_a_float64_model_writes_with_every_sampler(vocab_size):
    """Its states are float32, as those of every model."""
    model = tiny_model("fmlm", vocab_size=vocab_size)
    doubled = copy.deepcopy(model).double()
    guided = {"guidance_scale": 2.0, "guidance_dropout": 0.2, "refine_steps": 1, "suppress_tokens": [3]}
    by_model = {"guidance_scale": 2.0, "guidance_model": doubled}
    rewarded = {"reward_fn": lambda ahead: ahead.embedding.sum((1, 2))}
    for settings in (*({"sampler": name} for name in SAMPLERS), {"gamma": 0.7}, guided, by_model, rewarded):
        settings = {"num_steps": 3, "num_return_sequences": 4, "seed": 0} | settings
        assert torch.equal(doubled.generate(**settings), model.generate(**settings)), settings
    assert doubled.embed_noise(1, 12, seeds=[0]).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_default_dtype_changes_nothing(dtype):
    model, asked = tiny_model("fmlm"), dict(num_steps=3, num_return_sequences=4, seed=0)
    for sampler in SAMPLERS:
        expected = model.generate(sampler=sampler, **asked)
        torch.set_default_dtype(dtype)
        try:
            assert torch.equal(model.generate(sampler=sampler, **asked), expected), sampler
        finally:
            torch.set_default_dtype(torch.float32)


def test_the_noise_of_the_steps_is_drawn_anew():
    """Of its law tells `test_joint_noise_is_the_models_own_and_has_the_joint_law`."""
    source = predictor_of(tiny_model(), 12, list(range(400))).fresh_noise()
    (first, uniform), (second, _) = next(source), next(source)
    together = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(together) < 0.02 and uniform.shape == (400, 12)
    assert uniform.mean() == pytest.approx(0.5, abs=0.02) and uniform.var() == pytest.approx(1 / 12, abs=0.01)


def test_seeds_of_the_steps_differ():
    seeds = [0, 1, 2**63, -1]
    assert step_seeds(seeds, 0) == seeds
    drawn = [seed for step in range(1, 50) for seed in step_seeds(seeds, step)]
    assert len(set(drawn)) == len(drawn) and all(0 <= seed < 2**64 for seed in drawn)


def test_a_grid_of_ones_own():
    model = tiny_model()
    even = model.generate(num_steps=4, seed=0)
    assert torch.equal(even, model.generate(timesteps=[0, 0.25, 0.5, 0.75], seed=0))
    out = model.generate(timesteps=(0, 0.1), seed=0, return_dict_in_generate=True)
    assert out.num_function_evaluations == 2 and not torch.equal(out.sequences, model.generate(num_steps=2, seed=0))


def test_another_sampler_drops_the_settings_of_the_configured_one(tmp_path):
    model, plain, four = tiny_model("fmlm"), tiny_model("fmlm"), dict(num_return_sequences=4, seed=0)
    model.generation_config = FlowGenerationConfig(sampler="flow_map", gamma=0.5, timesteps=[0, 0.5])
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path).eval()
    assert model.generation_config.gamma == 0.5 and model.generation_config.timesteps == [0, 0.5]
    assert not torch.equal(model.generate(**four), model.generate(**four, gamma=0))
    euler = dict(sampler="euler", num_steps=3, **four)
    assert torch.equal(model.generate(**euler), plain.generate(**euler))


def test_the_command_line_knows_every_sampler():
    for name in SAMPLERS:
        assert _parser().parse_args(["generate", "model", "--sampler", name]).sampler == name
    assert set(SETTINGS) <= set(GENERATION_SETTINGS) <= HONOURED | {"seed"}
