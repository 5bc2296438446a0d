"""Scores samples by a causal language model of transformers, which the SHA-256 of its weights identifies."""

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from flm_data.paths import weights_sha256

TOKENS_AT_ONCE = 4096  # of a forward pass
FILES = ["*.json", "*.jinja", "*.model", "*.py", "*.safetensors", "*.txt"]  # of a repository: nothing pickled


def locate(name: str) -> tuple[Path, str | None]:
    """The folder of a model and, for one on the Hub, its commit. The model is named by a folder, or as
    `organisation/model` on the Hub, with `@revision` if need be.

    Raises:
        ValueError: it is neither.
    """
    if Path(name).is_dir():
        return Path(name), None
    repository, _, revision = name.partition("@")
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=FILES))
    except (OSError, ValueError) as error:  # its own errors are of these types
        why = "the Hub's cache lacks it, and this is offline mode (HF_HUB_OFFLINE)" if HF_HUB_OFFLINE else error
        raise ValueError(f"{name} is no folder, and cannot be had from the Hub: {why}") from error
    return folder, folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else None


@torch.no_grad()
def causal_losses(scorer: PreTrainedModel, ids: Tensor, batch_size: int = 32) -> np.ndarray:
    """-log p in nats of each token but the first under a causal language model of the same tokens: (n, length - 1).

    The ids are scored as they are, special tokens included and nothing retokenised. exp of the mean over all tokens of
    all samples is the generative perplexity.
    """
    losses = []
    for batch in ids.split(batch_size):
        logits = scorer(batch.to(scorer.device)).logits[:, :-1].float()
        target = batch[:, 1:].to(scorer.device)
        losses.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none").cpu())
    return torch.cat(losses).numpy()


class CausalScorer:
    """A causal language model that scores ids of its own tokenizer, or texts.

    Args:
        name (`str`): a folder, or a name on the Hub, see [`locate`].
        dtype (`torch.dtype`): of its weights and arithmetic.
        bos (`bool`): of texts: put the scorer's BOS before each, so that a text's first token is scored too.
        device (`str`): where it runs.
        trust_remote_code (`bool`): run code that comes with the model.

    Raises:
        ValueError: it cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        *,
        dtype: torch.dtype = torch.float32,
        bos: bool = True,
        device: str = "cpu",
        trust_remote_code: bool = False,
    ):
        self.name = Path(name).name if Path(name).is_dir() else name
        folder, commit = locate(name)
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=trust_remote_code)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except (ValueError, OSError) as error:
            raise ValueError(f"the scorer {name} cannot be loaded: {error}") from error
        if model.config.model_type in ("flm", "fmlm"):
            raise ValueError(f"{name} is a flow language model, but a scorer is a causal one.")
        self.model = model.eval().to(device)
        self.context = getattr(model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        self.bos = self.tokenizer.bos_token_id if bos else None
        self.protocol = {
            "scorer": self.name,
            "revision": commit,
            "weights_sha256": weights_sha256(folder),
            "parameters": model.num_parameters(),
            "dtype": str(dtype).removeprefix("torch."),
            "context_length": self.context,
            "longer_samples": "scored in windows of the context length that share one token: every token counts",
            "averaging": "exp of the mean over all tokens of all samples",
            "empty_samples": "have no token to score: left out of the perplexity, and counted",
        }

    def framed(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts with this scorer's tokenizer. Each begins with BOS, if there is one and `bos` is set."""
        rows = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return rows if self.bos is None else [[self.bos, *row] for row in rows]

    def input_protocol(self, retokenised: bool) -> dict:
        """How samples come to this scorer: as ids or as text."""
        if not retokenised:
            return {"input": "ids, as they are", "bos": "as in the ids; the first id is context only"}
        bos = "none: the first token is context only" if self.bos is None else "put before each text; all is scored"
        return {"input": "text, retokenised by the scorer's tokenizer, without special tokens", "bos": bos}

    def score(self, rows: Sequence[Sequence[int]] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score n rows of ids of any lengths: the sum of -log p in nats over the tokens of each row but its first, and
        the number of these tokens, both (n,)."""
        stride = self.context - 1
        pieces = [(i, row[s : s + stride + 1]) for i, row in enumerate(rows) for s in range(0, len(row) - 1, stride)]
        pieces.sort(key=lambda piece: len(piece[1]))
        losses, tokens = np.zeros(len(rows)), np.zeros(len(rows), np.int64)
        while pieces:
            longest = len(pieces[-1][1])
            some = [pieces.pop() for _ in range(min(len(pieces), max(TOKENS_AT_ONCE // longest, 1)))]
            batch = torch.zeros(len(some), longest, dtype=torch.long)  # what stands behind a row cannot be seen by it
            for place, (_, ids) in enumerate(some):
                batch[place, : len(ids)] = torch.as_tensor(ids)
            for (i, ids), own in zip(some, causal_losses(self.model, batch, len(some)), strict=True):
                losses[i] += own[: len(ids) - 1].sum(dtype=np.float64)
                tokens[i] += len(ids) - 1
        return losses, tokens

    @torch.no_grad()
    def features(self, rows: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        """The last hidden state at the last token of each row of ids, EOS and padding at its end left out: (n, hidden
        size), float32.

        Rows are cut to one token less than the context. A model that was trained on rows of its context has learnt
        nothing at the last position, where no token was left to predict.

        Raises:
            ValueError: a row is empty.
        """
        kept = [self._ended(row) for row in rows]
        features: dict[int, Tensor] = {}
        for length, places in groupby(sorted(range(len(kept)), key=lambda i: len(kept[i])), lambda i: len(kept[i])):
            alike = list(places)  # of one length: no padding
            if not length:
                raise ValueError(f"sample {alike[0]} is empty: it has no hidden state.")
            at_once = max(TOKENS_AT_ONCE // length, 1)
            for some in (alike[start : start + at_once] for start in range(0, len(alike), at_once)):
                ids = torch.stack([torch.as_tensor(kept[i]) for i in some]).to(self.model.device)
                states = self.model(ids, output_hidden_states=True).hidden_states[-1][:, -1].float().cpu()
                features |= zip(some, states, strict=True)
        return torch.stack([features[i] for i in range(len(kept))]).numpy()

    def _ended(self, row: Sequence[int] | np.ndarray) -> Sequence[int] | np.ndarray:
        ends = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
        length = min(len(row), self.context - 1)
        while length > 1 and int(row[length - 1]) in ends:
            length -= 1
        return row[:length]


def perplexity(losses: np.ndarray, tokens: np.ndarray) -> float:
    """exp of the mean of -log p over all tokens of all samples, from [`CausalScorer.score`].

    Raises:
        ValueError: no sample has a token to score.
    """
    if not tokens.sum():
        raise ValueError("no sample has a token to score: all are empty.")
    return float(np.exp(losses.sum() / tokens.sum()))
