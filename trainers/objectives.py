"""What a flow map is held to off the diagonal: the three objectives of arXiv 2602.16813.

With delta_{s,t} the student's two-time denoiser, X_{s,t} its map and D the teacher's denoiser (the student's own
diagonal without a teacher), all without gradient, the targets of delta_{s,t}(x_s) are

    semigroup (PSD)     g delta_{s,u}(x_s) + (1 - g) delta_{u,t}(X_{s,u}(x_s)),   g = (1-t)(u-s) / ((1-u)(t-s))
    Lagrangian (LSD)    D_t(X_{s,t}(x_s)) - (1-t)(t-s)/(1-s) d/dt delta_{s,t}(x_s),     projected onto the simplex
    Eulerian (ESD)      D_s(x_s) + (1-s)(t-s)/(1-t) [d/ds + b_s(x_s) . grad_x] delta_{s,t}(x_s)

The exact flow map is the fixed point of each (`tests/test_fixed_point.py`).
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
    """The examples of a batch that lie off the diagonal, and the networks that their targets are made with.

    Args:
        student, teacher (`Network`): delta and D.
        states, teacher_states (`States`): x_s of the same noise, embedded by the student's and the teacher's table.
        start, middle, end (`Tensor`): (n,) the times s, u and t, as tau.
        projected (`list[Tensor]`): fills, as the target is asked for, with the numbers of tokens whose target was
            projected onto the simplex.
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
        """s, u and t (n,) on the scale of the interpolant."""
        clock = self.student.model.clock
        return clock.t(self.start), clock.t(self.middle), clock.t(self.end)


class Objective(ABC):
    """An objective: which pairs of times it is trained on, and its target.

    To add one, subclass this, give it a name in [`OBJECTIVES`] and among the choices of `FMLMTrainingArguments`, and
    a case in `tests/test_fixed_point.py`.
    """

    boundary = True  # some pairs are exactly (0, 1), the jump of one-step generation
    latest = 1.0  # the latest tau of a jump
    on_simplex = True  # targets are probabilities; others take squared error

    @abstractmethod
    def target(self, jumps: Jumps) -> Target:
        """What delta_{s,t}(x_s) is held to, by rows of tokens: (rows, V)."""


class Semigroup(Objective):
    """Two jumps make one. Forward evaluations only."""

    def target(self, jumps: Jumps) -> Target:
        s, u, t = jumps.interpolation_times()
        network = jumps.student
        first = network.hidden(jumps.states, jumps.start, jumps.middle)
        between = jumps.states.moved(network.embed(first, network.table), s, u)
        second = network.hidden(between, jumps.middle, jumps.end)
        share = semigroup_weight(s, u, t).nan_to_num(0.5)  # times so close that their difference is 0 in float32
        return mixture(_per_token(share, first), network.predictions(first), network.predictions(second))


class Lagrangian(Objective):
    """The derivative in the end time: where the jump arrives it moves as the teacher's flow does."""

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
            jumps.projected.append((target < 0).any(-1).sum())
            return project_onto_simplex(target)

        return rows


class Eulerian(Objective):
    """The derivative along the flow at the start: a jump does not change where it arrives as its start moves along
    the flow. The identity behind MeanFlow.

    The factor (1-s)(t-s)/(1-t) of the derivative grows without bound towards t = 1, and squared error with it: left
    alone, the latest jumps make up all of the gradient, and nothing else is learned. So the student is moved by a
    part of the way to the target only,

        delta + w (target - delta),     w = (1-t) / ((1-t) + (1-s)(t-s)),

    which leaves the fixed point as it is and the derivative a factor of at most one. No jump ends later than tau =
    0.999: to the network tau = 0.999 and 1 are nearly the same time, but the factors there are far apart.
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
    """w in [0, 1] of [`Eulerian`]. Times the factor of the derivative it is 1 - w."""
    return (1 - t) / ((1 - t) + (1 - s) * (t - s))


OBJECTIVES: dict[str, type[Objective]] = {"semigroup": Semigroup, "lagrangian": Lagrangian, "eulerian": Eulerian}


def project_onto_simplex(x: Tensor) -> Tensor:
    """The nearest point of the simplex (Euclidean) to each row of x (rows, V): max(x - theta, 0) with sum one."""
    ordered = x.sort(dim=-1, descending=True).values
    count = torch.arange(1, x.shape[-1] + 1, device=x.device)
    excess = ordered.cumsum(-1) - 1
    support = (ordered * count > excess).sum(-1, keepdim=True)
    return (x - excess.gather(-1, support - 1) / support).clamp(min=0)


def _per_token(x: Tensor, hidden: Tensor) -> Tensor:
    """(batch,) repeated for each of a sequence's tokens: (batch * length,)."""
    return x.float().repeat_interleave(hidden.shape[1])
