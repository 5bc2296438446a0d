"""What an ingredient of training is worth on TinyStories, in equal steps: writes ingredients.json and its table.

    python -m benchmarks.ingredients                                      # every part, on the data of the recipe
    python -m benchmarks.ingredients flow-lr-3e-3 --training-seeds 42     # one part; the others stay as they were
    python -m benchmarks.ingredients --train ./stories.parquet --validation ./held-out.parquet    # on other files

A part is `recipes/tinystories.yaml` with a short training's schedule and some entries of its own, for a flow, for
masked diffusion (`baselines/mdlm.py`) or for a GPT-2 (`baselines/ar.py`), each on the same rows. Runs are kept in
runs/ingredients: one that was stopped goes on, one that has ended is only measured. They compute in bfloat16, with
compiled blocks, for cores with units for it.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import benchmarks.prototypes  # noqa: F401  registers the model types
from benchmarks.baselines import mdlm
from benchmarks.results import ROOT, Row, measure_parts, over_seeds, show, table
from benchmarks.stories import LENGTH, Stories, add_stories
from evaluation.scorers import causal_losses
from examples.train_tokenizer import train_tokenizer

RECIPE = ROOT / "recipes" / "tinystories.yaml"
RESULTS = ROOT / "benchmarks" / "ingredients.json"
RUNS = ROOT / "runs" / "ingredients"
TRAINING_STEPS = 1500
MASKED = 1000  # of these steps, where a flow starts from masked diffusion
TEXTS, HELD_OUT = 64, 256  # written by each model; rows that its loss is taken on
VOCABULARY = 2048  # tokens of most of the models, and of those who judge
STEPS = (8, 64)  # evaluations of a flow and of masked diffusion
TAUS = (0.2, 0.6, 0.99)
SEED = 1_000_000  # of the first text
FAST = ["training.bf16=true", "training.torch_compile=true"]
SHORT = [  # entries of the recipe, which is that of a longer training
    "training.learning_rate=1e-3",
    "training.conditioning_rate=0.1",
    "training.warmup_steps=200",
    'training.lr_scheduler_kwargs={"num_decay_steps": 400}',
]


@dataclass
class Variant:
    """A kind of model, and what its training changes in the recipe.

    Args:
        kind (`str`): "flow", "masked" or "gpt2".
        overrides (`list[str]`): as for `flm train`.
        masked (`str`, *optional*): the variant of masked diffusion whose weights it starts from, trained for MASKED of
            the TRAINING_STEPS: the flow has the rest.
        prototype (`str`, *optional*): the trainer of `benchmarks.prototypes` that trains it.
        vocabulary (`int`): the number of tokens.
    """

    kind: str
    overrides: list[str] = field(default_factory=list)
    masked: str | None = None
    prototype: str | None = None
    vocabulary: int = VOCABULARY

    @property
    def suffix(self) -> str:
        """What the script that trains a baseline puts behind the name of the output folder."""
        return {"flow": "", "masked": "-mdlm", "gpt2": "-ar"}[self.kind]

    def train(self, recipe: Path, output: Path, overrides: list[str]) -> Path:
        """Train it with the entries of `overrides`, too, unless that is done. A run that was stopped goes on.

        Returns:
            the folder of the model, `output` and the suffix.
        """
        folder = output.with_name(output.name + self.suffix)
        if not (folder / "model.safetensors").exists():
            overrides = [f"training.output_dir={output}", "training.num_samples=0", *overrides, *FAST, *self.overrides]
            subprocess.run([sys.executable, "-m", *self._command(str(recipe)), *overrides], check=True, cwd=ROOT)
        return folder

    def _command(self, recipe: str) -> list[str]:
        if self.prototype is not None:
            return ["benchmarks.prototypes", self.prototype, recipe]
        if self.kind == "flow":
            return ["command.main", "train", recipe, "--resume"]
        return [f"benchmarks.baselines.{self.suffix[1:]}", recipe]


def _rates(kind: str, *rates: str) -> dict[str, Variant]:
    return {f"{kind}-lr-{rate}": Variant(kind, [f"training.learning_rate={rate}"]) for rate in rates}


def _size(width: int, depth: int, heads: int) -> list[str]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth}
    return [f"model.{name}={value}" for name, value in (sizes | {"num_attention_heads": heads}).items()]


BEST_RATE = ["training.learning_rate=3e-3"]  # of flows from scratch
VARIANTS = {
    **_rates("flow", "1e-3", "3e-3"),
    **_rates("masked", "1e-3", "2e-3", "4e-3"),
    **_rates("gpt2", "1e-3", "2e-3", "4e-3"),
    "flow-from-masked": Variant("flow", masked="masked-lr-2e-3"),  # the learning rate is that of SHORT
    # A part of a sequence clean, uniform in [0, 1], in that share of the sequences; the others have a tenth.
    "flow-clean-0": Variant("flow", [*BEST_RATE, "training.conditioning_rate=0"]),
    "flow-clean-0.5": Variant("flow", [*BEST_RATE, "training.conditioning_rate=0.5"]),
    # Width and depth with as many multiplications a token as the recipe's 192 and 4 blocks.
    "flow-128-wide-10-deep": Variant("flow", [*BEST_RATE, *_size(128, 10, heads=4)]),
    "flow-256-wide-2-deep": Variant("flow", [*BEST_RATE, *_size(256, 2, heads=8)]),
    # Tokens of more characters, which cost 1.2 and 1.5 times the multiplications.
    "flow-4096-tokens": Variant("flow", BEST_RATE, vocabulary=4096),
    "flow-8192-tokens": Variant("flow", BEST_RATE, vocabulary=8192),
    "masked-8192-tokens": Variant("masked", ["training.learning_rate=2e-3"], vocabulary=8192),
    "flow-muon": Variant("flow", BEST_RATE, prototype="muon"),
    "flow-self-conditioned": Variant("flow", [*BEST_RATE, "model.type=self-conditioned"], prototype="adamw"),
    "flow-unit-rows": Variant("flow", [*BEST_RATE, "model.type=unit-rows"], prototype="adamw"),
    "flow-unit-rows-from-masked": Variant("flow", ["model.type=unit-rows"], "masked-lr-2e-3", "adamw"),
}


class JudgedInFewTokens(Stories):
    """The stories, judged in VOCABULARY tokens whatever the recipe's tokenizer has."""

    @cached_property
    def tokenizer(self):
        return AutoTokenizer.from_pretrained(tokenizer_of(VOCABULARY, self))


