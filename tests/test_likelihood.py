"""The bound of the likelihood, against closed forms, exact worlds, and the same bound over the whole vocabulary."""

import itertools
import math

import pytest
import torch
from exact_models import exact_denoiser
from tiny import random_ids, tiny_model
from torch import Tensor
from worlds import World, shidoku, two_cities

from benchmarks.baselines import mdlm
from evaluation.likelihood import _Basis, bits_per, exact_trace, flow_log_density, log_likelihood, probed_trace
from modeling_flm.noise_flm import step_seeds, white_noise


def end_of(model, end: float) -> float:
    """m_1 = t_1 / (1 - t_1) of tau_1."""
    t = model.clock.t(torch.tensor(end, dtype=torch.float64)).item()
    return t / (1 - t)


def noise_of(model, seed: int, length: int) -> Tensor:
    """u - m_1 U[ids] of the first draw of a sequence: (1, length, r)."""
    basis, longest = _Basis(model), model.config.max_position_embeddings
    return white_noise(step_seeds([seed], 1), length, basis.left.shape[1], torch.device("cpu"), longest)[0]


# -- the density of a flow --------------------------------------------------------------------------------------------


class Gaussian:
    """Data N(mean, S) over all entries of (2, 3) states together: u at m is N(m mean, m^2 S + I)."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        factor = torch.randn(6, 6, generator=generator, dtype=torch.float64) / 2
        self.mean = torch.randn(6, generator=generator, dtype=torch.float64)
        self.covariance = factor @ factor.T

    def denoised(self, u: Tensor, m: float) -> Tensor:
        gain = m * self.covariance @ torch.linalg.inv(m**2 * self.covariance + torch.eye(6, dtype=torch.float64))
        return (self.mean + (u.flatten(1) - m * self.mean) @ gain.T).view(u.shape)

    def log_density(self, u: Tensor, m: float) -> Tensor:
        covariance = m**2 * self.covariance + torch.eye(6, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(m * self.mean, covariance).log_prob(u.flatten(1))


def test_density_of_a_gaussian_is_its_closed_form_to_fourth_order():
    gaussian, m = Gaussian(), 3.0
    u = 2 * torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = gaussian.log_density(u, m)
    found = [flow_log_density(gaussian.denoised, u, m, steps, exact_trace(range(2))) for steps in (16, 32, 64)]
    coarse, middle, fine = ((density - exact).abs().max() for density in found)
    assert coarse > 10 * middle > 100 * fine and fine < 1e-4


def test_hutchinson_is_unbiased():
    gaussian, m, draws = Gaussian(), 3.0, 2000
    u = torch.randn(1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = flow_log_density(gaussian.denoised, u, m, 16, exact_trace(range(2)))
    for probes in (1, 3):
        trace = probed_trace(range(draws), probes, 2)
        found = flow_log_density(gaussian.denoised, u.expand(draws, 2, 3), m, 16, trace)
        assert found.std() > 0.01 and abs(found.mean() - exact) < 4 * found.std() / draws**0.5


# -- exact worlds: the model is the data's distribution ---------------------------------------------------------------


@pytest.mark.parametrize("probes", [None, 1])
@pytest.mark.parametrize("name, end, draws", [("two cities", 0.99, 100), ("4x4 Sudoku", 0.999, 2)])
def test_bound_is_the_entropy_of_a_world(name, end, draws, probes):
    """Within 2 % of it, and not above, but for the error of the mean and of the solver (1e-4 of it)."""
    world = two_cities() if name == "two cities" else shidoku()
    items = torch.arange(len(world.ids)) if name == "two cities" else torch.arange(0, 288, 18)
    settings = dict(end=end, num_steps=32, num_samples=8 * draws if probes == 1 else draws, batch_size=500)
    found = log_likelihood(exact_denoiser(world), world.ids[items], num_probes=probes, **settings)
    share = world.weights[items].double() / world.weights[items].sum()
    truth = world.weights[items].double().log() @ share
    bound, error = found.bound @ share, ((found.standard_error * share) ** 2).sum().sqrt()
    assert error < 0.02 * abs(truth)
    assert 1.02 * truth - (0 if probes is None else 4 * error) <= bound <= truth + 4 * error + 1e-4 * abs(truth)


def test_log_weight_is_that_of_bayes_rule():
    """With the exact flow, p(u) P(k | u) = w_k q(u | k), so that log w = log w_k + sum_l log P(x_l | u) - log P(k | u)
    for every u, however early the flow ends."""
    world = shidoku()
    model, ids, seeds = exact_denoiser(world), world.ids[[0, 100]], [5, 6]
    for end in (0.3, 0.7):
        found = log_likelihood(model, ids, end=end, num_steps=32, num_probes=None, seed=seeds)
        m, basis = end_of(model, end), _Basis(model)
        noise = torch.cat([noise_of(model, seed, 16) for seed in seeds])
        state = ((m * basis.left[ids] + noise) @ basis.right / (1 + m)).double()
        t = torch.tensor(m / (1 + m), dtype=torch.float64)
        own = world.posterior(state, t)[[0, 1], [0, 100]].log()
        marginals = world.denoise(state, t).gather(-1, ids[..., None]).log().sum((1, 2))
        assert found.bound == pytest.approx(-math.log(288) + marginals - own, abs=2e-3)


def test_importance_weighting_closes_the_gap_and_stays_below():
    """Where the flow ends early, the model's own p(ids) = E_u[prod_l P(x_l | u)] is known by drawing u."""
    world, end = two_cities(), 0.5
    model = exact_denoiser(world)
    m = end_of(model, end)
    t = torch.tensor(m / (1 + m), dtype=torch.float64)
    items = world.items(world.draw(100_000, torch.Generator().manual_seed(0)))
    state = t * world.one_hot[items] + (1 - t) * world.noise(len(items), seed=1)
    denoised = world.denoise(state, t)
    each = [denoised.gather(-1, ids.expand(len(items), 2)[..., None]).prod(1).squeeze(1) for ids in world.ids]
    truth = torch.stack([p.mean().log() for p in each])
    spread = torch.stack([p.std() / p.mean() / len(items) ** 0.5 for p in each])

    def bound(weighted: bool) -> tuple[Tensor, Tensor]:
        settings = dict(end=end, num_steps=8, num_samples=4000, num_probes=None, batch_size=4000)
        found = log_likelihood(model, world.ids, importance_weighted=weighted, **settings)
        return found.bound, (found.standard_error**2 + spread**2).sqrt()

    mean, mean_error = bound(False)
    best, best_error = bound(True)
    assert (mean < truth - 5 * mean_error).all()
    assert (best > mean + 5 * mean_error).all()
    assert (best - truth).abs().lt(4 * best_error).all() and best_error.max() < 0.02


