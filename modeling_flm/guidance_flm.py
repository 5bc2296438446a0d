"""Predictions of the network for a sampler, plain or guided.

A prediction is a distribution over the vocabulary at every position. A guided one is moved away from that of a weak
network,

    D = D_weak + scale (D_strong - D_weak),

and may leave the simplex. Velocities (for a flow map: average velocities) are combined in the same way, as they are
affine in D. A prediction is never held whole: it is embedded, decoded and drawn from in blocks of the vocabulary.
"""

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .flow_flm import interpolate
from .noise_flm import NoiseLaw, embedded_noise, step_seeds, white_noise
from .vocabulary_flm import (
    draw_token,
    expected_embedding,
    most_likely_of_mixture,
    most_likely_token,
    token_probability,
)

_CPU_TOKENS = 1 << 11  # tokens evaluated at a time on a CPU, so few that their activations stay in the cache

# Step numbers for the seeds of weak networks, beyond those of any step and window.
_DROPOUT, _WEAK_NOISE = 1 << 33, 1 << 34

Noise = Iterator[tuple[Tensor, Tensor]]  # embedded noise (batch, length, d) and numbers (batch, length) in [0, 1]


class Part(NamedTuple):
    """One term of a prediction: `share * softmax(softcap(hidden W^T + b))`, with hidden states (tokens, d)."""

    share: float
    hidden: Tensor
    weight: Tensor
    bias: Tensor
    cap: float | None


@dataclass
class Prediction:
    """A prediction at (batch, length) positions, kept as hidden states: the sum of `parts`, whose shares sum to 1.

    Args:
        parts (`list[Part]`): one part; several if the prediction is guided.
        table (`Callable`): returns the embeddings (V', width) of the V' tokens that may be written.
        tokens (`Tensor`, *optional*): (V',) the ids of these tokens, ascending; None for the whole vocabulary.
        shape (`torch.Size`): (batch, length).
    """

    parts: list[Part]
    table: Callable[[], Tensor]
    tokens: Tensor | None
    shape: torch.Size

    def embedding(self) -> Tensor:
        """The prediction in the embedded space, its product with the table: float32 (batch, length, width)."""
        table = self.table()
        rows = self._sum(lambda p: expected_embedding(p.hidden, p.weight, p.bias, table, p.cap))
        return rows.view(*self.shape, -1)

    def most_likely(self) -> Tensor:
        """The token with the largest entry at each position, -1 where it is not finite: int64 (batch, length)."""
        if len(self.parts) == 1:
            rows = most_likely_token(self.parts[0].hidden, self.parts[0].weight, self.parts[0].bias)
        else:
            rows = most_likely_of_mixture(self.parts)
        return self._ids(rows)

    def draw(self, uniform: Tensor, **choice) -> Tensor:
        """Draw a token at each position of an unguided prediction, -1 where it is not finite: int64 (batch, length).

        Args:
            uniform (`Tensor`): (batch, length) numbers in [0, 1], one for each draw.
            choice: `temperature`, `top_k` and `top_p` of [`draw_token`].
        """
        (part,) = self.parts
        return self._ids(draw_token(part.hidden, part.weight, part.bias, uniform.flatten(), part.cap, **choice))

    def confidence(self, ids: Tensor) -> Tensor:
        """The probability of given tokens (batch, length): float32, clipped to [0, 1], which guidance may leave."""
        rows = ids.flatten()
        if self.tokens is not None:
            rows = torch.searchsorted(self.tokens, rows).clamp(max=len(self.tokens) - 1)
        entries = self._sum(lambda p: token_probability(p.hidden, rows, p.weight, p.bias, p.cap))
        return entries.clamp(0, 1).view(self.shape)

    def _sum(self, of_part: Callable[[Part], Tensor]) -> Tensor:
        """`sum_i share_i of_part(part_i)`."""
        first, *others = self.parts
        total = first.share * of_part(first)
        for part in others:
            total = total + part.share * of_part(part)
        return total

    def _ids(self, rows: Tensor) -> Tensor:
        if self.tokens is not None:
            rows = torch.where(rows < 0, rows, self.tokens[rows])
        return rows.view(self.shape)


