"""Model cards of the shipped models, from their recipes, logs and measurements: writes each `README.md` anew.

    python -m benchmarks.cards

Nothing in a card is typed in by hand: sizes come from the weights, training from the recipe and the log, quality from
`benchmarks/few_step.json`, samples from `samples.json`, into which the models draw them anew. What is missing there is
an error.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import EvalResult

from benchmarks.few_step import GRIDS, LARGE_GRIDS, PUZZLES, RESULTS
from benchmarks.results import HUB, SEEDS, Row, number, table
from hub_cards.folder import drawn, size
from trainers.model_card import Samples, model_card
from trainers.recipe import load_recipe

SAMPLES = Path(__file__).with_name("samples.json")


@dataclass
class Kind:
    """What is common to the models of one part of the measurements.

    Args:
        writes, data, limits (`str`): sentences of the card.
        figures (`str`): what the columns of the measurements are.
        held_out (`str`): the name of the data that the figures are about.
        metrics (`dict[str, tuple[str, str]]`): the measures that go to the Hub: the type and the name of each there.
    """

    writes: str
    data: str
    limits: str
    figures: str
    held_out: str
    metrics: dict[str, tuple[str, str]]


KINDS = {
    "shidoku": Kind(
        writes="Sudoku grids of 4x4, as 16 digits",
        data="All 288 grids of 4x4 Sudoku (`examples/sudoku/make_grids.py`); they are what is to be learned.",
        limits="A demonstration of the method: Sudoku has far better solvers.",
        figures=f"`valid`: share of valid grids among {GRIDS} per seed; `distinct`: how many different valid ones (of "
        "288).",
        held_out="4x4 Sudoku",
        metrics={"valid": ("accuracy", "valid grids")},
    ),
    "sudoku": Kind(
        writes="Sudoku grids of 9x9, as 81 digits",
        data="200,000 grids made at random (`examples/sudoku/make_grids.py`); there are 6.7e21.",
        limits="A demonstration of the method: Sudoku has far better solvers.",
        figures=f"`valid`, `distinct`: of {LARGE_GRIDS} grids per seed; `solved`: share of {PUZZLES} puzzles, so many "
        "random cells of a held-out grid given, that are completed to a valid grid.",
        held_out="9x9 Sudoku",
        metrics={
            "valid": ("accuracy", "valid grids"),
            "solved, 50 clues": ("accuracy", "puzzles of 50 clues solved"),
            "solved, 40 clues": ("accuracy", "puzzles of 40 clues solved"),
        },
    ),
    "english": Kind(
        writes="English like that of its corpus (addresses, Bibles, sermons, plays, novels), 128 tokens at a time",
        data="47 million characters of public-domain English (`examples/corpus`, with sources and rights); byte-level "
        "BPE of 4,096 tokens.",
        limits="Made to be trained and tried on a laptop: a demonstration of the method, nothing to rely on.",
        figures="`gppl ar`, `gppl ngram`: generative perplexity under a GPT-2 of the same size and under a Kneser-Ney "
        "4-gram, both of the same training text; the protocol and the baselines are in `benchmarks/few_step.md`.",
        held_out="Public-domain English",
        metrics={
            "gppl_ar": ("perplexity", "generative perplexity under a GPT-2 of the same size"),
            "gppl_ngram": ("perplexity", "generative perplexity under a Kneser-Ney 4-gram"),
            "entropy": ("entropy", "unigram entropy of a sample, nats"),
        },
    ),
}


def card(folder: Path, results: dict[str, list[Row]]) -> str:
    """The card of one shipped repository, from the measurements of all.

    Raises:
        ValueError: the model was not measured, drew no samples, or a value that the card states is missing.
    """
    name = folder.name
    part = name.split("-")[1]
    kind = KINDS[part]
    rows = [row for row in results.get(part, []) if row["model"] == name]
    if not rows:
        raise ValueError(f"{name} is not in benchmarks/few_step.json: python -m benchmarks.few_step {part}")
    samples = json.loads(SAMPLES.read_text(encoding="utf-8"))
    if name not in samples:
        raise ValueError(f"{name} is not in benchmarks/samples.json: python -m benchmarks.cards")
    config = json.loads((folder / "config.json").read_text())
    is_map = config["model_type"] == "fmlm"
    recipe = load_recipe(folder / "recipe.yaml")
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    steps, batch = recipe.training["max_steps"], recipe.training["per_device_train_batch_size"]
    end = next(entry for entry in reversed(log) if "train_runtime" in entry)
    resumed = end.get("resumed_at", 0)
    runtime = end["train_runtime"] * steps / (steps - resumed)
    teacher = f"flm-{name.split('-', 1)[1]}"
    kept = recipe.training.get("conditioning_rate", 0)
    sampler = json.loads((folder / "generation_config.json").read_text())["sampler"]
    sampled = "" if "sampler" in rows[0] else f" Sampler: {sampler}, with its default settings."
    measured = f"Measured by `python -m benchmarks.few_step {part}`."
    return model_card(
        name=name,
        model_type=config["model_type"],
        parameters=size(folder),
        writes=kind.writes,
        num_steps=1 if is_map else 64,
        made=[
            f"Method: distilled from its flow, `{teacher}`, with the {recipe.training['objective']} objective."
            if is_map
            else "Method: cross entropy of the denoiser, on the clock of the decoding error.",
            f"Data: {kind.data}",
            f"Recipe: `recipe.yaml` ({steps:,} steps of {batch} rows, seed {recipe.training.get('seed', 42)}); log: "
            f"`training_log.jsonl`; {runtime / 60:.0f} minutes on one or two CPU cores"
            + (f" (from the last {steps - resumed:,} steps: it was interrupted)." if resumed else "."),
            f"Conditioning: {kept:.0%} of the rows were trained with a random part of their tokens given"
            + (
                ", so prompts and blanks (the mask token) are honoured." if kept else "; prompts were not trained for."
            ),
        ],
        quality=f"{kind.figures} Mean over {len(SEEDS)} seeds ± standard deviation.{sampled} {measured}\n\n"
        + table([{k: v for k, v in row.items() if k != "model"} for row in rows]),
        limits=kind.limits,
        samples=[Samples(**group) for group in samples[name]],
        results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=part,
                dataset_name=kind.held_out,
                metric_type=metric_type,
                metric_name=metric_name,
                metric_value=round(number(row[metric]), 4),
                metric_args=settings
                | {"seeds": len(SEEDS), "standard_deviation": round(number(row[f"{metric}_sd"]), 4)},
            )
            for row in rows
            for settings in [{"sampler": sampler} | {k: row[k] for k in ("sampler", "steps") if k in row}]
            for metric, (metric_type, metric_name) in kind.metrics.items()
        ],
        license="apache-2.0",
        language="en",
        base_model=teacher if is_map else None,
    )


def shipped() -> list[Path]:
    """The folders of the shipped models."""
    return sorted(path.parent for path in HUB.glob("*/model.safetensors"))


def draw(folder: Path) -> list[dict]:
    """The samples of a shipped model: of a map in one evaluation and in four, of a flow with its own settings."""
    is_map = json.loads((folder / "config.json").read_text())["model_type"] == "fmlm"
    return [asdict(drawn(folder, steps)) for steps in ((1, 4) if is_map else (None,))]


def main() -> None:
    results, samples = json.loads(RESULTS.read_text()), {}
    for folder in shipped():
        samples[folder.name] = draw(folder)
        SAMPLES.write_text(json.dumps(samples, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card(folder, results), encoding="utf-8")
        print(folder.name)


if __name__ == "__main__":
    main()
