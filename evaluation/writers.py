"""Whatever writes samples, behind one interface: flows and their maps, causal and masked language models, files.

What a model is, its configuration says; where it does not, the caller does, by a prefix: `flow:`, `causal:` or
`masked:` before its name.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import modeling_flm  # noqa: F401  registers the model types
from flm_data import DataSource, load_text
from flm_data.paths import check_path, weights_sha256

from .masked import sample_masked
from .scorers import locate

BATCH = 32
SEED_STRIDE = 1_000_000  # between the seeds of the first samples of two runs


@dataclass(frozen=True)
class Sweep:
    """The settings to write with; None, or nothing, for a model's own. A model ignores what it has no use for.

    Args:
        num_steps: evaluations of the network, of flows and masked diffusion.
        samplers: of flows.
        temperatures: of the bridge sampler, of causal and of masked models, > 0; also adds the bridge sampler to
            those of a flow, if none are named.
        gammas: of the flow_map sampler.
    """

    num_steps: Sequence[int] = ()
    samplers: Sequence[str] = ()
    temperatures: Sequence[float] = ()
    gammas: Sequence[float] = ()

    def __post_init__(self):
        if any(temperature <= 0 for temperature in self.temperatures):
            raise ValueError(f"temperatures must be > 0, but are {', '.join(map(str, self.temperatures))}.")
        if any(steps < 1 for steps in self.num_steps):
            raise ValueError(f"numbers of steps must be >= 1, but are {', '.join(map(str, self.num_steps))}.")
        if any(not 0 <= gamma <= 1 for gamma in self.gammas):
            raise ValueError(f"gammas must be in [0, 1], but are {', '.join(map(str, self.gammas))}.")


@dataclass(frozen=True)
class Written:
    """Samples: their `ids`, rows of any lengths, of the writer's tokenizer, if it has one, their `texts`, without
    special tokens, and the evaluations of the network that one of them took, if known."""

    ids: list[list[int]] | None
    texts: list[str]
    evaluations: int | None


class Writer(ABC):
    """A loaded model: `kind`, `name`, `tokenizer`, `length` (most tokens of a sample), `description` (what it is, to
    the byte)."""

    kind: str
    auto_class: type = AutoModel
    begins_with: str | None = None  # the special token that a sample is begun with: its name in the tokenizer

    def __init__(self, name: str, folder: Path, commit: str | None, device: str, trust_remote_code: bool):
        self.name = name
        try:
            model = self.load(folder, trust_remote_code)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except (ValueError, OSError) as error:
            raise ValueError(f"{name} cannot be loaded: {error}") from error
        if self.begins_with is not None and getattr(self.tokenizer, self.begins_with) is None:
            what = self.begins_with.replace("_", " ")
            raise ValueError(f"the tokenizer of {name} has no {what} to begin with: set `{self.begins_with}`.")
        self.model = model.eval().to(device)
        self.length = getattr(model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        self.description = {
            "model": name,
            "kind": self.kind,
            "model_type": model.config.model_type,
            "revision": commit,
            "weights_sha256": weights_sha256(folder),
            "parameters": model.num_parameters(),
            "dtype": str(model.dtype).removeprefix("torch."),
        }

    def load(self, folder: Path, trust_remote_code: bool) -> PreTrainedModel:
        return self.auto_class.from_pretrained(folder, trust_remote_code=trust_remote_code)  # type: ignore[attr-defined]

    @abstractmethod
    def settings(self, sweep: Sweep) -> list[dict]:
        """The settings of `sweep` that apply to this model, one for each set of samples. Each kind of writer says."""

    def write(self, settings: dict, count: int, seeds: Sequence[int], length: int) -> Written:
        """`count` samples of at most `length` tokens for each of `seeds`."""
        ids: list[list[int]] = []
        evaluations = None
        for seed in seeds:
            for start in range(0, count, BATCH):
                some = min(BATCH, count - start)
                rows, evaluations = self.batch(settings, some, SEED_STRIDE * seed + start, length)
                ids += rows
        return Written(ids, self.tokenizer.batch_decode(ids, skip_special_tokens=True), evaluations)

    @abstractmethod
    def batch(self, settings: dict, count: int, seed: int, length: int) -> tuple[list[list[int]], int]:
        """`count` samples, and the evaluations of the network for one of them. Each kind of writer has its own way."""


class FlowWriter(Writer):
    """A flow or a flow map: anything whose `generate` takes `num_steps`, `num_return_sequences` and `seed`, as that
    of this package does."""

    kind = "flow"

    def settings(self, sweep: Sweep) -> list[dict]:
        is_map = getattr(self.model.config, "two_times", False)
        own = getattr(self.model.generation_config, "sampler", None) or ("flow_map" if is_map else "euler")
        steps = sweep.num_steps or [self.model.generation_config.num_steps]
        found: list[dict] = []
        for sampler in sweep.samplers or dict.fromkeys([own, *(["bridge"] if sweep.temperatures else [])]):
            if sampler == "flow_map" and not is_map:
                continue
            swept = {"bridge": ("temperature", sweep.temperatures), "flow_map": ("gamma", sweep.gammas)}
            name, values = swept.get(sampler, ("", ()))
            for number in steps:
                # One jump puts no noise back: gamma changes nothing there.
                some = values[:1] if name == "gamma" and number == 1 else values
                base = {"sampler": sampler, "num_steps": number}
                found += [base | {name: value} for value in some] or [base]
        return found

    def batch(self, settings: dict, count: int, seed: int, length: int) -> tuple[list[list[int]], int]:
        out = self.model.generate(
            **settings, num_return_sequences=count, seed=seed, max_length=length, return_dict_in_generate=True
        )
        lengths = out.attention_mask.sum(1).tolist()  # with `pad_after_eos` a text may end before its row
        rows = zip(out.sequences.tolist(), lengths, strict=True)
        return [row[:length] for row, length in rows], out.num_function_evaluations


class CausalWriter(Writer):
    """A causal language model of transformers: plain sampling from BOS, token by token, with no top-k or top-p. A
    sample ends with the first EOS if the model's generation configuration has one."""

    kind = "causal"
    auto_class = AutoModelForCausalLM
    begins_with = "bos_token"

    def load(self, folder: Path, trust_remote_code: bool) -> PreTrainedModel:
        model = super().load(folder, trust_remote_code)
        own = model.generation_config  # of which nothing else counts, such as a penalty for repetition
        ids = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**ids)
        return model

    def settings(self, sweep: Sweep) -> list[dict]:
        return [{"temperature": temperature} for temperature in sweep.temperatures or [1.0]]

    def batch(self, settings: dict, count: int, seed: int, length: int) -> tuple[list[list[int]], int]:
        torch.manual_seed(seed)
        start = torch.full((count, 1), self.tokenizer.bos_token_id, device=self.model.device)
        ids = self.model.generate(
            start,
            attention_mask=torch.ones_like(start),
            **settings,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            max_length=length,
        )
        end = self.model.generation_config.eos_token_id
        ends = {end} if isinstance(end, int) else set(end or ())
        rows = []
        for row in ids.tolist():
            stop = next((i for i, token in enumerate(row[1:], 1) if token in ends), len(row) - 1)
            rows.append(row[: stop + 1])
        return rows, length - 1