def test_given_tokens_are_not_scored():
    world = shidoku()
    left = world.ids[(world.ids[:, :4] == world.ids[0, :4]).all(1)]  # the grids with the first row of the first one
    model, given = exact_denoiser(World(left, 4)), torch.zeros(1, 16, dtype=torch.bool)
    given[:, :4] = True
    settings = dict(end=0.999, num_steps=32, num_probes=None, num_samples=2)
    found = log_likelihood(model, left[:1], conditioning_mask=given, **settings)
    assert found.bound == pytest.approx(-math.log(12), rel=0.02) and found.num_tokens.tolist() == [12]


# -- the same bound over the whole vocabulary -------------------------------------------------------------------------


def dense_log_weight(model, ids: Tensor, given: Tensor, noise: Tensor, m: float, steps: int) -> tuple[Tensor, Tensor]:
    """log w in R^{L x V}, x / (1 - t) the state, without the shortcuts of the embedded space; and where it starts."""
    table, one_hot = model.embed_tokens.weight, torch.nn.functional.one_hot(ids, model.config.vocab_size).float()

    def probabilities(x: Tensor, m: float) -> Tensor:
        state = torch.where(given[..., None], table[ids], x @ table / (1 + m))
        tau = model.clock.tau(torch.tensor(m / (1 + m), dtype=torch.float64)).float()
        return model(inputs_embeds=state, timesteps=tau).logits.softmax(-1) * ~given[..., None]

    def trace(x: Tensor, m: float) -> Tensor:
        jacobian = torch.autograd.functional.jacobian(lambda x: probabilities(x, m), x)
        return jacobian.view(x.numel(), x.numel()).diagonal().sum().double()

    x = (m * one_hot + noise) * ~given[..., None]
    decoded = probabilities(x, m)[~given].gather(-1, ids[~given][:, None]).log().sum()
    h, total = m / steps, torch.zeros((), dtype=torch.float64)
    for k in range(steps + 1):
        now = max(m - k * h, 0.0)
        total += h / 3 * (1 if k in (0, steps) else 4 if k % 2 else 2) * trace(x, now)
        if k < steps:
            k1 = probabilities(x, now)
            k2 = probabilities(x - h / 2 * k1, now - h / 2)
            k3 = probabilities(x - h / 2 * k2, now - h / 2)
            k4 = probabilities(x - h * k3, max(now - h, 0.0))
            x = x - h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return -0.5 * x.square().sum() - total + decoded + 0.5 * (noise * ~given[..., None]).square().sum(), x


