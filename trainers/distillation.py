"""What the flow map is held to off the diagonal: the targets of the three objectives of arXiv 2602.16813.

With delta_{s,t} the student's two-time denoiser, X_{s,t} its map and D the teacher's denoiser (the student's own
diagonal without a teacher), all without gradient:

    semigroup    g delta_{s,u}(x_s) + (1 - g) delta_{u,t}(X_{s,u}(x_s)),     g = (1-t)(u-s) / ((1-u)(t-s))
    lagrangian   D_t(X_{s,t}(x_s)) - (1-t)(t-s)/(1-s) d/dt delta_{s,t}(x_s),          projected onto the simplex
    eulerian     D_s(x_s) + (1-s)(t-s)/(1-t) [d/ds + b_s(x_s) . grad_x] delta_{s,t}(x_s)

The true flow map is the fixed point of each. Targets are made by chunks of tokens; the derivatives are forward-mode
(Jacobian-vector products), with the eager attention.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.func import functional_call, jvp

from modeling_flm import FLMModel
from modeling_flm.flow_flm import expected_embedding, flow_map_step, semigroup_weight, velocity
from modeling_flm.losses_flm import Target, mixture, posterior

NEAREST_END = 0.05  # the eulerian factor 1 / (1 - t) is singular at t = 1: 1 - t is not taken to be smaller


@dataclass
class Network:
    """A denoiser as the targets of one batch use it: no gradient, no dropout, and if need be other weights than its
    own.

    Args:
        model (`FLMModel`): the network.
        weights (`dict[str, Tensor]`, *optional*): by name, in place of the model's own.
    """

    model: FLMModel
    weights: dict[str, Tensor] | None = None

    @cached_property
    def table(self) -> Tensor:
        """The embedding table, float32 (V, d)."""
        own = self.model.vocabulary_table().detach()
        return (self.weights or {}).get("embed_tokens.weight", own).float()

    @cached_property
    def output_layer(self) -> tuple[Tensor, Tensor]:
        """W (V, d) and b (V,) of the logits."""
        weight, bias = (tensor.detach() for tensor in self.model.output_layer())
        others = self.weights or {}
        return others.get("lm_head.weight", weight), others.get("lm_head.bias", bias)

    @torch.no_grad()
    def hidden(self, states: "States", start: Tensor, end: Tensor | None = None) -> Tensor:
        """Hidden states (batch, length, d) of delta_{start,end} at embedded states; `end` None on the diagonal."""
        arguments = {"inputs_embeds": states.value, "timesteps": start, "attention_mask": states.attention_mask}
        if end is not None:
            arguments["target_timesteps"] = end
        with _without_dropout(self.model):
            output = functional_call(self.model, self.weights or {}, (), arguments | {"output_logits": False})
        return output.last_hidden_state

    def hidden_and_derivative(
        self, states: "States", start: Tensor, end: Tensor, along: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Hidden states of delta_{start,end}, and their derivative along (d state, d start, d end)."""
        config = self.model.config
        attention = config._attn_implementation

        def hidden(value: Tensor, start: Tensor, end: Tensor) -> Tensor:
            return self.model.denoise(value, start, end, states.attention_mask)

        try:
            config._attn_implementation = "eager"
            with torch.no_grad(), _without_dropout(self.model):
                value, derivative = jvp(hidden, (states.value, start, end), along)[:2]
                return value, derivative
        finally:
            config._attn_implementation = attention

    def predictions(self, hidden: Tensor) -> Target:
        """Rows of probabilities of hidden states (batch, length, d)."""
        cap = self.model.config.final_logit_softcapping
        return posterior(hidden.flatten(0, 1), *self.output_layer, cap)

    def embed(self, hidden: Tensor, table: Tensor) -> Tensor:
        """The predictions of `hidden` (batch, length, d), embedded by a table (V, d'): (batch, length, d')."""
        cap = self.model.config.final_logit_softcapping
        flat = expected_embedding(hidden.flatten(0, 1), *self.output_layer, table, cap)
        return flat.view(*hidden.shape[:2], -1)

    def prediction_derivative(self, hidden: Tensor, derivative: Tensor) -> Target:
        """Rows of the derivative of the probabilities, p (z' - <p, z'>), from that of the hidden states."""
        h, dh = hidden.flatten(0, 1), derivative.flatten(0, 1)
        weight, bias = self.output_layer
        cap = self.model.config.final_logit_softcapping

        def rows(part: slice) -> Tensor:
            logits, change = torch.addmm(bias, h[part], weight.T).float(), (dh[part] @ weight.T).float()
            if cap is not None:
                bent = torch.tanh(logits / cap)
                logits, change = cap * bent, change * (1 - bent.square())
            prob = logits.softmax(-1)
            return prob * (change - (prob * change).sum(-1, keepdim=True))

        return rows


