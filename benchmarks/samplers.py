"""Every sampler and control of `generate` on the shipped models: writes samplers.json, samplers.md and samplers.png.

    python -m benchmarks.samplers              # all of it
    python -m benchmarks.samplers english      # one part; the others stay as they were measured

Measures, scorers and seeds are those of `benchmarks.few_step`. Rows are compared at equal evaluations of the network:
a guided step is two, a step of refinement one.
"""

import json
from functools import partial
from itertools import product

from matplotlib.figure import Figure

from benchmarks import few_step
from benchmarks.few_step import GRIDS, Scorers, held_out_grids, load, solved, unconditional
from benchmarks.results import HUB, ROOT, Row, measure_parts, number, over_seeds, show, table

RESULTS = ROOT / "benchmarks" / "samplers.json"
PICTURE = RESULTS.with_suffix(".png")
TEXTS = 32  # per seed
PUZZLES, CLUES = 100, 40  # per seed, and of the 81 cells
RATE = 0.1  # of the weak network's dropout

# Steps and settings by name; what is not named is the sampler's default.
FLOW_OF_GRIDS = [(sampler, n, {}) for n in (4, 8, 16) for sampler in ("euler", "multistep", "bridge")]
MAP_OF_GRIDS = [
    ("flow_map", n, settings)
    for n in (2, 4, 8)
    for settings in (
        {},
        {"gamma": 0.5},
        {"gamma": 0.5, "renoise": "markov"},
        {"gamma": 0.8},
        {"gamma": 1.0},
    )
]
FLOW_OF_TEXT = [
    *((sampler, n, {}) for n in (8, 16) for sampler in ("euler", "multistep", "bridge")),
    *(("bridge", 16, {"temperature": t}) for t in (0.6, 0.7, 0.8, 0.9)),
    ("bridge", 16, {"top_p": 0.9}),
]
GUIDED = [("euler", 8, {"guidance_scale": scale, "guidance_dropout": RATE}) for scale in (2.0, 4.0, 8.0, 16.0, 50.0)]
MAP_OF_TEXT = [
    *(("flow_map", 8, {"gamma": gamma}) for gamma in (0.0, 0.5, 0.8, 1.0)),
    *(("flow_map", 8, {"gamma": gamma, "renoise": "markov"}) for gamma in (0.5, 0.8)),
    *(("flow_map", n, {"refine_steps": 8 - n}) for n in (4, 1)),
    *(("flow_map", 4, {"guidance_scale": scale, "guidance_dropout": RATE}) for scale in (2.0, 4.0)),
]


def evaluations(steps: int, settings: dict) -> int:
    return (steps + settings.get("refine_steps", 0)) * (2 if "guidance_scale" in settings else 1)


def described(model: str, sampler: str, steps: int, settings: dict) -> Row:
    shown = ", ".join(f"{name} {value}" for name, value in settings.items())
    return {"model": model, "evaluations": evaluations(steps, settings), "sampler": sampler, "settings": shown}


def shidoku() -> list[Row]:
    rows = []
    for name, ways in (("flm-shidoku", FLOW_OF_GRIDS), ("fmlm-shidoku", MAP_OF_GRIDS)):
        model = load(HUB / name)
        for sampler, steps, settings in ways:
            measured = over_seeds(partial(unconditional, model, sampler, steps, GRIDS, **settings))
            rows.append(described(name, sampler, steps, settings) | measured)
            show(rows[-1])
    return rows