class Predictor:
    """Gives the unguided predictions of a model for one window of text, and the noise from which that window starts.

    Args:
        model (`FLMModel`): the network.
        prompt (`Tensor`): (batch, length) the ids of the window, of which some are given.
        keep (`Tensor`): (batch, length) bool, True where the id of `prompt` is given.
        seeds (`list[int]`): a seed per sequence.
        tokens (`Tensor`, *optional*): the ids that may be written, ascending; None for all.
        call (`Callable`, *optional*): evaluates the network; default `model.denoise`, whose signature it has.
        lengths (`list[int]`, *optional*): the length of each sequence without the padding at its end, to which the
            network does not attend. Default: no padding.
    """

    evaluations = 1  # number of network evaluations for a prediction

    def __init__(
        self,
        model,
        prompt: Tensor,
        keep: Tensor,
        seeds: list[int],
        tokens: Tensor | None = None,
        call: Callable[..., Tensor] | None = None,
        lengths: list[int] | None = None,
    ):
        self.model, self.prompt, self.keep, self.seeds, self.tokens = model, prompt, keep, seeds, tokens
        self.call = call or model.denoise
        self.attention_mask: Tensor | None = None  # (batch, length), 0 at padding; None where there is none
        batch, length = prompt.shape
        self.lengths = [length] * batch if lengths is None else lengths
        if min(self.lengths) < length:
            ends = torch.tensor(self.lengths, device=prompt.device)
            self.attention_mask = (torch.arange(length, device=prompt.device) < ends[:, None]).long()
        self._heads: dict[Any, tuple[Tensor, Tensor, float | None]] = {}
        self.clean = self.embed(prompt)
        self.start = self._start()

    def embed(self, ids: Tensor) -> Tensor:
        """The embedding of ids (batch, length) in the space of the states: float32 (batch, length, width)."""
        return self.model.embed_tokens(ids)

    def fresh_noise(self) -> Noise:
        """Fresh embedded noise and uniform numbers for each step, drawn from each sequence's own seed."""
        factor = self._noise_factor()
        for step in itertools.count(1):
            seeds = step_seeds(self.seeds, step)
            white = self._white(seeds, self.model.white_width + 1)
            yield _product(self._widen(white[..., :-1], seeds), factor), torch.special.ndtr(white[..., -1])

    def predict(self, state: Tensor, tau: Tensor, target: Tensor | None = None) -> Prediction:
        """The prediction for a state (batch, length, width) at the scalar time tau; with `target`, a scalar in
        [tau, 1], that for the jump to it."""
        return self._combine((1.0, self.model, self._hidden(self.call, state, tau, target)))

    def vocabulary_table(self) -> Tensor:
        """The table (V, width) that embeds the states."""
        return self.model.vocabulary_table()

    @functools.cached_property
    def change(self) -> Tensor:
        """The matrix (d, width) that turns the gradient in the model's own state into the embedded gradient."""
        return self.model.vocabulary_table().float().T @ self.vocabulary_table().float()

    @functools.cached_property
    def table(self) -> Tensor:
        """The rows (V', width) of that table for tokens that may be written. One step alone never asks for them."""
        return self._rows(self.vocabulary_table())

    def _start(self) -> Tensor:
        return self.model.embed_noise(*self.prompt.shape, seeds=self.seeds)

    def _white(self, seeds: list[int], width: int) -> Tensor:
        """White noise (batch, length, width)."""
        longest = self.model.config.max_position_embeddings
        return white_noise(seeds, self.prompt.shape[1], width, self.model.device, longest)[0]

    def _widen(self, white: Tensor, seeds: list[int]) -> Tensor:
        """Widen white noise for the model alone to white noise (batch, length, n) for the noise factor (n, width)."""
        return white

    def _noise_factor(self) -> Tensor:
        """The matrix (n, width) that turns white noise (..., n) into embedded Gaussian noise over the vocabulary."""
        return self.model.embed_white_noise(torch.eye(self.model.white_width, device=self.model.device))

    def _rows(self, of_vocabulary: Tensor) -> Tensor:
        return of_vocabulary if self.tokens is None else of_vocabulary[self.tokens]

    def _hidden(self, call: Callable[..., Tensor], state: Tensor, tau: Tensor, target: Tensor | None) -> Tensor:
        """The hidden states (batch, length, d) that `call` gives; on a CPU it is called on a few rows at a time."""
        rows = max(1, _CPU_TOKENS // state.shape[1]) if state.device.type == "cpu" else len(state)

        def of(start: int) -> Tensor:
            some = state[start : start + rows]
            times = tau.expand(len(some)), None if target is None else target.expand(len(some))
            if self.attention_mask is None:
                return call(some, *times)
            return call(some, *times, attention_mask=self.attention_mask[start : start + rows])

        return torch.cat([of(start) for start in range(0, len(state), rows)])

    def _combine(self, *weighted: tuple[float, Any, Tensor]) -> Prediction:
        """The prediction made of tuples (share, model, hidden states)."""
        parts = []
        for share, model, hidden in weighted:
            if model not in self._heads:
                weight, bias = model.output_layer()
                self._heads[model] = self._rows(weight), self._rows(bias), model.config.final_logit_softcapping
            parts.append(Part(share, hidden.flatten(0, 1), *self._heads[model]))
        return Prediction(parts, lambda: self.table, self.tokens, self.prompt.shape)


class Guided(Predictor, ABC):
    """Predictions moved away from those of a weak network. `scale` 1 is the model's own, a larger one goes beyond."""

    evaluations = 2

    def __init__(self, scale: float, *args, **kwargs):
        self.scale = scale
        super().__init__(*args, **kwargs)

    def predict(self, state: Tensor, tau: Tensor, target: Tensor | None = None) -> Prediction:
        strong = self._hidden(self.call, self._own(state), tau, target)
        model, weak = self._weak(state, tau, target)
        return self._combine((self.scale, self.model, strong), (1 - self.scale, model, weak))

    def _own(self, state: Tensor) -> Tensor:
        """The part of a state that the model sees."""
        return state

    @abstractmethod
    def _weak(self, state: Tensor, tau: Tensor, target: Tensor | None) -> tuple[Any, Tensor]:
        """The weak network and its hidden states; each kind of guidance has its own."""


class ClassifierFree(Guided):
    """Classifier-free guidance by the prompt, for models trained with a `conditioning_rate` between 0 and 1: the weak
    network is the model itself, to which the prompt is as noisy as the rest, `x_t = (1 - t) x0 + t x1`."""

    def _weak(self, state: Tensor, tau: Tensor, target: Tensor | None) -> tuple[Any, Tensor]:
        noisy = interpolate(self.start, self.clean, self.model.clock.t(tau))
        state = torch.where(self.keep[..., None], noisy, state)
        return self.model, self._hidden(self.call, state, tau, target)


class DropoutGuided(Guided):
    """Autoguidance by dropout: the weak network is the model itself with dropout of rate `rate`, which is drawn anew
    at each step, from the sequences' own seeds."""

    def __init__(self, rate: float, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rate, self.count = rate, 0

    def _weak(self, state: Tensor, tau: Tensor, target: Tensor | None) -> tuple[Any, Tensor]:
        self.count += 1
        drawn = zip(step_seeds(self.seeds, _DROPOUT + self.count), self.lengths, strict=True)

        def call(some: Tensor, *times: Tensor | None, **mask: Tensor) -> Tensor:
            with _dropout(self.model, self.rate, list(itertools.islice(drawn, len(some)))):
                return self.model.denoise(some, *times, **mask)

        return self.model, self._hidden(call, state, tau, target)


class ModelGuided(Guided):
    """Autoguidance by a weaker model of the same vocabulary: an earlier checkpoint, or a smaller model. Both networks
    see the same noise and the same state, which is embedded by both tables, side by side."""

    def __init__(self, weak, *args, law: NoiseLaw | None = None, **kwargs):
        self.weak, self.law = weak, law
        super().__init__(*args, **kwargs)

    def embed(self, ids: Tensor) -> Tensor:
        return torch.cat([self.model.embed_tokens(ids), self.weak.embed_tokens(ids)], dim=-1)

    def vocabulary_table(self) -> Tensor:
        return torch.cat(self._tables(), dim=1)

    def _dense(self) -> bool:
        """Whether noise is drawn over the vocabulary itself."""
        return self.model.white_width == self.model.config.vocab_size

    def _tables(self) -> list[Tensor]:
        return [model.vocabulary_table().float() for model in (self.model, self.weak)]

    def _start(self) -> Tensor:
        white = self._widen(self._white(self.seeds, self.model.white_width), self.seeds)
        return _product(white, self._noise_factor())

    def _widen(self, white: Tensor, seeds: list[int]) -> Tensor:
        # The factor of the joint noise is triangular, so the model's own part is the same as without the weak model.
        if self._dense():
            return white
        more = self._white(step_seeds(seeds, _WEAK_NOISE), self.weak.config.hidden_size)
        return torch.cat([white, more], dim=-1)

    def _noise_factor(self) -> Tensor:
        tables = self._tables()
        if self._dense():
            return torch.cat(tables, dim=1)
        width = sum(table.shape[1] for table in tables)
        return torch.cat(embedded_noise(torch.eye(width, device=self.model.device), *tables, law=self.law), dim=1)

    def _own(self, state: Tensor) -> Tensor:
        return state[..., : self.model.config.hidden_size]

    def _weak(self, state: Tensor, tau: Tensor, target: Tensor | None) -> tuple[Any, Tensor]:
        own = state[..., self.model.config.hidden_size :]
        return self.weak, self._hidden(self.weak.denoise, own, tau, target)


def _product(white: Tensor, factor: Tensor) -> Tensor:
    """Noise of a factor, in the precision that it has under autocast, too: states are float32."""
    with torch.autocast(white.device.type, enabled=False):
        return white @ factor


@contextmanager
def _dropout(model, rate: float, drawn: Sequence[tuple[int, int]]) -> Iterator[None]:
    """A context in which the dropout layers of `model` itself, not those of adapters, drop at `rate`. `drawn` has a
    (seed, length) per sequence: its padding beyond that length draws no random numbers, so that the rest of it is the
    same as without padding."""
    generators = [(torch.Generator(model.device).manual_seed(seed), length) for seed, length in drawn]

    def drop(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        kept = torch.ones_like(output, dtype=torch.bool)
        for row, (generator, length) in zip(kept, generators, strict=True):
            shape = (length, output.shape[-1])
            row[:length] = torch.rand(shape, generator=generator, device=output.device) >= rate
        return output * kept / (1 - rate)

    hooks = [block.dropout.register_forward_hook(drop) for block in model.layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class Lookahead:
    """The text to which the present state leads, the argument of a `reward_fn`.

    It is a prediction of the clean text: by the jump X_{t,1} of a flow map, or by the denoiser D_t of a flow. The
    fields are differentiable with respect to the state.

    ```python
    def reward(ahead: Lookahead) -> Tensor:  # the expected share of one token
        return ahead.probabilities[..., token_id].mean(1)
    ```

    Args:
        embedding (`Tensor`): (batch, length, d) the prediction in the embedded space, `probabilities @ E`.
        hidden (`Tensor`): (batch, length, d) the hidden states from which it is made.
        model (`FLMModel`): the network.
        rows (`Tensor`): (batch,) int64, the numbers of these sequences within the generation. All sequences come at
            once, in their order, if they have one length; otherwise those of each length, without padding.
    """

    embedding: Tensor
    hidden: Tensor
    model: Any
    rows: Tensor

    @property
    def probabilities(self) -> Tensor:
        """The prediction over the vocabulary, float32 (batch, length, V). Nothing else here is as large."""
        return self.model.logits(self.hidden).to(self.hidden.device, torch.float32).softmax(-1)


def reward_gradient(
    predictor: Predictor, reward_fn: Callable[[Lookahead], Tensor], state: Tensor, tau: Tensor
) -> Tensor:
    """The gradient `grad_x r(X_{t,1}(x))` of a reward in the state x, embedded: (batch, length, width).

    The network sees x only as e = x E, so that grad_x = grad_e E^T. Embedded by the predictor's table this is
    `grad_e E^T table`, which is exact and needs no state over the vocabulary.

    Raises:
        ValueError: if the reward is not a differentiable tensor (batch,) with a finite gradient, or gradients are
            switched off for good.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("`reward_fn` needs gradients: call `generate` outside of torch.inference_mode().")
    model = predictor.model
    with torch.enable_grad():
        own = state[..., : model.config.hidden_size].detach().requires_grad_()
        end = torch.ones_like(tau) if model.config.two_times else None
        hidden = predictor._hidden(model.denoise, own, tau, end)
        total = torch.zeros((), device=own.device)
        for length in sorted(set(predictor.lengths)):
            of_length = [row for row, its in enumerate(predictor.lengths) if its == length]
            rows = torch.tensor(of_length, device=own.device)
            some = hidden[rows, :length]
            reward = reward_fn(Lookahead(model.embed_prediction(some), some, model, rows))
            if not (isinstance(reward, Tensor) and reward.shape == rows.shape and reward.requires_grad):
                found = f"{tuple(reward.shape)}" if isinstance(reward, Tensor) else repr(reward)
                raise ValueError(
                    f"`reward_fn` must return a reward per sequence, a tensor ({len(rows)},) that is differentiable "
                    f"in what it was given, but returned {found}."
                )
            total = total + reward.sum()
        # In float16 the gradients of rare tokens would be too small numbers, and those of a large reward too large.
        for factor in (2.0**14, 1.0, 2.0**-14) if model.dtype == torch.float16 else (1.0,):
            (gradient,) = torch.autograd.grad(total * factor, own, retain_graph=True)
            if gradient.isfinite().all():
                return gradient / factor @ predictor.change
    raise ValueError("the gradient of `reward_fn` is not finite.")
