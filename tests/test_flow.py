"""The algebra of the interpolant, the flow map and the clock, on arbitrary values."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_flm.clock_flm import Clock
from modeling_flm.flow_flm import beyond, flow_map_step, interpolate, noised_jump, semigroup_weight, velocity

TIME = st.floats(0, 0.99)
VOCABULARY = st.sampled_from([2, 3, 37, 4096, 50257])


def draw(seed: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, 3, 5, 7, dtype=torch.float64, generator=generator))


def tensors(*times: float) -> list[torch.Tensor]:
    return [torch.tensor(t, dtype=torch.float64) for t in sorted(times)]


@given(st.integers(0, 2**32), TIME, TIME)
def test_step_is_the_average_velocity_times_the_time(seed, a, b):
    (x, delta), (s, t) = draw(seed, 2), tensors(a, b)
    torch.testing.assert_close(flow_map_step(x, delta, s, t) - x, (t - s) * velocity(x, delta, s))


@given(st.integers(0, 2**32), TIME)
def test_step_begins_at_the_state_and_ends_at_the_prediction(seed, a):
    (x, delta), (s,) = draw(seed, 2), tensors(a)
    assert torch.equal(flow_map_step(x, delta, s, s), x)
    assert torch.equal(flow_map_step(x, delta, s, torch.tensor(1.0)), delta)


@given(st.integers(0, 2**32), TIME, TIME, st.floats(0, 1))
def test_a_noised_jump_lies_between_the_map_and_new_noise(seed, a, b, gamma):
    (x, delta, noise), (s, t) = draw(seed, 3), tensors(a, b)
    torch.testing.assert_close(noised_jump(x, delta, noise, s, t, 0.0), flow_map_step(x, delta, s, t))
    torch.testing.assert_close(noised_jump(x, delta, noise, s, t, 1.0), interpolate(noise, delta, t))
    # Whatever gamma is, the noise of the start and the fresh one have the spread of the flow at t together.
    kept = 1 - beyond(t, gamma)
    torch.testing.assert_close((kept**2 + (gamma * (1 - t)) ** 2).sqrt(), 1 - t)


@given(st.integers(0, 2**32), TIME, TIME, TIME)
def test_semigroup_weight_joins_two_steps_into_one(seed, a, b, c):
    (x, first, second), (s, u, t) = draw(seed, 3), tensors(a, b, c)
    if t - s < 1e-6:
        return
    g = semigroup_weight(s, u, t)
    assert 0 <= g <= 1
    two = flow_map_step(flow_map_step(x, first, s, u), second, u, t)
    torch.testing.assert_close(flow_map_step(x, g * first + (1 - g) * second, s, t), two)


def test_semigroup_weight_vanishes_at_the_data():
    assert semigroup_weight(*tensors(0.2, 0.5, 1.0)) == 0


@given(st.integers(0, 2**32), TIME, TIME)
def test_the_straight_line_to_the_data_is_its_own_flow(seed, a, b):
    (noise, data), (s, t) = draw(seed, 2), tensors(a, b)
    torch.testing.assert_close(flow_map_step(interpolate(noise, data, s), data, s, t), interpolate(noise, data, t))


def test_times_of_a_batch_apply_row_by_row():
    x, delta = draw(0, 2)
    s, t = torch.tensor([0.0, 0.1, 0.2]), torch.tensor([0.5, 0.1, 1.0])
    rows = [flow_map_step(x[i], delta[i], s[i], t[i]) for i in range(3)]
    torch.testing.assert_close(flow_map_step(x, delta, s, t), torch.stack(rows))


@given(VOCABULARY, st.lists(st.floats(0, 1), min_size=2, max_size=50))
def test_clock_round_trip_and_order(vocab_size, values):
    clock = Clock(vocab_size)
    tau = torch.tensor(sorted(values), dtype=torch.float32)
    t = clock.t(tau)
    assert ((t >= 0) & (t <= 1)).all() and (t.diff() >= 0).all()
    torch.testing.assert_close(clock.tau(t), tau, rtol=0, atol=1e-6)
    torch.testing.assert_close(clock.tau(clock.t(tau.double())), tau.double(), rtol=0, atol=1e-9)


@given(VOCABULARY)
def test_clock_is_exact_at_both_ends(vocab_size):
    clock = Clock(vocab_size)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        ends = torch.tensor([0.0, 1.0], dtype=dtype)
        assert clock.t(ends).tolist() == [0.0, 1.0]
        assert clock.tau(ends).tolist() == [0.0, 1.0]


@given(VOCABULARY, st.floats(0.001, 0.999))
def test_clock_derivatives(vocab_size, value):
    clock = Clock(vocab_size)
    tau = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    t = clock.t(tau)
    (dt_dtau,) = torch.autograd.grad(t, tau)
    again = t.detach().requires_grad_()
    (dtau_dt,) = torch.autograd.grad(clock.tau(again), again)
    torch.testing.assert_close(dtau_dt, clock.dtau_dt(again.detach()))
    torch.testing.assert_close(dt_dtau * dtau_dt, torch.tensor(1.0, dtype=torch.float64), rtol=1e-6, atol=0)
    h = 1e-6
    slope = (clock.tau(t.detach() + h) - clock.tau(t.detach() - h)) / (2 * h)
    torch.testing.assert_close(slope, clock.dtau_dt(t.detach()), rtol=1e-4, atol=1e-7)


def test_the_clock_has_a_derivative_at_its_beginning():
    clock, tau = Clock(61), torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (dt_dtau,) = torch.autograd.grad(clock.t(tau).sum(), tau)
    torch.testing.assert_close(dt_dtau * clock.dtau_dt(torch.zeros(1)), torch.ones(1, dtype=torch.float64))
