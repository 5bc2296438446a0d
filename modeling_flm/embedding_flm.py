"""The ways of a model into its embedded space: of tokens, of states over the vocabulary, of noise, of predictions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks_flm import check_ids
from .matrices_flm import matrix_of, table_of
from .noise_flm import NoiseLaw, as_seeds, embedded_noise, to_where_text_begins, white_noise
from .vocabulary_flm import expected_embedding, softcap


class EmbeddedSpace:
    """For models with an embedding table `embed_tokens` and an output layer `lm_head`."""

    _kept_law: tuple[Tensor, NoiseLaw] | None = None

    # -- the weights of the vocabulary: all that needs them as matrices takes them from here --------------------------

    def vocabulary_table(self) -> Tensor:
        """The embedding table E (V, d): the parameter itself, or what an adapted, quantised or offloaded layer
        computes with, differentiable. To be asked for where it is needed: it is as the weights are now."""
        return table_of(self.embed_tokens, self.config.vocab_size).to(self.device)

    def output_layer(self) -> tuple[Tensor, Tensor]:
        """W (V, d) and b (V,) of the logits `hidden W^T + b`, as [`vocabulary_table`] gives the table; for what is not
        the parameters themselves at V d^2 of work a call."""
        weight, bias = matrix_of(self.lm_head, self.config.hidden_size, self.dtype)
        return weight.to(self.device), bias.to(self.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """The soft-capped logits (..., V) of the last hidden states (..., d)."""
        return softcap(self.lm_head(hidden), self.config.final_logit_softcapping)

    # -- the ways into the embedded space and out of it ---------------------------------------------------------------

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

        Drawn from `generator` (None: the global one), or from one seed per sequence, which makes a sequence's noise
        independent of the batch around it. The dense product is formed where it is the cheaper way (V <= d, or,
        without seeds, no more tokens than d), the equal law of [`embedded_noise`] is used otherwise.
        """
        return self._embed_noise_and_uniform(batch_size, length, generator, seeds)[0]

    def _embed_noise_and_uniform(
        self,
        batch_size: int,
        length: int,
        generator: torch.Generator | None,
        seeds: Sequence[int] | None,
        law: NoiseLaw | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embedded noise, and a number in [0, 1) per sequence: independent with seeds, else evenly spread (batch,).

        What a seed gives is counted from the first token that is not padding.
        """
        vocab_size, width = self.config.vocab_size, self.config.hidden_size
        device = self.device
        dense = vocab_size <= width or (seeds is None and batch_size * length <= width)
        size = vocab_size if dense else width
        if seeds is not None:
            if generator is not None:
                raise ValueError("give seeds (`noise_seed`) or `generator`, not both.")
            seeds = as_seeds("noise_seed", seeds, batch_size)
            noise, uniform = white_noise(seeds, length, size, device, self.config.max_position_embeddings)
            noise = to_where_text_begins(noise, attention_mask)
        else:
            noise = torch.randn(batch_size, length, size, generator=generator, device=device)
            spread = torch.arange(batch_size, device=device) / batch_size
            uniform = (torch.rand((), generator=generator, device=device) + spread) % 1
        return self.embed_white_noise(noise, law), uniform

    def embed_white_noise(self, white: Tensor, law: NoiseLaw | None = None) -> Tensor:
        """The embedding of noise over the vocabulary: float32 (..., d).

        Args:
            white (`Tensor`): standard normal: (..., V), that noise itself; or, where V > d, (..., d), from which
                [`embedded_noise`] makes the embedding of one.
            law (`NoiseLaw`, *optional*): of the table, for the latter.
        """
        if white.shape[-1] == self.config.vocab_size:
            return self.embed_state(white)
        with torch.autocast(white.device.type, enabled=False):
            table = self.vocabulary_table()
            if law is None and not torch.is_grad_enabled():
                law = self._law(table)
            return embedded_noise(white, table, law=law)[0].float()

    def _law(self, table: Tensor) -> NoiseLaw:
        """The law of the noise, kept from call to call while the table stays as it is: it costs V d^2.

        What tells is a weighted sum of its rows, at V d: versions and addresses miss a change through `.data`.
        """
        rows = torch.arange(1, len(table) + 1, device=table.device)
        mark = rows.sin().to(table.dtype) @ table
        kept = self._kept_law
        if kept is None or kept[0].device != mark.device or not torch.equal(kept[0], mark):
            self._kept_law = kept = mark, NoiseLaw()
        return kept[1]

    def embed_prediction(self, hidden: Tensor) -> Tensor:
        """Embed the prediction of `hidden` (batch, length, d): `softmax(logits) @ E`, float32, blockwise over V."""
        embedding = expected_embedding(
            hidden.flatten(0, 1), *self.output_layer(), self.vocabulary_table(), self.config.final_logit_softcapping
        )
        return embedding.view(hidden.shape)
