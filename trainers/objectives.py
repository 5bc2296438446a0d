"""The targets of a flow map off the diagonal, by the three objectives of arXiv 2602.16813.

Let delta_{s,t} be the student's two-time denoiser, X_{s,t} its flow map, D the teacher's denoiser (without a teacher
the student's diagonal) and b the velocity of the flow. For s < u < t the target of delta_{s,t}(x_s), without gradient,
is

    semigroup (PSD)     g delta_{s,u}(x_s) + (1 - g) delta_{u,t}(X_{s,u}(x_s)),   g = (1-t)(u-s) / ((1-u)(t-s))
    Lagrangian (LSD)    D_t(X_{s,t}(x_s)) - (1-t)(t-s)/(1-s) d/dt delta_{s,t}(x_s),     projected onto the simplex
    Eulerian (ESD)      D_s(x_s) + (1-s)(t-s)/(1-t) [d/ds + b_s(x_s) . grad_x] delta_{s,t}(x_s)

The exact flow map is the fixed point of each of them (`tests/test_fixed_point.py`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modeling_flm.flow_flm import semigroup_weight, velocity
from modeling_flm.losses_flm import Target, mixture

from .networks import Network, States


@dataclass
class Jumps:
    """The n examples of a batch off the diagonal, and the networks that compute their targets.

    Args:
        student, teacher (`Network`): delta and D.
        states, teacher_states (`States`): the same n states x_s, embedded by the student's and by the teacher's table.
        start, middle, end (`Tensor`): (n,) the times s, u and t, as tau.
        projected (`list[Tensor]`): an output. Each call of the target appends of which of its tokens it had to
            project the target onto the simplex, bool.
    """

    student: Network
    teacher: Network
    states: States
    teacher_states: States
    start: Tensor
    middle: Tensor
    end: Tensor
    projected: list[Tensor] = field(default_factory=list)

    def interpolation_times(self) -> tuple[Tensor, Tensor, Tensor]:
        """The times s, u and t, each (n,), as t of the interpolant instead of tau."""
        clock = self.student.model.clock
        return clock.t(self.start), clock.t(self.middle), clock.t(self.end)


class Objective(ABC):
    """An objective of distillation: the time pairs that it is trained at, and its target.

    To add one, subclass this, add it to [`OBJECTIVES`], and give it a case in `tests/test_fixed_point.py`.
    """

    boundary = True  # whether some time pairs are (0, 1), the jump of one-step generation
    latest = 1.0  # the largest tau of the other jumps
    on_simplex = True  # whether targets are probabilities; if not, the loss is the squared error

    @abstractmethod
    def target(self, jumps: Jumps) -> Target:
        """The target of delta_{s,t}(x_s), as a function of a slice of the n * length tokens: (rows, V)."""


class Semigroup(Objective):
    """A jump from s to t equals the jump from s to u and then to t. Needs forward evaluations only."""

    def target(self, jumps: Jumps) -> Target:
        s, u, t = jumps.interpolation_times()
        network = jumps.student
        first = network.hidden(jumps.states, jumps.start, jumps.middle)
        between = jumps.states.moved(network.embed(first, network.table), s, u)
        second = network.hidden(between, jumps.middle, jumps.end)
        share = semigroup_weight(s, u, t).nan_to_num(0.5)  # 0 / 0 if the times are equal in float32
        return mixture(_per_token(share, first), network.predictions(first), network.predictions(second))


class Lagrangian(Objective):
    """As t grows, the place where a jump arrives moves with the velocity of the teacher's flow."""

    def target(self, jumps: Jumps) -> Target:
        s, _, t = jumps.interpolation_times()
        student, teacher, states = jumps.student, jumps.teacher, jumps.states
        along = (torch.zeros_like(states.value), torch.zeros_like(jumps.start), student.model.clock.dtau_dt(t))
        hidden, derivative = student.hidden_and_derivative(states, jumps.start, jumps.end, along)
        arrived = jumps.teacher_states.moved(student.embed(hidden, teacher.table), s, t)
        at_end = teacher.predictions(teacher.hidden(arrived, jumps.end))
        change = student.prediction_derivative(hidden, derivative)
        factor = _per_token((1 - t) * (t - s) / (1 - s), hidden)

        def rows(part: slice) -> Tensor:
            target = at_end(part) - factor[part, None] * change(part)
            jumps.projected.append((target < 0).any(-1))
            return project_onto_simplex(target)

        return rows


class Eulerian(Objective):
    """As s moves along the flow, the place where a jump arrives stays the same. The identity behind MeanFlow.

    The factor (1-s)(t-s)/(1-t) of the derivative is unbounded as t goes to 1, so jumps that end late would make up
    nearly all of the squared error. The target of the class is therefore only a part of the way from delta to the
    target above,

        delta + w (target - delta),     w = (1-t) / ((1-t) + (1-s)(t-s)).

    The fixed point is the same, and the factor of the derivative is at most 1. Jumps end at tau = 0.999 at the latest:
    the network can hardly tell tau = 0.999 from 1, where the factors differ greatly.
    """

    boundary = False
    latest = 0.999
    on_simplex = False

    def target(self, jumps: Jumps) -> Target:
        s, _, t = jumps.interpolation_times()
        student, teacher, states = jumps.student, jumps.teacher, jumps.states
        teacher_hidden = teacher.hidden(jumps.teacher_states, jumps.start)
        direction = velocity(states.value, teacher.embed(teacher_hidden, student.table), s)
        direction = torch.where(states.keep[..., None], 0, direction)
        along = (direction, student.model.clock.dtau_dt(s), torch.zeros_like(jumps.end))
        hidden, derivative = student.hidden_and_derivative(states, jumps.start, jumps.end, along)
        own, at_start = student.predictions(hidden), teacher.predictions(teacher_hidden)
        change = student.prediction_derivative(hidden, derivative)
        w = _per_token(eulerian_step(s, t), hidden)[:, None]

        def rows(part: slice) -> Tensor:
            delta = own(part)
            return delta + w[part] * (at_start(part) - delta) + (1 - w[part]) * change(part)

        return rows


def eulerian_step(s: Tensor, t: Tensor) -> Tensor:
    """The step w of [`Eulerian`], in [0, 1], for times s and t of the interpolant. w (1-s)(t-s)/(1-t) is 1 - w."""
    return (1 - t) / ((1 - t) + (1 - s) * (t - s))


OBJECTIVES: dict[str, type[Objective]] = {"semigroup": Semigroup, "lagrangian": Lagrangian, "eulerian": Eulerian}


def project_onto_simplex(x: Tensor) -> Tensor:
    """The Euclidean projection of each row of x (rows, V) onto the simplex: max(x - theta, 0), with sum one."""
    ordered = x.sort(dim=-1, descending=True).values
    count = torch.arange(1, x.shape[-1] + 1, device=x.device)
    excess = ordered.cumsum(-1) - 1
    support = (ordered * count > excess).sum(-1, keepdim=True)
    return (x - excess.gather(-1, support - 1) / support).clamp(min=0)


def _per_token(x: Tensor, hidden: Tensor) -> Tensor:
    """A value for each sequence (n,), repeated for its tokens: (n * length,). `hidden` is (n, length, d)."""
    return x.float().repeat_interleave(hidden.shape[1])
