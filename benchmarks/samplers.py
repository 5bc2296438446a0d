"""Every sampler and control of `generate` on the shipped models: writes samplers.json, samplers.md and pictures.

    python -m benchmarks.samplers              # or a part: python -m benchmarks.samplers english
    python -m benchmarks.samplers tinystories --train ./stories.parquet --validation ./held-out.parquet

Measures, scorers and seeds are those of `benchmarks.few_step`. Rows are compared at equal evaluations of the network:
a guided step is two, a step of refinement one.
"""

import json
from collections.abc import Callable
from functools import partial
from itertools import cycle, product
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import few_step
from benchmarks.few_step import GRIDS, Scorers, StoryScorers, load, solved, unconditional
from benchmarks.request import Request, measure_models
from benchmarks.results import HUB, ROOT, Row, over_seeds, page, section, shown
from evaluation.report import MARKERS
from evaluation.writers import SEED_STRIDE

RESULTS = ROOT / "benchmarks" / "samplers.json"
PICTURES = {data: RESULTS.with_name(f"samplers-{data}.png") for data in ("tinystories", "english-small")}
TEXTS = 32  # per seed
PUZZLES, CLUES = 100, 36  # per seed, and of the 81 cells
RATE = 0.1  # of the weak network's dropout

Way = tuple[str, int, dict]  # sampler, steps and other settings; what is not named has the sampler's default
FLOW_OF_GRIDS: list[Way] = [(sampler, n, {}) for n in (4, 8, 16) for sampler in ("euler", "multistep", "bridge")]
NOISES: list[dict] = [{}, {"gamma": 0.5}, {"gamma": 0.5, "renoise": "markov"}, {"gamma": 0.8}, {"gamma": 1.0}]
MAP_OF_GRIDS: list[Way] = [("flow_map", n, noise) for n in (2, 4, 8) for noise in NOISES]
FLOW_OF_TEXT: list[Way] = [
    *((sampler, n, {}) for n in (8, 16) for sampler in ("euler", "multistep", "bridge")),
    *(("bridge", 16, {"temperature": t}) for t in (0.6, 0.7, 0.8, 0.9)),
    ("bridge", 16, {"top_p": 0.9}),
]
GUIDED: list[Way] = [
    ("euler", 8, {"guidance_scale": scale, "guidance_dropout": RATE}) for scale in (2.0, 4.0, 8.0, 16.0, 50.0)
]
MAP_OF_TEXT: list[Way] = [
    *(("flow_map", 8, {"gamma": gamma}) for gamma in (0.0, 0.5, 0.8, 1.0)),
    *(("flow_map", 8, {"gamma": gamma, "renoise": "markov"}) for gamma in (0.5, 0.8)),
    *(("flow_map", n, {"refine_steps": 8 - n}) for n in (4, 1)),
    *(("flow_map", 4, {"guidance_scale": scale, "guidance_dropout": RATE}) for scale in (2.0, 4.0)),
]
MAP_OF_STORIES: list[Way] = [
    *(("flow_map", n, {"gamma": gamma}) for n in (2, 4, 8) for gamma in (0.0, 0.5, 0.8, 1.0)),
    *(("flow_map", 1, {"refine_steps": n - 1}) for n in (2, 4, 8)),
    *(("flow_map", 1, {"refine_steps": n - 1, "refine_fraction": 0.3}) for n in (2, 4, 8)),
    *(("bridge", 8, {"temperature": t}) for t in (0.8, 1.0)),
]


def described(model: str, sampler: str, steps: int, settings: dict) -> Row:
    evaluations = (steps + settings.get("refine_steps", 0)) * (2 if "guidance_scale" in settings else 1)
    words = ", ".join(f"{name} {value}" for name, value in settings.items())
    return {"model": model, "evaluations": evaluations, "sampler": sampler, "settings": words}


def measured(name: str, ways: list[Way], measure: Callable[..., Row], *given) -> list[Row]:
    """A row for each way of a model to write, by `measure`, which is `unconditional`, `solved` or `written`."""
    model = load(HUB / name)
    return shown(
        described(name, sampler, steps, settings)
        | over_seeds(partial(measure, model, sampler, steps, *given, **settings))
        for sampler, steps, settings in ways
    )


def of_models(
    wants: Callable[[str], bool], ways: dict[str, list[Way]], measure: Callable[..., Row], *given
) -> list[Row]:
    """The rows of `measured` of each model that is wanted; `ways` are those of each model."""
    return [row for name in filter(wants, ways) for row in measured(name, ways[name], measure, *given)]


def shidoku(request: Request) -> list[Row]:
    ways = {"flm-shidoku": FLOW_OF_GRIDS, "fmlm-shidoku": MAP_OF_GRIDS}
    return of_models(request.wants, ways, unconditional, GRIDS)


def sudoku(request: Request) -> list[Row]:
    solvers = {"flm-sudoku": "euler", "fmlm-sudoku": "flow_map"}
    ways = {name: [way for n in (4, 8, 16) for way in spent(sampler, n)] for name, sampler in solvers.items()}
    return of_models(request.wants, ways, solved, CLUES, PUZZLES)


