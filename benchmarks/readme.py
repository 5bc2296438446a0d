"""The table of shipped models in README, from `benchmarks/few_step.json` and the sizes of the models.

    python -m benchmarks.readme

writes what stands in README between the two comment lines anew.
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
    "english": ("English, 128 tokens", "perplexity (entropy)", lambda row: "{} ({})".format(*_quality(row))),
    "sudoku": ("9x9 Sudoku grids", "puzzles of 50 clues solved", lambda row: f"{number(row['solved, 50 clues']):.1%}"),
    "shidoku": ("4x4 Sudoku grids", "valid grids from nothing", lambda row: f"{number(row['valid']):.1%}"),
}


def _quality(row: Row) -> tuple[str, str]:
    """Perplexity and entropy."""
    return f"{number(row['gppl_ar']):.0f}", f"{number(row['entropy']):.2f}"


def models(results: dict[str, list[Row]]) -> str:
    """The table, and what its figures are to be compared with."""
    lines = [
        "| model | writes | parameters | measured | " + " | ".join(f"{n} step{'s' * (n > 1)}" for n in STEPS) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(STEPS),
    ]
    for part, (writes, measure, words) in PARTS.items():
        for kind, sampler in (("flm", "euler"), ("fmlm", "flow_map")):
            name = f"{kind}-{part}" + "-small" * (part == "english")
            rows = [row for row in results[part] if row["model"] == name and row.get("sampler", sampler) == sampler]
            shown = {row["steps"]: words(row) for row in rows}
            parameters = f"{size(HUB / name) / 1e6:.1f} M"
            cells = [f"`hub_cards/{name}`", writes, parameters, measure, *(shown[steps] for steps in STEPS)]
            lines.append("| " + " | ".join(cells) + " |")
    english = {row["model"]: row for row in results["english"]}
    one_step, of_masked, _ = next(matched(results["english"], 8))
    real, real_entropy = _quality(english["held-out text"])
    gpt2, gpt2_entropy = _quality(english["ar-english-small"])
    perplexity, entropy = _quality(one_step)
    lines += [
        "",
        f"Perplexity is under a GPT-2 of the same size. Held-out text has {real} at an entropy of {real_entropy} "
        f"nats, that GPT-2 itself {gpt2} at {gpt2_entropy} in {english['ar-english-small']['steps']} evaluations, "
        f"and masked diffusion with 8 steps {of_masked['gppl_ar']:.0f} where the map with 1 step has {perplexity} "
        f"(entropy {entropy}).",
    ]
    return "\n".join(lines)


def updated(readme: str) -> str:
    """README with the table written anew."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{models(json.loads(RESULTS.read_text()))}\n\n{END}{after}"


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