def sudoku() -> list[Row]:
    """Puzzles solved: all evaluations spent on steps, some of them on refinement, or two on each guided step."""
    rows, solutions = [], held_out_grids(PUZZLES)
    for name, sampler in (("flm-sudoku", "euler"), ("fmlm-sudoku", "flow_map")):
        model = load(HUB / name)
        for budget in (4, 8, 16):
            ways: list[tuple[int, dict]] = [
                (budget, {}),
                (budget // 2, {"refine_steps": budget // 2}),
                (1, {"refine_steps": budget - 1}),
                (1, {"refine_steps": budget - 1, "refine_fraction": 0.5}),
                (budget // 2, {"guidance_scale": 2.0}),
            ]
            for steps, settings in ways:
                measured = over_seeds(partial(solved, model, sampler, steps, solutions, CLUES, **settings))
                rows.append(described(name, sampler, steps, settings) | measured)
                show(rows[-1])
    return rows


def english() -> list[Row]:
    return _english("flm-english-small", FLOW_OF_TEXT) + _english("fmlm-english-small", MAP_OF_TEXT)


def autoguidance() -> list[Row]:
    """Away from the flow's own prediction under dropout, up to the largest scale of the paper."""
    return _english("flm-english-small", GUIDED)


def grid() -> list[Row]:
    """The flow's evaluations at tau = (k / N)^p: p = 1 is the even grid, a larger p has more of them early."""
    scorers, model, rows = Scorers(), load(HUB / "flm-english-small"), []
    for steps, sampler, power in product((4, 8, 16), ("euler", "multistep"), (1.0, 1.5, 2.0)):
        settings = {"timesteps": [(k / steps) ** power for k in range(steps)]}
        measured = over_seeds(partial(written, scorers, model, sampler, steps, settings))
        rows.append({"evaluations": steps, "sampler": sampler, "tau": f"(k / {steps})^{power}"} | measured)
        show(rows[-1])
    return rows


def _english(name: str, ways: list[tuple[str, int, dict]]) -> list[Row]:
    scorers, model, rows = Scorers(), load(HUB / name), []
    for sampler, steps, settings in ways:
        measured = over_seeds(partial(written, scorers, model, sampler, steps, settings))
        rows.append(described(name, sampler, steps, settings) | measured)
        show(rows[-1])
    return rows


def written(scorers: Scorers, model, sampler: str, steps: int, settings: dict, seed: int) -> Row:
    draw = partial(model.generate, num_return_sequences=TEXTS, seed=1_000_000 * seed)
    return scorers.measure(draw(num_steps=steps, sampler=sampler, **settings))


# -- report -----------------------------------------------------------------------------------------------------------


def frontier(rows: list[Row]) -> None:
    """Perplexity against entropy, of what is measured here and of the references in few_step.json."""
    references = json.loads(few_step.RESULTS.read_text())["english"]
    curves: dict[str, list[Row]] = {}
    for row in rows:
        what = str(row["settings"]).split(" ")[0] or "steps"
        curves.setdefault(f"{row['model']}, {row['sampler']}, {what}", []).append(row)
    for row in references:
        if row["model"] == "mdlm-english-small" and row["steps"] == 8:
            curves.setdefault("masked diffusion, 8 steps, temperature", []).append(row)
        elif not str(row["model"]).endswith("lm-english-small"):
            curves[str(row["model"])] = [row]
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    markers = "os^vD<>pPX*hd"
    for place, (name, points) in enumerate(curves.items()):
        points = sorted(points, key=lambda row: number(row["entropy"]))
        x, y = ([number(row[key]) for row in points] for key in ("entropy", "gppl_ar"))
        axes.plot(x, y, marker=markers[place % len(markers)], label=name)
    axes.set(yscale="log", xlabel="token entropy per sample (nats)", ylabel="perplexity under the GPT-2 baseline")
    axes.legend(fontsize="small")
    figure.savefig(PICTURE, dpi=120)


def report(results: dict[str, list[Row]]) -> str:
    text = [
        "# Samplers",
        "",
        "`python -m benchmarks.samplers` measures everything here anew and writes this file, `samplers.json` and the",
        "picture. A figure is the mean over three seeds ± their standard deviation. Settings are the arguments of",
        "`generate`.",
    ]
    if "shidoku" in results:
        text += ["", f"## 4x4 Sudoku from nothing ({GRIDS:,} grids per seed)", "", table(results["shidoku"])]
    if "sudoku" in results:
        title = f"## 9x9 Sudoku, {CLUES} random cells given ({PUZZLES} held-out grids per seed)"
        text += ["", title, "", table(results["sudoku"])]
    if "english" in results:
        text += [
            "",
            f"## English ({TEXTS} texts of 128 tokens per seed)",
            "",
            "A lower perplexity at a lower entropy is no gain: compare at equal entropy, as the picture does.",
            "",
            table(results["english"] + results.get("autoguidance", [])),
            "",
            f"![Perplexity against entropy]({PICTURE.name})",
        ]
    if "grid" in results:
        text += [
            "",
            "## The times of the evaluations (flm-english-small)",
            "",
            "Most of what a flow learns of a text lies at early tau, so more evaluations there pay: compare at equal",
            "entropy. `timesteps` of `generate` takes such a grid.",
            "",
            table(results["grid"]),
        ]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    parts = {"shidoku": shidoku, "sudoku": sudoku, "english": english, "autoguidance": autoguidance, "grid": grid}
    measure_parts(parts, RESULTS, report)
    texts = json.loads(RESULTS.read_text())
    frontier(texts.get("english", []) + texts.get("autoguidance", []))