def spent(sampler: str, budget: int) -> list[Way]:
    """On puzzles: all evaluations of a budget on steps, some of them on refinement, or two on each guided step."""
    return [
        (sampler, budget, {}),
        (sampler, budget // 2, {"refine_steps": budget // 2}),
        (sampler, 1, {"refine_steps": budget - 1}),
        (sampler, 1, {"refine_steps": budget - 1, "refine_fraction": 0.5}),
        (sampler, budget // 2, {"guidance_scale": 2.0}),
    ]


def english(request: Request) -> list[Row]:
    return of_texts(Scorers(request), FLOW_OF_TEXT, MAP_OF_TEXT)


def tinystories(request: Request) -> list[Row]:
    return of_texts(StoryScorers(request), FLOW_OF_TEXT, MAP_OF_STORIES)


def of_texts(scorers: Scorers, of_flow: list[Way], of_map: list[Way]) -> list[Row]:
    ways = {f"flm-{scorers.data}": of_flow, f"fmlm-{scorers.data}": of_map}
    return of_models(scorers.wants, ways, written, scorers)


def autoguidance(request: Request) -> list[Row]:
    """Away from the flow's own prediction under dropout, up to the largest scale of the paper."""
    return of_models(request.wants, {"flm-english-small": GUIDED}, written, Scorers(request))


def grid(request: Request) -> list[Row]:
    """The flow's evaluations at tau = (k / N)^p: p = 1 is the even grid, a larger p has more of them early."""
    scorers, model = Scorers(request), load(HUB / "flm-english-small")
    return shown(
        {"evaluations": n, "sampler": sampler, "tau": f"(k / {n})^{power}"}
        | over_seeds(partial(written, model, sampler, n, scorers, timesteps=[(k / n) ** power for k in range(n)]))
        for n, sampler, power in product((4, 8, 16), ("euler", "multistep"), (1.0, 1.5, 2.0))
    )


def written(model, sampler: str, steps: int, scorers: Scorers, seed: int, **settings) -> Row:
    draw = partial(model.generate, num_return_sequences=TEXTS, seed=SEED_STRIDE * seed)
    return scorers.measure(draw(num_steps=steps, sampler=sampler, **settings))


def frontier(rows: list[Row], data: str, picture: Path) -> None:
    """Perplexity against entropy, of what is measured here and of the references in few_step.json."""
    references = json.loads(few_step.RESULTS.read_text())[data.split("-")[0]]
    curves: dict[str, list[Row]] = {}
    for row in rows:
        first, *fixed = str(row["settings"]).split(", ")
        varied = first.split(" ")[0] or "steps"
        if varied not in ("steps", "refine_steps"):
            fixed.append(f"{row['evaluations']} evaluations")
        curves.setdefault(", ".join([row["model"], row["sampler"], varied, *fixed]), []).append(row)
    for row in references:
        if row["model"] == f"mdlm-{data}" and row["steps"] == 8:
            curves.setdefault("masked diffusion, 8 steps, temperature", []).append(row)
        elif not str(row["model"]).endswith(f"lm-{data}"):
            curves[str(row["model"])] = [row]
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for marker, (name, points) in zip(cycle(MARKERS), curves.items(), strict=False):
        points = sorted(points, key=lambda row: row["entropy"])
        x, y = ([row[key] for row in points] for key in ("entropy", "gppl_ar"))
        axes.plot(x, y, marker=marker, label=name)
    axes.set(yscale="log", xlabel="token entropy per sample (nats)", ylabel="perplexity under the GPT-2 baseline")
    axes.legend(fontsize="small")
    figure.savefig(picture, dpi=120)


ABOUT = """
# Samplers

`python -m benchmarks.samplers` measures everything here anew and writes this file, `samplers.json` and the
picture. A figure is the mean over three seeds ± their standard deviation. Settings are the arguments of
`generate`; those that are not named are the model's own (`fmlm-shidoku` has gamma 1).
"""
OF_ENTROPY = "A lower perplexity at a lower entropy is no gain: compare at equal entropy, as the picture does."
OF_TIMES = """
Most of what a flow learns of a text lies at early tau, so more evaluations there pay: compare at equal
entropy. `timesteps` of `generate` takes such a grid.
"""


def report(results: dict[str, list[Row]]) -> str:
    stories, english = results.get("tinystories"), results.get("english")
    texts = f"({TEXTS} texts of 128 tokens per seed)"
    return page(
        ABOUT,
        section(results.get("shidoku"), f"4x4 Sudoku from nothing ({GRIDS:,} grids per seed)"),
        section(results.get("sudoku"), f"9x9 Sudoku, puzzles of {CLUES} clues with one solution ({PUZZLES} per seed)"),
        section(stories, f"TinyStories {texts}", OF_ENTROPY),
        _shown("tinystories") if stories else "",
        section(english and english + results.get("autoguidance", []), f"English {texts}", OF_ENTROPY),
        _shown("english-small") if english else "",
        section(results.get("grid"), "The times of the evaluations (flm-english-small)", OF_TIMES),
    )


def _shown(data: str) -> str:
    return f"![Perplexity against entropy]({PICTURES[data].name})"


def main() -> None:
    parts = (shidoku, sudoku, english, autoguidance, grid, tinystories)
    about = "Every sampler and control of `generate` on the shipped models."
    measure_models(about, {part.__name__: part for part in parts}, RESULTS, report)
    texts = json.loads(RESULTS.read_text())
    frontier(texts.get("english", []) + texts.get("autoguidance", []), "english-small", PICTURES["english-small"])
    frontier(texts.get("tinystories", []), "tinystories", PICTURES["tinystories"])


if __name__ == "__main__":
    main()