@dataclass
class States:
    """Embedded states (batch, length, d) in one network's table, and what stays fixed in them.

    Args:
        value (`Tensor`): the states.
        clean (`Tensor`): the data's embedding, which positions in `keep` always have.
        keep (`Tensor`): (batch, length) bool.
        attention_mask (`Tensor`, *optional*): (batch, length), 0 at padding.
    """

    value: Tensor
    clean: Tensor
    keep: Tensor
    attention_mask: Tensor | None = None

    def moved(self, prediction: Tensor, s: Tensor, t: Tensor) -> "States":
        """The flow-map step from s to t (interpolation times) with an embedded prediction."""
        value = flow_map_step(self.value, prediction, s, t)
        return States(torch.where(self.keep[..., None], self.clean, value), self.clean, self.keep, self.attention_mask)

    def detached(self) -> "States":
        return States(self.value.detach(), self.clean.detach(), self.keep, self.attention_mask)

    def rows(self, index: Tensor) -> "States":
        mask = None if self.attention_mask is None else self.attention_mask[index]
        return States(self.value[index], self.clean[index], self.keep[index], mask)


def semigroup_target(network: Network, states: States, start: Tensor, middle: Tensor, end: Tensor) -> Target:
    """Two jumps of `network`, start to middle to end (tau, (batch,)), as the target of one."""
    clock = network.model.clock
    s, u, t = clock.t(start), clock.t(middle), clock.t(end)
    first = network.hidden(states, start, middle)
    between = states.moved(network.embed(first, network.table), s, u)
    second = network.hidden(between, middle, end)
    share = semigroup_weight(s, u, t).nan_to_num(0.5)  # times so close that their difference is 0 in float32
    return mixture(_per_token(share, first), network.predictions(first), network.predictions(second))


def lagrangian_target(
    student: Network, teacher: Network, states: States, teacher_states: States, start: Tensor, end: Tensor
) -> tuple[Target, list[Tensor]]:
    """The target from the derivative in the end time; and a list that fills with the number of projected tokens."""
    clock = student.model.clock
    s, t = clock.t(start), clock.t(end)
    along = (torch.zeros_like(states.value), torch.zeros_like(start), clock.dtau_dt(t))
    hidden, derivative = student.hidden_and_derivative(states, start, end, along)
    arrived = teacher_states.moved(student.embed(hidden, teacher.table), s, t)
    at_end = teacher.predictions(teacher.hidden(arrived, end))
    change = student.prediction_derivative(hidden, derivative)
    factor = _per_token((1 - t) * (t - s) / (1 - s), hidden)
    projected: list[Tensor] = []

    def rows(part: slice) -> Tensor:
        target = at_end(part) - factor[part, None] * change(part)
        projected.append((target < 0).any(-1).sum())
        return project_onto_simplex(target)

    return rows, projected


def eulerian_target(
    student: Network, teacher: Network, states: States, teacher_states: States, start: Tensor, end: Tensor
) -> Target:
    """The target from the derivative along the flow at the start; it sums to one but may leave the simplex."""
    clock = student.model.clock
    s, t = clock.t(start), clock.t(end)
    teacher_hidden = teacher.hidden(teacher_states, start)
    direction = velocity(states.value, teacher.embed(teacher_hidden, student.table), s)
    direction = torch.where(states.keep[..., None], 0, direction)
    along = (direction, clock.dtau_dt(s), torch.zeros_like(end))
    hidden, derivative = student.hidden_and_derivative(states, start, end, along)
    at_start, change = teacher.predictions(teacher_hidden), student.prediction_derivative(hidden, derivative)
    factor = _per_token((1 - s) * (t - s) / (1 - t).clamp(min=NEAREST_END), hidden)
    return lambda part: at_start(part) + factor[part, None] * change(part)


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


@contextmanager
def _without_dropout(model: FLMModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
