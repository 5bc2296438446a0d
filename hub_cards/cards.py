"""Model cards of the shipped models, from their recipes, logs and measurements: writes each `README.md` anew.

    python -m hub_cards.cards

Nothing in a card is typed in by hand: sizes come from the weights, training from the recipe and the log, quality from
`benchmarks/few_step.json`. What is missing there is an error. The code files of each repository are brought up to date
with the package on the way.
"""

import json
import math
import shutil
from pathlib import Path

import yaml
from safetensors import safe_open

from benchmarks.few_step import GRIDS, LARGE_GRIDS, PUZZLES, RESULTS
from benchmarks.results import HUB, ROOT, Row, table
from trainers.card import BIBTEX
from trainers.recipe import load_recipe

# What is written, in which part of the measurements it stands, and what the figures are.
DATA = {
    "shidoku": (
        "Sudoku grids of 4x4, as 16 digits",
        "All 288 grids of 4x4 Sudoku (`examples/sudoku/make_grids.py`); they are what is to be learned.",
        f"`valid`: share of valid grids among {GRIDS} per seed; `distinct`: how many different valid ones (of 288).",
    ),
    "sudoku": (
        "Sudoku grids of 9x9, as 81 digits",
        "200,000 grids made at random (`examples/sudoku/make_grids.py`); there are 6.7e21.",
        f"`valid`, `distinct`: of {LARGE_GRIDS} grids per seed; `solved`: share of {PUZZLES} puzzles, so many random "
        "cells of a held-out grid given, that are completed to a valid grid.",
    ),
    "english": (
        "English like that of its corpus (addresses, Bibles, sermons, plays, novels), 128 tokens at a time",
        "47 million characters of public-domain English (`examples/corpus`, with sources and rights); byte-level BPE "
        "of 4,096 tokens.",
        "`gppl ar`, `gppl ngram`: generative perplexity under a GPT-2 of the same size and under a Kneser-Ney 4-gram, "
        "both of the same training text; the protocol and the baselines are in `benchmarks/few_step.md`.",
    ),
}

LIMITS = {
    "english": "Made to be trained and tried on a laptop: a demonstration of the method, nothing to rely on.",
    "sudoku": "A demonstration of the method: Sudoku has far better solvers.",
}


def card(folder: Path, results: dict[str, list[Row]]) -> str:
    """The card of one shipped repository.

    Raises:
        ValueError: the model was not measured, or a value that the card states is missing.
    """
    name = folder.name
    part = name.split("-")[1]
    what, data, figures = DATA[part]
    config = json.loads((folder / "config.json").read_text())
    is_map = config["model_type"] == "fmlm"
    recipe = load_recipe(folder / "recipe.yaml")
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    rows = [row for row in results.get(part, []) if row["model"] == name]
    if not rows:
        raise ValueError(f"{name} is not in benchmarks/few_step.json: python -m benchmarks.few_step {part}")
    with safe_open(folder / "model.safetensors", framework="np") as weights:
        size = sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())
    steps, batch = recipe.training["max_steps"], recipe.training["per_device_train_batch_size"]
    end = next(entry for entry in reversed(log) if "train_runtime" in entry)
    resumed = end.get("resumed_at", 0)
    runtime = end["train_runtime"] * steps / (steps - resumed)
    teacher = f"flm-{name.split('-', 1)[1]}"
    head = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "language": "en",
        "tags": ["flow-language-model", config["model_type"], "one-step-generation" if is_map else "flow-matching"],
        **({"base_model": teacher} if is_map else {}),
    }
    kind = "flow map language model (FMLM)" if is_map else "flow language model (FLM)"
    kept = recipe.training.get("conditioning_rate", 0)
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).strip(),
        "---",
        "",
        f"# {name}",
        "",
        f"A {kind} of {size / 1e6:.1f} M parameters that writes {what}"
        + (", in one forward pass or a few." if is_map else ", by a continuous flow over one-hot tokens."),
        "",
        "```python",
        "from transformers import AutoModel, AutoTokenizer",
        "",
        f'model = AutoModel.from_pretrained("{name}", trust_remote_code=True).eval()',
        f'tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)',
        f"ids = model.generate(num_steps={1 if is_map else 64}, num_return_sequences=4, seed=0)",
        "print(tokenizer.batch_decode(ids, skip_special_tokens=True))",
        "```",
        "",
        "## How it was made",
        "",
        "* Method: arXiv 2602.16813"
        + (
            f"; distilled from [{teacher}](../{teacher}) with the {recipe.training['objective']} objective."
            if is_map
            else "; cross entropy of the denoiser, on the clock of the decoding error."
        ),
        f"* Data: {data}",
        f"* Recipe: `recipe.yaml` ({steps:,} steps of {batch} rows, seed {recipe.training.get('seed', 42)}); log: "
        f"`training_log.jsonl`; {runtime / 60:.0f} minutes on one or two CPU cores"
        + (f" (from the last {steps - resumed:,} steps: it was interrupted)." if resumed else "."),
        f"* Conditioning: {kept:.0%} of the rows were trained with a random part of their tokens given"
        + (", so prompts and blanks (the mask token) are honoured." if kept else "; prompts were not trained for."),
        "",
        "## Quality",
        "",
        f"{figures} Mean over three seeds ± standard deviation. Measured by `python -m benchmarks.few_step {part}`.",
        "",
        table([{k: v for k, v in row.items() if k != "model"} for row in rows]),
        "",
        "## Limits",
        "",
        LIMITS["english" if part == "english" else "sudoku"],
        "",
        "## Cite",
        "",
        "```bibtex",
        BIBTEX,
        "```",
    ]
    return "\n".join(lines) + "\n"


def shipped() -> list[Path]:
    """The folders of the shipped models."""
    return sorted(path.parent for path in HUB.glob("*/model.safetensors"))


def main() -> None:
    results = json.loads(RESULTS.read_text())
    for folder in shipped():
        for source in sorted((ROOT / "modeling_flm").glob("*_flm.py")):
            shutil.copy(source, folder / source.name)
        (folder / "README.md").write_text(card(folder, results))
        print(folder.name)


if __name__ == "__main__":
    main()
