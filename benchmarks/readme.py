"""The table of shipped models in README, from what was measured.

    python -m benchmarks.readme

writes what stands in README between the two comment lines anew, from `benchmarks/few_step.json` and the sizes of the
models.
"""

import json

from benchmarks.few_step import RESULTS, matched
from benchmarks.results import HUB, ROOT, Row, number
from hub_cards.folder import size

README = ROOT / "README.md"
BEGIN = "<!-- The shipped models: written by `python -m benchmarks.readme`. -->"
END = "<!-- End of the shipped models. -->"
STEPS = (1, 8, 64)

# Of each part of the measurements: what its models write, what the table shows of them, and in which words.
PARTS = {
    "english": ("English, 128 tokens", "perplexity (entropy)", lambda row: f"{_of(row, 'gppl_ar')} ({_entropy(row)})"),
    "sudoku": ("9x9 Sudoku grids", "puzzles of 50 clues solved", lambda row: f"{number(row['solved, 50 clues']):.1%}"),
    "shidoku": ("4x4 Sudoku grids", "valid grids from nothing", lambda row: f"{number(row['valid']):.1%}"),
}


def _of(row: Row, name: str) -> str:
    return f"{number(row[name]):.0f}"


def _entropy(row: Row) -> str:
    return f"{number(row['entropy']):.2f}"


def models(results: dict[str, list[Row]]) -> str:
    """The table, and what its figures are to be compared with."""
    lines = [
        "| model | writes | parameters | measured | " + " | ".join(f"{n} step{'s' * (n > 1)}" for n in STEPS) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(STEPS),
    ]
    for part, (writes, measure, shown) in PARTS.items():
        for kind, sampler in (("flm", "euler"), ("fmlm", "flow_map")):
            name = f"{kind}-{part}" + "-small" * (part == "english")
            rows = {row["steps"]: row for row in results[part] if row["model"] == name}
            if part != "english":
                rows = {r["steps"]: r for r in results[part] if r["model"] == name and r["sampler"] == sampler}
            parameters = f"{size(HUB / name) / 1e6:.1f} M"
            cells = [f"`hub_cards/{name}`", writes, parameters, measure, *(shown(rows[steps]) for steps in STEPS)]
            lines.append("| " + " | ".join(cells) + " |")
    english = results["english"]
    held_out, gpt2 = (next(r for r in english if r["model"] == m) for m in ("held-out text", "ar-english-small"))
    one_step, of_masked, _ = next(matched(english, 8))
    return "\n".join(
        [
            *lines,
            "",
            f"Perplexity is under a GPT-2 of the same size. Held-out text has {_of(held_out, 'gppl_ar')} at an "
            f"entropy of {_entropy(held_out)} nats, that GPT-2 itself {_of(gpt2, 'gppl_ar')} at {_entropy(gpt2)} in "
            f"{gpt2['steps']} evaluations, and masked diffusion with 8 steps {of_masked['gppl_ar']:.0f} where "
            f"the map with 1 step has {_of(one_step, 'gppl_ar')} (entropy {_entropy(one_step)}).",
        ]
    )


def updated(readme: str) -> str:
    """README with the table written anew."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{models(json.loads(RESULTS.read_text()))}\n\n{END}{after}"


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
