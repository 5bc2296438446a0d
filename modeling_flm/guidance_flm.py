"""What a sampler asks of the network at each step, and how the answer is guided.

A prediction is a distribution over the vocabulary at every position. A guided one moves away from a weak network's,

    D = D_weak + scale (D_strong - D_weak),

the same combination as that of the velocities (of a flow map: the average velocities), which are affine in D. It may
leave the simplex. No prediction is ever held: it is embedded, decoded and drawn from in blocks of the vocabulary.
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
from .noise_flm import embedded_noise, step_seeds, white_noise
from .vocabulary_flm import (
    draw_token,
    expected_embedding,
    most_likely_of_mixture,
    most_likely_token,
    token_probability,
)

_CPU_TOKENS = 1 << 11  # evaluated at a time on a CPU: of more the activations leave the cache, and all gets slower

# Seeds of a weak network, beyond those of any step and window.
_DROPOUT, _WEAK_NOISE = 1 << 33, 1 << 34

Noise = Iterator[tuple[Tensor, Tensor]]  # embedded noise (batch, length, d) and numbers (batch, length) in [0, 1]


class Part(NamedTuple):
    """`share * softmax(softcap(hidden W^T + b))`, with hidden states (tokens, d)."""

    share: float
    hidden: Tensor
    weight: Tensor
    bias: Tensor
    cap: float | None


@dataclass
class Prediction:
    """The sum of `parts`, whose shares sum to 1, for tokens in rows of (batch, length).

    Args:
        parts (`list[Part]`): one, or several if it is guided.
        table (`Callable`): gives the embeddings (V', width) of the tokens that the parts tell apart.
        tokens (`Tensor`, *optional*): (V',) their ids, ascending; None for the whole vocabulary.
        shape (`torch.Size`): (batch, length).
    """

    parts: list[Part]
    table: Callable[[], Tensor]
    tokens: Tensor | None
    shape: torch.Size

    def embedding(self) -> Tensor:
        """The prediction in the embedded space: float32 (batch, length, width)."""
        table = self.table()
        rows = self._sum(lambda p: expected_embedding(p.hidden, p.weight, p.bias, table, p.cap))
        return rows.view(*self.shape, -1)

    def most_likely(self) -> Tensor:
        """The token of the largest entry, -1 where it is not finite: int64 (batch, length)."""
        if len(self.parts) == 1:
            rows = most_likely_token(self.parts[0].hidden, self.parts[0].weight, self.parts[0].bias)
        else:
            rows = most_likely_of_mixture(self.parts)
        return self._ids(rows)

    def draw(self, uniform: Tensor, **choice) -> Tensor:
        """A token of each distribution, -1 where it is not finite: int64 (batch, length). Not of a guided one.

        Args:
            uniform (`Tensor`): (batch, length) numbers in [0, 1], one for each draw.
            choice: temperature, top_k and top_p of [`draw_token`].
        """
        (part,) = self.parts
        return self._ids(draw_token(part.hidden, part.weight, part.bias, uniform.flatten(), part.cap, **choice))

    def confidence(self, ids: Tensor) -> Tensor:
        """The entries of tokens (batch, length), clipped to [0, 1] where guidance leads beyond it: float32."""
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
    """The predictions of a model for the states of one window of text, unguided; and where that window starts.

    Args:
        model (`FLMModel`): the network.
        prompt (`Tensor`): (batch, length) ids.
        keep (`Tensor`): (batch, length) bool, where those of the prompt are kept.
        seeds (`list[int]`): one per sequence.
        tokens (`Tensor`, *optional*): the ids that may be written, ascending; None for all.
        call (`Callable`, *optional*): what evaluates the network, of the signature of `model.denoise`, its default.
        lengths (`list[int]`, *optional*): of each sequence, without the padding at its end, which the network does not
            attend to. Default: there is none.
    """

    evaluations = 1  # of a network for each prediction

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
        vocab_size, hidden_size = model.config.vocab_size, model.config.hidden_size
        self.dense = vocab_size <= hidden_size  # the white noise is that over the vocabulary, which then is narrower
        self.white_width = min(vocab_size, hidden_size)  # of the white noise that the model alone needs
        self._heads: dict[Any, tuple[Tensor, Tensor, float | None]] = {}
        self.clean = self.embed(prompt)
        self.start = self._start()

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens (batch, length) in the embedded space, float32 (batch, length, width)."""
        return self.model.embed_tokens(ids)

    def fresh_noise(self) -> Noise:
        """Embedded noise and uniform numbers for one step after the other, of each sequence's own seed."""
        factor = self._noise_factor()
        for step in itertools.count(1):
            seeds = step_seeds(self.seeds, step)
            white = self._white(seeds, self.white_width + 1)
            yield self._widen(white[..., :-1], seeds) @ factor, torch.special.ndtr(white[..., -1])

    def predict(self, state: Tensor, tau: Tensor, target: Tensor | None = None) -> Prediction:
        """The prediction for a state (batch, length, width) at tau, a scalar; with `target`, a scalar in [tau, 1],
        that of the jump there."""
        return self._combine((1.0, self.model, self._hidden(self.call, state, tau, target)))

    def vocabulary_table(self) -> Tensor:
        """The embedding table of the states: (V, width)."""
        return self.model.vocabulary_table()

    @functools.cached_property
    def table(self) -> Tensor:
        """The rows of it that may be written, (V', width): a text in one step needs none."""
        return self._rows(self.vocabulary_table())

    def _start(self) -> Tensor:
        return self.model.embed_noise(*self.prompt.shape, seeds=self.seeds)

    def _white(self, seeds: list[int], width: int) -> Tensor:
        """White noise (batch, length, width)."""
        longest = self.model.config.max_position_embeddings
        return white_noise(seeds, self.prompt.shape[1], width, self.model.device, longest)[0]

    def _widen(self, white: Tensor, seeds: list[int]) -> Tensor:
        """White noise (batch, length, n) for the noise factor from that which the model alone would need."""
        return white

    def _noise_factor(self) -> Tensor:
        """(n, width): white noise of width n times it is the embedding of Gaussian noise over the vocabulary."""
        return self.model.embed_white_noise(torch.eye(self.white_width, device=self.model.device))

    def _rows(self, of_vocabulary: Tensor) -> Tensor:
        return of_vocabulary if self.tokens is None else of_vocabulary[self.tokens]

    def _hidden(self, call: Callable[..., Tensor], state: Tensor, tau: Tensor, target: Tensor | None) -> Tensor:
        """Hidden states (batch, length, d) by `call`; on a CPU it gets some rows after the other, in their order."""
        rows = max(1, _CPU_TOKENS // state.shape[1]) if state.device.type == "cpu" else len(state)

        def of(start: int) -> Tensor:
            some = state[start : start + rows]
            times = tau.expand(len(some)), None if target is None else target.expand(len(some))
            if self.attention_mask is None:
                return call(some, *times)
            return call(some, *times, attention_mask=self.attention_mask[start : start + rows])

        return torch.cat([of(start) for start in range(0, len(state), rows)])

    def _combine(self, *weighted: tuple[float, Any, Tensor]) -> Prediction:
        parts = []
        for share, model, hidden in weighted:
            if model not in self._heads:
                weight, bias = model.output_layer()
                self._heads[model] = self._rows(weight), self._rows(bias), model.config.final_logit_softcapping
            parts.append(Part(share, hidden.flatten(0, 1), *self._heads[model]))
        return Prediction(parts, lambda: self.table, self.tokens, self.prompt.shape)


class Guided(Predictor, ABC):
    """The prediction moved away from a weak one; `scale` 1 leaves it, larger ones go beyond it."""

    evaluations = 2

    def __init__(self, scale: float, *args, **kwargs):
        self.scale = scale
        super().__init__(*args, **kwargs)

    def predict(self, state: Tensor, tau: Tensor, target: Tensor | None = None) -> Prediction:
        strong = self._hidden(self.call, self._own(state), tau, target)
        model, weak = self._weak(state, tau, target)
        return self._combine((self.scale, self.model, strong), (1 - self.scale, model, weak))

    def _own(self, state: Tensor) -> Tensor:
        """What the strong network sees of a state."""
        return state

    @abstractmethod
    def _weak(self, state: Tensor, tau: Tensor, target: Tensor | None) -> tuple[Any, Tensor]:
        """The weak network, and its hidden states: each kind of guidance its own."""


class ClassifierFree(Guided):
    """Classifier-free guidance by the prompt: to the weak network, the same one, the prompt is as noisy as the rest,
    `x_t = (1 - t) x0 + t x1`, instead of clean. For models trained with a `conditioning_rate` between 0 and 1."""

    def _weak(self, state: Tensor, tau: Tensor, target: Tensor | None) -> tuple[Any, Tensor]:
        noisy = interpolate(self.start, self.clean, self.model.clock.t(tau))
        state = torch.where(self.keep[..., None], noisy, state)
        return self.model, self._hidden(self.call, state, tau, target)


class DropoutGuided(Guided):
    """Autoguidance by dropout: the weak network is the same one with dropout of rate `rate`, drawn anew at each step
    from the sequences' own seeds."""

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
    """Autoguidance by a weaker model of the same vocabulary, an earlier checkpoint or a smaller one. Both see the same
    noise and the same state: it is embedded by both tables, side by side."""

    def __init__(self, weak, *args, **kwargs):
        self.weak = weak
        super().__init__(*args, **kwargs)

    def embed(self, ids: Tensor) -> Tensor:
        return torch.cat([self.model.embed_tokens(ids), self.weak.embed_tokens(ids)], dim=-1)

    def vocabulary_table(self) -> Tensor:
        return torch.cat(self._tables(), dim=1)

    def _tables(self) -> list[Tensor]:
        return [model.vocabulary_table().float() for model in (self.model, self.weak)]

    def _start(self) -> Tensor:
        return self._widen(self._white(self.seeds, self.white_width), self.seeds) @ self._noise_factor()

    def _widen(self, white: Tensor, seeds: list[int]) -> Tensor:
        # The factor of the joint noise is triangular: the model's own part is what it would be without the weak one.
        if self.dense:
            return white
        more = self._white(step_seeds(seeds, _WEAK_NOISE), self.weak.config.hidden_size)
        return torch.cat([white, more], dim=-1)

    def _noise_factor(self) -> Tensor:
        tables = self._tables()
        if self.dense:
            return torch.cat(tables, dim=1)
        width = sum(table.shape[1] for table in tables)
        return torch.cat(embedded_noise(torch.eye(width, device=self.model.device), *tables), dim=1)

    def _own(self, state: Tensor) -> Tensor:
        return state[..., : self.model.config.hidden_size]

    def _weak(self, state: Tensor, tau: Tensor, target: Tensor | None) -> tuple[Any, Tensor]:
        own = state[..., self.model.config.hidden_size :]
        return self.weak, self._hidden(self.weak.denoise, own, tau, target)


@contextmanager
def _dropout(model, rate: float, drawn: Sequence[tuple[int, int]]) -> Iterator[None]:
    """The network of `model` with dropout of `rate` at every layer made for it, from a seed for each sequence, and for
    as many positions as it has: its padding draws no numbers, so that what follows is the same without."""
    generators = [(torch.Generator(model.device).manual_seed(seed), length) for seed, length in drawn]

    def drop(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        kept = torch.ones_like(output, dtype=torch.bool)
        for row, (generator, length) in zip(kept, generators, strict=True):
            shape = (length, output.shape[-1])
            row[:length] = torch.rand(shape, generator=generator, device=output.device) >= rate
        return output * kept / (1 - rate)

    hooks = [module.register_forward_hook(drop) for module in model.modules() if isinstance(module, nn.Dropout)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class Lookahead:
    """Where the flow leads from the present state, as a `reward_fn` sees it: the prediction of the clean text, by the
    jump X_{t,1} of a flow map, or by the denoiser D_t of a flow. Differentiable.

    Args:
        embedding (`Tensor`): (batch, length, d) the prediction in the embedded space, `probabilities @ E`.
        hidden (`Tensor`): (batch, length, d) the hidden states that it is made of.
        model (`FLMModel`): the network.
        rows (`Tensor`): (batch,) int64, which sequences of the generation these are: all of them, in their order,
            unless they differ in length; then those of each length come by themselves, without padding.
    """

    embedding: Tensor
    hidden: Tensor
    model: Any
    rows: Tensor

    @property
    def probabilities(self) -> Tensor:
        """The prediction over the vocabulary, float32 (batch, length, V): the only thing here of that size."""
        return self.model.logits(self.hidden).to(self.hidden.device, torch.float32).softmax(-1)


def reward_gradient(
    predictor: Predictor, reward_fn: Callable[[Lookahead], Tensor], state: Tensor, tau: Tensor
) -> Tensor:
    """`grad_x r(X_{t,1}(x))` with respect to the state over the vocabulary, embedded: (batch, length, width).

    The network sees a state x through e = x E alone, so that grad_x = grad_e E^T, whose embedding by the predictor's
    table is `grad_e E^T table`: exact, without a state over the vocabulary.

    Raises:
        ValueError: the reward is not a differentiable tensor (batch,).
    """
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
        (gradient,) = torch.autograd.grad(total, own)
    return gradient @ (model.vocabulary_table().float().T @ predictor.vocabulary_table().float())
