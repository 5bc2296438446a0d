"""The exact flow map of a small world: its identities, and that every objective has it as its fixed point and goal.

Exact is an ODE solved to 1e-8 with the closed-form denoiser of the world.
"""

import pytest
import torch
from datasets import Dataset
from exact_models import exact_denoiser, exact_map, network
from torch import Tensor
from training import arguments
from transformers import default_data_collator
from worlds import two_cities

from modeling_flm import FMLMModel
from modeling_flm.flow_flm import flow_map_step, semigroup_weight
from trainers import FMLMTrainer, FMLMTrainingArguments
from trainers.networks import Network, States
from trainers.objectives import OBJECTIVES, Jumps, eulerian_step

WORLD = two_cities()
STEPS = 400  # of the ODE solver, from any s to any t <= LATEST
LATEST = 0.9


def random_times(count: int, number: int) -> list[Tensor]:
    """Sorted times tau (count,), `number` of them, at least 0.05 apart."""
    drawn = torch.rand(count, number, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    spaced = drawn.sort(dim=1).values * (LATEST - 0.05 * (number - 1)) + 0.05 * torch.arange(number)
    return list(spaced.T)


def states_at(tau: Tensor, seed: int = 0) -> Tensor:
    t = WORLD.clock.t(tau)[:, None, None]
    ids = WORLD.draw(len(tau), torch.Generator().manual_seed(seed))
    clean = torch.nn.functional.one_hot(ids, WORLD.vocab_size).double()
    return (1 - t) * WORLD.noise(len(tau), seed) + t * clean


def test_the_ode_is_solved_to_1e_8():
    s, t = (WORLD.clock.t(tau) for tau in random_times(64, 2))
    state = states_at(random_times(64, 2)[0])
    difference = WORLD.carry(state, s, t, STEPS) - WORLD.carry(state, s, t, 2 * STEPS)
    assert difference.abs().max() < 1e-8


def test_semigroup_identity_of_the_exact_map():
    taus = random_times(64, 3)
    s, u, t = (WORLD.clock.t(tau) for tau in taus)
    state = states_at(taus[0])
    first = WORLD.two_time_denoiser(state, s, u, STEPS)
    between = flow_map_step(state, first, s, u)
    second = WORLD.two_time_denoiser(between, u, t, STEPS)
    share = semigroup_weight(s, u, t)[:, None, None]
    whole = WORLD.two_time_denoiser(state, s, t, STEPS)
    assert (share * first + (1 - share) * second - whole).abs().max() < 1e-6
    assert whole.min() > -1e-9 and (whole.sum(-1) - 1).abs().max() < 1e-9  # a point of the simplex


# From the beginning, late, and to the very end: the first pair is the one-step map's.
EXTREME = [(0, 1), (0.1, 1), (0.5, 1), (0.9, 1), (0.99, 1), (0, 0.99), (0, 0.9), (0.3, 0.98), (0.73, 0.95)]
EXTREME += [(0.6, 0.9999), (0.8, 0.9), (0.9, 0.999), (0.97, 0.999), (0.98, 0.99), (0.5, 1 - 2**-24)]


@pytest.mark.parametrize(
    "objective, teaches",
    [("semigroup", "flow"), *((name, kind) for name in ("lagrangian", "eulerian") for kind in ("flow", "map"))],
)
def test_the_exact_map_is_the_fixed_point(objective, teaches):
    """At t = 1 too, where the factor of the Eulerian derivative would be infinite without the step w."""
    exact = Network(exact_map(WORLD, STEPS))
    teacher = Network(exact_denoiser(WORLD)) if teaches == "flow" else exact  # whose diagonal is the denoiser
    extreme = torch.tensor([(s, (s + t) / 2, t) for s, t in EXTREME] * 3).T
    start, middle, end = (torch.cat([tau.float(), x]) for tau, x in zip(random_times(48, 3), extreme, strict=True))
    state = states_at(start.double()).float()
    nothing = torch.zeros(state.shape[:2], dtype=torch.bool)
    states = States(state, torch.zeros_like(state), nothing)
    target = OBJECTIVES[objective]().target(Jumps(exact, teacher, states, states, start, middle, end))
    s, t = (WORLD.clock.t(tau.double()) for tau in (start, end))
    whole = WORLD.two_time_denoiser(state.double(), s, t, STEPS)
    got = target(slice(None)).view_as(whole)
    assert (got - whole).abs().max() < 1e-4  # in float32


def test_the_eulerian_step_takes_the_singularity_out():
    """Times the step, the factor (1-s)(t-s)/(1-t) of the derivative is 1 - w: at most one."""
    s, t = torch.tensor([0.0, 0.0, 0.3, 0.0, 0.5]), torch.tensor([0.5, 1.0, 0.99, 0.999, 0.5])
    w = eulerian_step(s, t)
    assert ((w >= 0) & (w <= 1)).all() and w[1] == 0 and w[4] == 1
    before = t < 1
    factor = ((1 - s) * (t - s) / (1 - t))[before]
    torch.testing.assert_close(w[before] * factor, 1 - w[before])


# Root mean square error of the two-time denoiser (probabilities) over random times, and where it must end.
@pytest.mark.parametrize(
    "objective, steps, bound",
    [("semigroup", (60, 400), 0.06), ("lagrangian", (60, 240), 0.08), ("eulerian", (60, 240), 0.08)],
)
def test_every_objective_drives_a_student_to_the_exact_map(objective, steps, bound, tmp_path):
    teacher = exact_denoiser(WORLD)
    sizes = dict(num_hidden_layers=1, num_loops=2, initializer_range=0.3, learned_positions=True)
    student = network(FMLMModel, WORLD, **sizes)
    rows = Dataset.from_dict({"input_ids": WORLD.draw(20_000, torch.Generator().manual_seed(0)).tolist()})
    taus = random_times(512, 2)
    state, (s, t) = states_at(taus[0], seed=1), (WORLD.clock.t(tau) for tau in taus)
    exact = WORLD.two_time_denoiser(state, s, t, STEPS)

    @torch.no_grad()
    def error() -> float:
        start, end = (tau.float() for tau in taus)
        with trainer.averaged_weights():
            embedded = student.embed_state(state.float())
            logits = student(inputs_embeds=embedded, timesteps=start, target_timesteps=end).logits
        return float((logits.softmax(-1) - exact).square().sum(-1).mean().sqrt())

    args = arguments(
        tmp_path,
        kind=FMLMTrainingArguments,
        objective=objective,
        initialize_from_teacher=False,
        per_device_train_batch_size=128,
        learning_rate=8e-3,
        lr_scheduler_type="cosine",
        ema_decay=0.98,
        logging_steps=30,
    )
    trainer = FMLMTrainer(student, teacher, args, train_dataset=rows, data_collator=default_data_collator)
    errors = [error()]
    for trainer.args.max_steps in steps:
        trainer.train()
        errors.append(error())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < bound