def held_out(stories: Stories) -> list[Row]:
    judged = stories.judged(stories.held_out[:TEXTS])
    return [{"model": "held-out stories"} | judged | {"stories to learn from": len(stories.documents)}]


def measure(stories: Stories, name: str, seeds: list[int]) -> list[Row]:
    """A row for each number of evaluations: means over trainings of different seeds."""
    kind, rows = VARIANTS[name].kind, []
    folders = {seed: train(stories, name, seed) for seed in seeds}
    for steps in STEPS if kind != "gpt2" else (None,):
        measured = over_seeds(lambda seed, steps=steps: _judged(stories, kind, folders[seed], steps), seeds)
        rows.append({"model": name, "steps": steps} | measured | {"training seeds": len(seeds)})
        show(rows[-1])
    return rows


def train(stories: Stories, name: str, seed: int, steps: int = TRAINING_STEPS) -> Path:
    """The folder of a variant, trained if it is not yet."""
    variant = VARIANTS[name]
    output = RUNS / (f"{name}-{seed}" if steps == TRAINING_STEPS else f"{name}-{seed}-{steps}")
    masked = "null"
    if variant.masked is not None:
        masked = str(train(stories, variant.masked, seed, MASKED))
        steps -= MASKED
    overrides = [*SHORT, f"training.max_steps={steps}", f"training.seed={seed}", f"model.masked={masked}"]
    overrides.append("training.eval_strategy=no")
    overrides += [f"data.{split}={_as_yaml(getattr(stories, split))}" for split in ("train", "validation")]
    overrides.append(f"tokenizer={tokenizer_of(variant.vocabulary, stories)}")
    return variant.train(RECIPE, output, overrides)


def _as_yaml(source: str | dict) -> str:
    if isinstance(source, dict) or not Path(source).exists():
        return json.dumps(source)
    return json.dumps(str(Path(source).resolve()))  # a recipe reads paths from its own folder


def tokenizer_of(vocabulary: int, stories: Stories) -> Path:
    """The folder of a byte-level BPE of that many tokens, trained on the stories if it is not yet."""
    folder = RUNS / f"tokenizer-{vocabulary}"
    if not folder.exists():
        train_tokenizer(stories.documents, vocabulary).save_pretrained(folder)
    return folder


