"""The networks that compute the targets of distillation, without gradient, and the states that they see.

Predictions are functions of a slice of tokens ([`Target`]), so that no tensor of size batch x length x V is held.
Derivatives are Jacobian-vector products by forward-mode differentiation, through the eager attention.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.func import functional_call, jvp

from modeling_flm import FLMModel
from modeling_flm.flow_flm import flow_map_step
from modeling_flm.layers_flm import without_dropout
from modeling_flm.losses_flm import Target, posterior
from modeling_flm.vocabulary_flm import expected_embedding


@dataclass
class Network:
    """A denoiser for the targets of one batch: without gradient, without dropout and, if asked, with other weights.

    Args:
        model (`FLMModel`): the network.
        weights (`dict[str, Tensor]`, *optional*): weights by name, averaged ones for example, to use instead of the
            model's own.
    """

    model: FLMModel
    weights: dict[str, Tensor] | None = None

    @cached_property
    def table(self) -> Tensor:
        """The embedding table E, float32 (V, d)."""
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
        """The last hidden states (batch, length, d) of delta_{start,end} at `states`, of D_{start} without `end`."""
        arguments = {"inputs_embeds": states.value, "timesteps": start, "attention_mask": states.attention_mask}
        if end is not None:
            arguments["target_timesteps"] = end
        with without_dropout(self.model):
            output = functional_call(self.model, self.weights or {}, (), arguments | {"output_logits": False})
        return output.last_hidden_state

    def hidden_and_derivative(
        self, states: "States", start: Tensor, end: Tensor, along: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The hidden states of delta_{start,end} and their derivative, both (batch, length, d).

        The derivative is that in the direction `along`: the changes of state, start and end.
        """
        assert self.weights is None  # other weights are for the semigroup objective, which needs no derivative
        config = self.model.config
        attention = config._attn_implementation

        def hidden(value: Tensor, start: Tensor, end: Tensor) -> Tensor:
            return self.model.denoise(value, start, end, states.attention_mask)

        try:
            config._attn_implementation = "eager"
            in_float32 = torch.autocast(
                states.value.device.type, enabled=False
            )  # else rounding would hide the derivative
            with torch.no_grad(), in_float32, without_dropout(self.model):
                value, derivative = jvp(hidden, (states.value, start, end), along)[:2]
                return value, derivative
        finally:
            config._attn_implementation = attention

    def predictions(self, hidden: Tensor) -> Target:
        """The probabilities that hidden states (batch, length, d) stand for, as a function of a slice of tokens."""
        cap = self.model.config.final_logit_softcapping
        return posterior(hidden.flatten(0, 1), *self.output_layer, cap)

    def embed(self, hidden: Tensor, table: Tensor) -> Tensor:
        """The predictions of `hidden` (batch, length, d), embedded by `table` (V, d'): (batch, length, d')."""
        cap = self.model.config.final_logit_softcapping
        flat = expected_embedding(hidden.flatten(0, 1), *self.output_layer, table, cap)
        return flat.view(*hidden.shape[:2], -1)

    def prediction_derivative(self, hidden: Tensor, derivative: Tensor) -> Target:
        """The derivative of the probabilities, p (z' - <p, z'>) for logits z, from that of the hidden states.

        Like the predictions it is a function of a slice of tokens.
        """
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
    """States embedded by one network's table, with the positions that stay clean.

    Args:
        value (`Tensor`): (batch, length, d) the states.
        clean (`Tensor`): (batch, length, d) the embedded data.
        keep (`Tensor`): (batch, length) bool, True where a state always equals the data.
        attention_mask (`Tensor`, *optional*): (batch, length), 0 at padding.
    """

    value: Tensor
    clean: Tensor
    keep: Tensor
    attention_mask: Tensor | None = None

    def moved(self, prediction: Tensor, s: Tensor, t: Tensor) -> "States":
        """The states after a flow-map step from s to t (times of the interpolant) with an embedded prediction."""
        value = flow_map_step(self.value, prediction, s, t)
        return States(torch.where(self.keep[..., None], self.clean, value), self.clean, self.keep, self.attention_mask)

    def detached(self) -> "States":
        return States(self.value.detach(), self.clean.detach(), self.keep, self.attention_mask)

    def rows(self, index: Tensor) -> "States":
        mask = None if self.attention_mask is None else self.attention_mask[index]
        return States(self.value[index], self.clean[index], self.keep[index], mask)
