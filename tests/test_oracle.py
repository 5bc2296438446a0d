"""Worlds with a known denoiser: sampling with it gives the data back, and training a network approaches it."""

import pytest
import torch
from exact_models import network, trained
from worlds import World, shidoku, two_cities

from modeling_flm import FLMModel
from modeling_flm.flow_flm import interpolate
from modeling_flm.noise_flm import white_noise

WORLDS = {"two cities": two_cities, "4x4 Sudoku": shidoku}


def chi_square(world: World, ids: torch.Tensor) -> torch.Tensor:
    """Pearson's statistic of sampled ids against the data's weights; every sample must be an item."""
    items = world.items(ids)
    assert (items >= 0).all()
    expected = world.weights.double() * len(ids)
    return ((torch.bincount(items, minlength=len(world.ids)) - expected) ** 2 / expected).sum()


@pytest.mark.parametrize("name, count", [("two cities", 20_000), ("4x4 Sudoku", 5_760)])
def test_euler_with_the_exact_denoiser_gives_the_data_back(name, count):
    world = WORLDS[name]()
    noise, degrees = world.noise(count, seed=0), len(world.ids) - 1
    many = chi_square(world, world.euler(noise, 64).argmax(-1))
    assert many < degrees + 4 * (2 * degrees) ** 0.5  # mean and standard deviation of the statistic: d, sqrt(2 d)
    if name == "two cities":  # few steps miss the weights of the data
        assert chi_square(world, world.euler(noise, 4).argmax(-1)) > 50


@pytest.mark.parametrize("name", WORLDS)
def test_euler_is_of_first_order(name):
    world = WORLDS[name]()
    noise = world.noise(200, seed=1)
    exact = world.flow(noise, 200, end=0.8)
    errors = [(world.euler(noise, n, end=0.8) - exact).square().mean().sqrt().item() for n in (8, 16, 32, 64)]
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert 1.8 < coarse / fine < 2.2, errors


def losses(world: World, model: FLMModel, count: int = 2048) -> tuple[float, float]:
    """The loss of a network, and of the exact denoiser, at the same data, times and noise."""
    ids = world.draw(count, torch.Generator().manual_seed(1))
    tau, seeds = (torch.arange(count) + 0.5) / count, list(range(count))
    with torch.no_grad():
        loss = model(labels=ids, timesteps=tau, noise_seed=seeds).loss.item()
    noise, _ = white_noise(seeds, ids.shape[1], world.vocab_size, torch.device("cpu"))
    t = world.clock.t(tau.double())
    state = interpolate(noise.double(), torch.nn.functional.one_hot(ids, world.vocab_size).double(), t)
    exact = -world.denoise(state, t).gather(-1, ids[..., None]).log().mean().item()
    return loss, exact


@pytest.mark.parametrize("name, width, steps, left", [("two cities", 32, 250, 0.05), ("4x4 Sudoku", 64, 400, 0.35)])
def test_training_approaches_the_exact_denoiser(name, width, steps, left):
    world = WORLDS[name]()
    before, exact = losses(world, network(FLMModel, world, width))
    model = trained(world, width, steps)
    after, _ = losses(world, model)
    assert exact < after, "no network beats the exact denoiser"
    assert after - exact < left * (before - exact), (before, after, exact)
    if name == "two cities":  # and its samples are cities, in the data's proportion
        items = world.items(model.generate(num_steps=32, num_return_sequences=500, seed=0))
        assert (items >= 0).float().mean() > 0.9
        assert abs((items == 0).float().mean() - 0.7) < 0.1
