"""Flow language models in EleutherAI's lm-eval harness (optional extra `lm-eval`), as the model "flm".

    python -m evaluation.lm_eval_adapter run --model flm --model_args pretrained=hub_cards/flm-shidoku \\
        --include_path examples/lm_eval --tasks shidoku_choice

is the harness's own command line, with that model known to it. Log likelihoods are the bounds of
[`evaluation.likelihood`]: to compare those of the choices of a question is a heuristic, since one bound may be looser
than another.
"""

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

import modeling_flm  # noqa: F401  registers the model types
from evaluation.likelihood import log_likelihood
from modeling_flm.generation_config_flm import as_ids


@register_model("flm")
class FlowLM(TemplateLM):
    """A flow language model (FLM, or the diagonal of an FMLM) for lm-eval.

    A text is BOS (if the model has one), context and continuation, at its own length; where it exceeds the model's
    context its beginning is cut. The context is clamped, the continuation scored. All requests take the same random
    draws, so that the choices of a question differ by less of it. `is_greedy` is always False: a flow has no greedy
    decoding, and no metric that needs one.

    Args:
        pretrained (`str`): a model folder, or its name on the Hub, with its tokenizer.
        device (`str`): where to; a GPU that is not there is a CPU.
        batch_size (`int`): requests at a time.
        trust_remote_code (`bool`): of `from_pretrained`.
        generation_steps (`int`, *optional*): evaluations of `generate`; default: the model's own.
        end, num_steps, num_samples, num_probes, seed: see [`log_likelihood`]; the first sample's seed of `generate`
            is `seed` too.

    Raises:
        ValueError: the model is no flow language model.
    """

    def __init__(
        self,
        pretrained: str,
        device: str = "cpu",
        batch_size: int | str = 8,
        trust_remote_code: bool = False,
        generation_steps: int | None = None,
        end: float = 0.99,
        num_steps: int = 16,
        num_samples: int = 1,
        num_probes: int = 1,
        seed: int = 0,
    ):
        super().__init__()
        if not str(batch_size).isdecimal():
            raise ValueError(f"`batch_size` must be a number here, but is {batch_size!r}.")
        model = AutoModel.from_pretrained(pretrained, trust_remote_code=trust_remote_code)
        if model.config.model_type not in ("flm", "fmlm"):
            raise ValueError(
                f"`pretrained` must be a flow language model, but {pretrained} is {type(model).__name__}."
            )
        if device.startswith("cuda") and not torch.cuda.is_available():
            device = "cpu"  # the harness asks for a GPU unless told otherwise
        self.model = model.eval().to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(pretrained, trust_remote_code=trust_remote_code)
        self.batch_size, self.seed, self.generation_steps = int(batch_size), seed, generation_steps
        self.end, self.num_steps, self.num_samples, self.num_probes = end, num_steps, num_samples, num_probes
        self.longest = model.config.max_position_embeddings
        self.begin = [] if model.config.bos_token_id is None else [model.config.bos_token_id]

    # -- what the harness's base class asks for -----------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int | None:
        return next(iter(as_ids(self.model.config.eos_token_id)), None)

    @property
    def prefix_token_id(self) -> int | None:
        """BOS, put before a text without context; None where the model has none, and nothing is put there."""
        return self.model.config.bos_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        return self.tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"]

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        """All texts have the same draws: of the answers to one question it is the difference that counts."""
        texts = [self._framed(context, continuation) for _, context, continuation in requests]
        answers = [(value, False) for value in self._bounds(texts, [self.seed] * len(texts), disable_tqdm)]
        for (strings, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", strings, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The bound of each whole text, the sum over its windows. Each token is scored once, in a window that holds as
        much of the preceding text as fits, and with draws of its own: over many texts their errors average out."""
        windows, owners = [], []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            room = self.longest - len(self.begin)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, room, context_len=1):
                windows.append(self._framed(*make_disjoint_window(window)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        seeds = [self.seed + number for number in range(len(windows))]
        for owner, bound in zip(owners, self._bounds(windows, seeds, disable_tqdm), strict=True):
            totals[owner] += bound
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What `generate` writes after each context, up to EOS or the first of the stop sequences.

        Of the harness's settings `until` and `max_gen_toks` count. A context longer than half the model's keeps at
        least its last half; `temperature` and `do_sample` mean nothing to the default samplers.
        """
        texts = []
        for number, request in enumerate(tqdm(requests, disable=disable_tqdm, desc="Generating")):
            context, settings = request.args
            given = [*self.begin, *self.tok_encode(context)]
            most = self.longest - min(len(given), self.longest // 2)
            new = min(settings.get("max_gen_toks", most), most)
            given = given[-(self.longest - new) :]
            ids = self.model.generate(
                tensor([given], device=self.model.device) if given else None,
                max_length=len(given) + new,
                num_steps=self.generation_steps,
                seed=self.seed + number,
            )[0, len(given) :].tolist()
            if self.eot_token_id in ids:
                ids = ids[: ids.index(self.eot_token_id)]
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            for stop in handle_stop_sequences(settings.get("until"), eos=None):
                text = text.split(stop)[0] if stop else text
            texts.append(text)
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    # -- the bound ----------------------------------------------------------------------------------------------------

    def _framed(self, context: list[int], continuation: list[int]) -> tuple[list[int], int]:
        """The ids of a text, and how many of them, at its end, are scored."""
        if not continuation or len(continuation) > self.longest:
            raise ValueError(
                f"a continuation has {len(continuation)} tokens, but can have between 1 and the model's context, "
                f"{self.longest}: `loglikelihood_rolling` cuts longer texts."
            )
        context = [token for token in context if token is not None]  # `prefix_token_id` may be None
        if context[:1] != self.begin:
            context = [*self.begin, *context]
        return [*context, *continuation][-self.longest :], len(continuation)

    def _bounds(self, texts: list[tuple[list[int], int]], seeds: list[int], disable_tqdm: bool) -> list[float]:
        """The bound of each text, of which so many ids at the end are scored. A batch has texts of similar length."""
        bounds = [0.0] * len(texts)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i][0]))
        batches = [by_length[i : i + self.batch_size] for i in range(0, len(texts), self.batch_size)]
        for batch in tqdm(batches, disable=disable_tqdm, desc="Bounding log likelihoods"):
            found = self._bounds_of_batch([texts[i] for i in batch], [seeds[i] for i in batch])
            for i, value in zip(batch, found.tolist(), strict=True):
                bounds[i] = value
        return bounds

    def _bounds_of_batch(self, texts: list[tuple[list[int], int]], seeds: list[int]) -> Tensor:
        ids = pad_sequence([tensor(text) for text, _ in texts], batch_first=True)
        real = pad_sequence([tensor([1] * len(text)) for text, _ in texts], batch_first=True)
        given = pad_sequence([tensor([True] * (len(t) - n) + [False] * n) for t, n in texts], batch_first=True)
        return log_likelihood(
            self.model,
            ids,
            attention_mask=real,
            conditioning_mask=given,
            end=self.end,
            num_steps=self.num_steps,
            num_samples=self.num_samples,
            num_probes=self.num_probes,
            seed=seeds,
            batch_size=self.batch_size,
        ).bound


if __name__ == "__main__":
    cli_evaluate()