@torch.no_grad()
def _judged(stories: Stories, kind: str, folder: Path, steps: int | None) -> Row:
    rows = stories.held_out[:HELD_OUT]
    if kind == "gpt2":
        gpt2 = AutoModelForCausalLM.from_pretrained(folder).eval()
        torch.manual_seed(SEED)
        start = torch.full((TEXTS, 1), stories.tokenizer.bos_token_id)
        return stories.judged(gpt2.generate(start)) | {"loss": float(causal_losses(gpt2, rows).mean())}
    model = AutoModel.from_pretrained(folder).eval()
    masked = kind == "masked"
    if masked:
        ids = mdlm.sample(model, steps, TEXTS, 1.0, SEED)
    else:
        ids = model.generate(num_steps=steps, num_return_sequences=TEXTS, seed=SEED)
    if model.config.vocab_size != VOCABULARY:  # its loss per token is another
        return stories.judged(in_tokens_of(stories.tokenizer, ids, AutoTokenizer.from_pretrained(folder)))
    return stories.judged(ids) | (_masked_loss(model, rows) if masked else _flow_losses(model, rows))


def in_tokens_of(tokenizer, ids: torch.Tensor, own) -> torch.Tensor:
    """Texts of longer tokens as the first tokens of the tokenizer that all are judged by: at most LENGTH of each."""
    rows = tokenizer(own.batch_decode(ids), add_special_tokens=False)["input_ids"]
    length = min(LENGTH, *map(len, rows))  # pieces of two tokens can become one
    return torch.tensor([row[:length] for row in rows])


def _masked_loss(model, rows: torch.Tensor) -> Row:
    """The bound of masked diffusion, nats per token."""
    bound = mdlm.log_likelihood(model, rows, num_draws=16, seed=0).mean() / (LENGTH - 1)
    return {"loss": -float(bound)}


def _flow_losses(model, rows: torch.Tensor) -> Row:
    """The denoiser's cross entropy at each tau, nats per token, at fixed noise."""
    parts = rows.split(32)
    return {f"loss_{tau}": float(np.mean([model(labels=part, timesteps=tau).loss for part in parts])) for tau in TAUS}


def report(results: dict[str, list[Row]]) -> str:
    text = [
        "# Ingredients",
        "",
        "`python -m benchmarks.ingredients`: flows, masked diffusion and GPT-2 on TinyStories, rows of 128 tokens,",
        f"{TRAINING_STEPS:,} steps of 24 rows each ({TRAINING_STEPS * 24 * LENGTH / 1e6:.1f} M tokens). A model has",
        "the recipe `recipes/tinystories.yaml`, but a short training's schedule, and what its name says.",
        f"`flow-from-masked` has the weights of masked diffusion after {MASKED:,} of the steps, and learns as a flow",
        "in the others. Means over trainings of different seeds, ± standard deviation where there are several.",
        f"{TEXTS} texts of each model, at temperature 1, flows by Euler's scheme. Tokens are a byte-level BPE of",
        f"{VOCABULARY:,}, in which all are judged: texts of other tokens are encoded anew, and at most the first",
        f"{LENGTH} tokens of each count.",
        "",
        "The learning rate of flows from scratch is 3e-3 if the name has no other, of those from masked diffusion",
        "1e-3. A tenth of the rows of flows have tokens given, if the name says nothing else. With 4,096 and 8,192",
        "tokens a step costs 1.2 and 1.5 times the multiplications. All trainings compute in bfloat16, with compiled",
        "blocks.",
        "",
        "* `gppl ngram`: perplexity under a Kneser-Ney 4-gram of the training text; `entropy`: of a text's tokens.",
        "* `words`, `pairs`: shares of words and of neighbouring words that the training text has, too.",
        "* `loss`: of held-out rows, nats per token: GPT-2's own, of masked diffusion a bound. `loss 0.2`: the flow's",
        "  cross entropy at tau = 0.2, no bound.",
        "",
        table([row for name in ("held-out", *VARIANTS) for row in results.get(name, [])]),
    ]
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="What an ingredient of the training is worth on TinyStories.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of held-out, {', '.join(VARIANTS)}; default: all")
    add_stories(parser)
    parser.add_argument(
        "--training-seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[42, 43]
    )
    options = parser.parse_args()
    stories = JudgedInFewTokens(options.train, options.validation)
    parts = {"held-out": partial(held_out, stories)}
    parts |= {name: partial(measure, stories, name, options.training_seeds) for name in VARIANTS}
    measure_parts(parts, RESULTS, report, options.parts)


if __name__ == "__main__":
    main()
