"""Model cards of the shipped models, from their recipes, logs and measurements: writes each `README.md` anew.

    python -m benchmarks.cards

Nothing in a card is typed in by hand: sizes come from the weights, training from the recipe and the log, quality from
`few_step.json`, samples from `samples.json`, into which the models draw them anew. What is missing there is an error.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import EvalResult

from benchmarks.few_step import GRIDS, LARGE_GRIDS, PUZZLES, RESULTS
from benchmarks.results import HUB, SEEDS, Row, table
from examples.sudoku import make_puzzles
from hub_cards.folder import drawn, size
from trainers.model_card import Samples, model_card
from trainers.recipe import Recipe, load_recipe
from trainers.train import MATCHING

SAMPLES = Path(__file__).with_name("samples.json")


@dataclass
class Kind:
    """What is common to the models of one part of the measurements."""

    writes: str
    data: str
    limits: str
    figures: str  # what the columns of the measurements are
    held_out: str  # the name of the data that the figures are about
    metrics: dict[str, tuple[str, str]]  # the measures that go to the Hub: the type and the name of each there
    distilled_from: str = "its flow, `{}`"


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
        limits="A demonstration of the method: Sudoku has far better solvers. Puzzles are solved, and grids made from "
        'nothing, by refinements: `ids = tokenizer([puzzle], return_tensors="pt").input_ids` of 81 characters, dots '
        "for empty cells, then `model.generate(ids, num_steps=1, refine_steps=7)`. From nothing one step alone makes "
        "no valid grid.",
        figures=f"`valid`, `distinct`: of {LARGE_GRIDS} grids per seed; `solved`: share of {PUZZLES} puzzles with so "
        "many clues and one solution that are solved; `steps`: evaluations of the network; refined: one step, and the "
        "others are refinements (`refine_steps`).",
        held_out="9x9 Sudoku",
        metrics={
            "valid": ("accuracy", "valid grids"),
            "solved, 40 clues": ("accuracy", "puzzles of 40 clues solved"),
        },
    ),
    "tinystories": Kind(
        writes="tales in the words of a small child, 128 tokens at a time",
        data="16,929 stories of TinyStories (arXiv 2305.07759, licence CDLA-Sharing-1.0 as its card says), "
        "13.7 million characters (`examples/stories`); byte-level BPE of 8,192 tokens.",
        limits="A small model, trained on a CPU to show the method. It writes children's stories in English; whole "
        "sentences are few. Rows of training are cut from joined stories, so that a text may begin and end within a "
        "sentence, and another story may begin in it. Not examined for bias or safety.",
        figures="`gppl ar`, `gppl ngram`: generative perplexity under a GPT-2 of 5.4 M parameters and a Kneser-Ney "
        "4-gram, both of the same stories; `words`, `pairs`: shares of words and of neighbouring words that the "
        "stories have, too; the protocol and the baselines are in `benchmarks/few_step.md`.",
        held_out="TinyStories",
        metrics={
            "gppl_ar": ("perplexity", "generative perplexity under a small GPT-2"),
            "gppl_ngram": ("perplexity", "generative perplexity under a Kneser-Ney 4-gram"),
            "entropy": ("entropy", "unigram entropy of a sample, nats"),
        },
        distilled_from="an earlier version of `{}` (1,500 steps from the weights of masked diffusion)",
    ),
    "english": Kind(
        writes="English like that of its corpus (addresses, Bibles, sermons, plays, novels), 128 tokens at a time",
        data="47 million characters of public-domain English (`examples/corpus`, with sources and rights); byte-level "
        "BPE of 4,096 tokens.",
        limits="A small model, trained on a CPU to show the method. Its English is that of older books, a third of it "
        "biblical, and words that do not exist are frequent. Not examined for bias or safety.",
        figures="`gppl ar`, `gppl ngram`: generative perplexity under a GPT-2 of the same size and under a Kneser-Ney "
        "4-gram, both of the same training text; the protocol and the baselines are in `benchmarks/few_step.md`. The "
        "figures are of the weights before they were rounded to bfloat16.",
        held_out="Public-domain English",
        metrics={
            "gppl_ar": ("perplexity", "generative perplexity under a GPT-2 of the same size"),
            "gppl_ngram": ("perplexity", "generative perplexity under a Kneser-Ney 4-gram"),
            "entropy": ("entropy", "unigram entropy of a sample, nats"),
        },
    ),
}

# What the map of 9x9 Sudoku was trained on besides.
OF_PUZZLES = (
    f" Of {make_puzzles.PUZZLES:,} of them puzzles with one solution, of {make_puzzles.CLUES[0]} clues or more, in "
    f"{make_puzzles.IMAGES} images each (`examples/sudoku/make_puzzles.py`)."
)


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
    recipe = load_recipe(folder / "recipe.yaml")
    sampler = json.loads((folder / "generation_config.json").read_text())["sampler"]
    sampled = "" if "sampler" in rows[0] else f" Sampler, if none is named: {sampler}, with its default settings."
    measured = f"{kind.figures} Mean over {len(SEEDS)} seeds ± standard deviation.{sampled} Measured by `python -m "
    measured += f"benchmarks.few_step {part}`."
    teacher = f"flm-{name.split('-', 1)[1]}" if is_map(folder) else None
    if teacher is None:
        method = "Method: trained by cross entropy to predict the text from noised forms of it. The noise levels are "
        method += "even in tau, the scale of the decoding error: 0 is noise, 1 is text."
        if recipe.model.get("masked"):
            method += " It started from the weights of masked diffusion of the same sizes."
    else:
        objective = recipe.training["objective"]
        how = f"with the {objective} objective"
        if objective == MATCHING:
            of_teacher, of_texts = (recipe.training.get(f"{whose}_temperature", 1) for whose in ("teacher", "writing"))
            how = "then matched to masked diffusion by its own texts (distribution matching; temperatures in "
            how += f"training: {of_teacher} of the teacher, {of_texts} of its own texts)"
        elif recipe.training.get("unique_completion"):
            how += "; with given tokens trained on the data itself, since these decide the others"
        method = f"Method: distilled from {kind.distilled_from.format(teacher)}, {how}."
        own, flows = (config(some)["num_hidden_layers"] for some in (folder, folder.with_name(teacher)))
        if own != flows:
            method += f" It has {own} blocks, the flow {flows}."
        if (loops := config(folder).get("num_loops", 1)) > 1:
            method += f" In each evaluation its states go through all blocks {loops} times, with the same weights."
    return model_card(
        name=name,
        model_type="fmlm" if teacher else "flm",
        parameters=size(folder),
        writes=kind.writes,
        num_steps=1 if teacher else 64,
        made=[method, f"Data: {kind.data}{OF_PUZZLES if recipe.data.given_column else ''}", *trained(folder, recipe)],
        quality=f"{measured}\n\n{table([{k: v for k, v in row.items() if k != 'model'} for row in rows])}",
        limits=kind.limits,
        samples=[Samples(**group) for group in samples[name]],
        results=[result for row in rows for result in eval_results(row, part, sampler)],
        license="apache-2.0",
        language="en" if part in ("english", "tinystories") else None,
        datasets=["roneneldan/TinyStories"] if part == "tinystories" else None,
        base_model=teacher,
    )


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def is_map(folder: Path) -> bool:
    return config(folder)["model_type"] == "fmlm"


def trained(folder: Path, recipe: Recipe) -> list[str]:
    """Lines of the card on the training: its recipe, its time, its conditioning."""
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    end = next(entry for entry in reversed(log) if "train_runtime" in entry)
    steps, batch = recipe.training["max_steps"], recipe.training["per_device_train_batch_size"]
    logged, timed = end["step"], steps - end.get("resumed_at", 0)  # `timed` are the steps that the logged time is of
    minutes = f"{end['train_runtime'] / 60:.0f} minutes on one or two CPU cores"
    if timed < steps:
        minutes = f"the last {timed:,} steps took {minutes}"
    kept = recipe.training.get("conditioning_rate", 0)
    given = f"{kept:.0%} of the rows were trained with a random part of their tokens given"
    if recipe.data.given_column:
        given = "the clues of puzzles were given in training"
    prompts = "; prompts were not trained for"
    if kept or recipe.data.given_column:
        prompts = ", so prompts and blanks (the mask token) are honoured"
    runs = f"Recipe: `recipe.yaml` ({steps:,} steps of {batch} rows, seed {recipe.training.get('seed', 42)}); log"
    if logged < steps:
        runs = f"Recipe: `recipe.yaml`, {steps:,} steps of {batch} rows in several runs, which its head tells; log of "
        runs += f"the last run, {logged:,} steps"
    return [
        f"{runs}: `training_log.jsonl`; {minutes}.",
        f"Conditioning: {given}{prompts}.",
    ]


def eval_results(row: Row, part: str, sampler: str) -> list[EvalResult]:
    """The measures of a row for the Hub. `sampler` is the model's own, unless the row names one."""
    settings = (
        {"sampler": sampler}
        | {k: row[k] for k in ("sampler", "settings", "steps", "temperature") if row.get(k)}
        | {"seeds": len(SEEDS)}
    )
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=part,
            dataset_name=KINDS[part].held_out,
            metric_type=metric_type,
            metric_name=metric_name,
            metric_value=round(row[metric], 4),
            metric_args=settings | {"standard_deviation": round(row[f"{metric}_sd"], 4)},
        )
        for metric, (metric_type, metric_name) in KINDS[part].metrics.items()
    ]


def shipped() -> list[Path]:
    """The folders of the shipped models."""
    return sorted(path.parent for path in HUB.glob("*/model.safetensors"))


def draw(folder: Path) -> list[dict]:
    """The samples of a shipped model: of a map in one evaluation and in four, of a flow with its own settings."""
    return [asdict(drawn(folder, steps)) for steps in ((1, 4) if is_map(folder) else (None,))]


def main() -> None:
    results, samples = json.loads(RESULTS.read_text()), {}
    for folder in shipped():
        samples[folder.name] = draw(folder)
        SAMPLES.write_text(json.dumps(samples, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card(folder, results), encoding="utf-8")
        print(folder.name)


if __name__ == "__main__":
    main()