@torch.no_grad()
@pytest.mark.parametrize(
    "kind, vocab_size, width", [("flm", 9, 4), ("fmlm", 9, 4), ("flm", 5, 8)], ids=["V > d", "map", "V < d"]
)
def test_the_embedded_bound_is_the_dense_one_less_what_it_wastes(kind, vocab_size, width):
    """A dense state has a part y in the table's range and a rest z, and log w splits: the dense bound also pays for z,

        dense log w = embedded log w - (|z_0|^2 - |z_noise|^2) / 2,

    whose expectation is KL(q(z) || p(z | y)) >= 0."""
    model = tiny_model(kind, vocab_size=vocab_size, hidden_size=width, num_attention_heads=1)
    ids, seed, end, steps = random_ids(1, 3, vocab_size=vocab_size), 7, 0.9, 6
    given = torch.tensor([[True, False, False]])
    found = log_likelihood(model, ids, conditioning_mask=given, end=end, num_steps=steps, num_probes=None, seed=seed)
    left = _Basis(model).left
    rest = torch.eye(vocab_size) - left @ left.T
    noise = torch.randn(1, 3, vocab_size, generator=torch.Generator().manual_seed(1)) @ rest
    together = noise_of(model, seed, 3) @ left.T + noise
    dense, start = dense_log_weight(model, ids, given, together, end_of(model, end), steps)
    wasted = 0.5 * ((start @ rest).square().sum() - (noise * ~given[..., None]).square().sum())
    assert found.bound == pytest.approx(float(dense + wasted), abs=1e-3)
    assert abs(wasted) > 0.1 if vocab_size > width else abs(wasted) < 1e-3


# -- what is around it ------------------------------------------------------------------------------------------------


def test_an_estimate_depends_on_its_sequence_and_seed_alone():
    model, ids = tiny_model(), random_ids(3, 6)
    settings = dict(num_steps=4, num_samples=3, num_probes=2)
    together = log_likelihood(model, ids, seed=[3, 4, 5], **settings)
    assert together.bound.unique().numel() == 3
    for padding in ((0, 4), (4, 0)):
        padded = torch.nn.functional.pad(ids[1:2], padding, value=1)
        mask = torch.nn.functional.pad(torch.ones(1, 6), padding)
        alone = log_likelihood(model, padded, attention_mask=mask, seed=[4], batch_size=2, **settings)
        assert alone.num_tokens.tolist() == [6]
        assert alone.bound == pytest.approx(together.bound[1:2], abs=1e-3)
        assert alone.standard_error == pytest.approx(together.standard_error[1:2], abs=1e-3)
    assert log_likelihood(model, ids[:1], num_steps=4).standard_error.isnan().all()


def test_masked_diffusion_bound_is_the_mean_over_all_masks():
    model, ids, exact = tiny_model(mask_token_id=3).requires_grad_(False), random_ids(1, 4, seed=1), 0.0
    for n in (1, 2, 3):
        for subset in itertools.combinations((1, 2, 3), n):
            state, places = ids.clone(), list(subset)
            state[0, places] = 3
            logits = model(state, timesteps=torch.zeros(1)).logits[0]
            logits[:, 3] = -torch.inf
            scores = logits.log_softmax(-1)[range(4), ids[0]]
            exact += float(scores[places].sum()) / n / math.comb(3, n)  # N / n, and n is one of N
    found = mdlm.log_likelihood(model, ids.expand(1000, 4), 4, seed=0)
    assert 0.1 < found.std() < 3 and abs(found.mean() - exact) < 4 * found.std() / 1000**0.5


def test_bits_per():
    nats = -math.log(2) * torch.tensor([2.0, 4.0])
    assert bits_per(nats, [1, 3]) == pytest.approx((1.5, 0.25))  # residuals 0.5, -0.5 of 4 counted
    assert math.isnan(bits_per(nats[:1], [1])[1])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"end": 1.0}, r"`end` must lie in \(0, 1\) \(it is a tau\), but is 1.0"),
        ({"num_steps": 7}, r"`num_steps` must be even and at least 2 \(Simpson's rule\), but is 7"),
        ({"num_samples": 0}, "`num_samples` must be an integer >= 1, but is 0"),
        ({"num_probes": 0}, "`num_probes` must be an integer >= 1, or None for the exact trace, but is 0"),
        ({"importance_weighted": True}, "exponentiates the noise of Hutchinson's estimator"),
        ({"input_ids": torch.zeros(1, 4)}, "`input_ids` must be an integer tensor"),
        ({"input_ids": torch.full((1, 4), 61)}, r"an id outside the vocabulary \[0, 61\)"),
        ({"input_ids": torch.zeros(1, 13).long()}, "have 13 positions, but the model's context is 12"),
        ({"attention_mask": torch.ones(1, 3)}, r"`attention_mask` must be a tensor as `input_ids`, of shape \(1, 4\)"),
        ({"conditioning_mask": torch.ones(1, 4).bool()}, "a sequence has nothing to score"),
        ({"seed": [1, 2]}, "`seed` has 2 entries for 1 sequences"),
        ({"model": tiny_model().train()}, r"call `model.eval\(\)`"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood(**{"model": tiny_model(), "input_ids": random_ids(1, 4)} | change)
