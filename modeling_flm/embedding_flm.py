"""How a model embeds tokens, states over the vocabulary, noise and predictions, and how it decodes hidden states."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks_flm import check_ids, checkable
from .matrices_flm import matrix_of, table_of
from .noise_flm import NoiseLaw, as_seeds, embedded_noise, white_noise
from .vocabulary_flm import expected_embedding, softcap


class EmbeddedSpace:
    """Adds these methods to a model with an embedding table `embed_tokens` and an output layer `lm_head`. For example
    `model.embed_noise(4, 128)` is the noise from which four texts of 128 tokens start."""

    _kept_law: tuple[Tensor, NoiseLaw] | None = None

    # -- the weights of the vocabulary as matrices: all other code reads them by these methods ------------------------

    def vocabulary_table(self) -> Tensor:
        """The embedding table E (V, d) as it is now, differentiable. It is the parameter itself or, for an adapted,
        quantised or offloaded layer, the table with which that layer computes."""
        return table_of(self.embed_tokens, self.config.vocab_size).to(self.device)

    def output_layer(self) -> tuple[Tensor, Tensor]:
        """W (V, d) and b (V,) of the logits `hidden W^T + b`, read as [`vocabulary_table`] is. A call takes V d^2 of
        work, unless W and b are the parameters themselves."""
        weight, bias = matrix_of(self.lm_head, self.config.hidden_size, self.dtype)
        return weight.to(self.device), bias.to(self.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """The soft-capped logits (..., V) of the last hidden states (..., d)."""
        return softcap(self.lm_head(hidden), self.config.final_logit_softcapping)

    @property
    def white_width(self) -> int:
        """Width of the white noise that becomes the noise of a seed: V or d, the smaller."""
        return min(self.config.vocab_size, self.config.hidden_size)

    # -- embeddings of states, noise and predictions ------------------------------------------------------------------

    def embed_state(self, state: Tensor) -> Tensor:
        """Embed ids (batch, length), as one-hots, or a dense state (batch, length, V): float32 (batch, length, d)."""
        if not state.is_floating_point():
            check_ids(self.config, "state", state)
            return self.embed_tokens(state)
        if state.shape[-1] != self.config.vocab_size:
            raise ValueError(
                f"a dense state has one entry per token of the vocabulary: expected (batch, length, "
                f"{self.config.vocab_size}), got {tuple(state.shape)}."
            )
        with torch.autocast(state.device.type, enabled=False):
            return state.float() @ self.vocabulary_table().float()

    def embed_noise(
        self,
        batch_size: int,
        length: int,
        generator: torch.Generator | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Embedded Gaussian noise `x0 @ E`, x0 ~ N(0, I_V): float32 (batch, length, d).

        It is drawn from one seed per sequence, so that the noise of a sequence does not depend on its batch; or else
        from `generator`, by default the global one. Where the dense product is cheaper (V <= d or, without seeds, no
        more tokens than d), it is computed. Otherwise [`embedded_noise`] draws from the same law.
        """
        return self._embed_noise_and_uniform(batch_size, length, generator, seeds)[0]

    def _embed_noise_and_uniform(
        self,
        batch_size: int,
        length: int,
        generator: torch.Generator | None,
        seeds: Sequence[int] | None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embedded noise, and a number in [0, 1) for each sequence, (batch,): independent ones with seeds, otherwise
        evenly spread. The noise of a seed begins at the first token that is not padding."""
        device, size = self.device, self.white_width
        if seeds is None and batch_size * length <= self.config.hidden_size:
            size = self.config.vocab_size
        if seeds is not None:
            if generator is not None:
                raise ValueError("give seeds (`noise_seed`) or `generator`, not both.")
            seeds = as_seeds("noise_seed", seeds, batch_size)
            longest = self.config.max_position_embeddings
            noise, uniform = white_noise(seeds, length, size, device, longest, attention_mask)
        else:
            noise = torch.randn(batch_size, length, size, generator=generator, device=device)
            spread = torch.arange(batch_size, device=device) / batch_size
            uniform = (torch.rand((), generator=generator, device=device) + spread) % 1
        return self.embed_white_noise(noise), uniform

    def embed_white_noise(self, white: Tensor) -> Tensor:
        """Turn white noise into embedded noise over the vocabulary: float32 (..., d).

        Args:
            white (`Tensor`): standard normal numbers: (..., V), the noise over the vocabulary itself; or (..., d),
                where V > d, of which [`embedded_noise`] makes the embedding of such noise.
        """
        if white.shape[-1] == self.config.vocab_size:
            return self.embed_state(white)
        with torch.autocast(white.device.type, enabled=False):
            table = self.vocabulary_table()
            # In training on an accelerator the law is computed anew: to look whether the table has changed, the host
            # would have to wait for it.
            kept = checkable(table) or not torch.is_grad_enabled()
            return embedded_noise(white, table, law=self._law(table.detach()) if kept else None)[0].float()

    def _law(self, table: Tensor) -> NoiseLaw:
        """The law of the noise, which takes V d^2 of work and is kept as long as the table does not change.

        A change shows in a weighted sum of its rows, at V d. Version and address of a tensor miss one by `.data`.
        """
        rows = torch.arange(1, len(table) + 1, device=table.device)
        mark = rows.sin().to(table.dtype) @ table
        kept = self._kept_law
        if kept is None or kept[0].device != mark.device or not torch.equal(kept[0], mark):
            self._kept_law = kept = mark, NoiseLaw()
        return kept[1]

    def embed_prediction(self, hidden: Tensor) -> Tensor:
        """Embed the prediction of hidden states (batch, length, d): `softmax(logits) @ E`, float32, in blocks of V."""
        embedding = expected_embedding(
            hidden.flatten(0, 1), *self.output_layer(), self.vocabulary_table(), self.config.final_logit_softcapping
        )
        return embedding.view(hidden.shape)