class MaskedWriter(Writer):
    """Masked diffusion: see [`sample_masked`]. That of this package is one of its own models."""

    kind = "masked"
    begins_with = "mask_token"

    def load(self, folder: Path, trust_remote_code: bool) -> PreTrainedModel:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        auto = AutoModel if config.model_type == "flm" else AutoModelForMaskedLM
        return auto.from_pretrained(folder, trust_remote_code=trust_remote_code)

    def settings(self, sweep: Sweep) -> list[dict]:
        temperatures = sweep.temperatures or [1.0]
        return [{"num_steps": n, "temperature": t} for n in sweep.num_steps or [64] for t in temperatures]

    def batch(self, settings: dict, count: int, seed: int, length: int) -> tuple[list[list[int]], int]:
        mask = self.tokenizer.mask_token_id
        ids = sample_masked(self.model, torch.full((count, length), mask), mask, **settings, seed=seed)
        return ids.tolist(), settings["num_steps"]


class FileWriter:
    """Samples made elsewhere: the texts of a .txt (one a line), .parquet, .csv or .jsonl file (its column `text`)."""

    kind = "file"
    tokenizer: PreTrainedTokenizerBase | None = None

    def __init__(self, name: str, path: Path):
        self.name = name
        data = load_text(DataSource.parse(os.path.abspath(path), "."))
        if "text" not in data.column_names:
            raise ValueError(f"{name} has no column `text`; its columns are {data.column_names}.")
        self.texts = ["" if text is None else text for text in data["text"]]
        if wrong := [text for text in self.texts if not isinstance(text, str)]:
            raise ValueError(f"the column `text` of {name} has {wrong[0]!r}, a {type(wrong[0]).__name__}.")
        self.description = {"model": name, "kind": self.kind, "texts": len(self.texts)}

    def settings(self, sweep: Sweep) -> list[dict]:
        return [{}]

    def check(self, wanted: int) -> None:
        """Raises a `ValueError` if there are fewer texts."""
        if len(self.texts) < wanted:
            raise ValueError(
                f"{self.name} has {len(self.texts)} texts, but {wanted} samples are compared: ask for fewer."
            )

    def write(self, settings: dict, count: int, seeds: Sequence[int], length: int) -> Written:
        """The first `count` texts for each of `seeds`. They are cut to `length` when they are tokenized."""
        return Written(None, self.texts[: count * len(seeds)], None)


KINDS = {writer.kind: writer for writer in (FlowWriter, CausalWriter, MaskedWriter)}


def open_writer(source: str, device: str = "cpu", trust_remote_code: bool = False) -> Writer | FileWriter:
    """Open what `source` names: a model folder, a model on the Hub (with `@revision` if need be) or a file of texts. A
    prefix such as `causal:` says what kind of model it is, where its configuration does not.

    Raises:
        ValueError: it cannot be loaded, or nothing says what it is.
    """
    kind, colon, rest = source.partition(":")
    kind, name = (kind, rest) if colon and kind in KINDS else ("", source)
    path = Path(name)
    label = path.name if path.exists() else name
    if path.is_file():
        return FileWriter(label, path)
    check_path(name)
    folder, commit = locate(name)
    if not kind:
        try:
            kind = _kind(name, AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code))
        except OSError as error:
            raise ValueError(f"{name} cannot be loaded: {error}") from error
    return KINDS[kind](label, folder, commit, device, trust_remote_code)


def _kind(name: str, config) -> str:
    if config.model_type in ("flm", "fmlm"):
        return "masked" if getattr(config, "masked_diffusion", False) else "flow"
    architecture = (config.architectures or ["a model"])[0]
    if architecture.endswith("ForMaskedLM"):
        return "masked"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal"
    ways = ", ".join(f"{kind}:{name}" for kind in KINDS)
    raise ValueError(f"{name} is {architecture}, which does not say how it writes: name it as {ways}.")
