"""The table of shipped models in README, from `benchmarks/few_step.json` and the sizes of the models.

    python -m benchmarks.readme

writes what stands in README between the two comment lines anew, and draws the ten stories that it shows.
"""

import json

from transformers import AutoModel, AutoTokenizer

import modeling_flm  # noqa: F401  registers the model types
from benchmarks.few_step import GRIDS, PUZZLES, RESULTS, TEXT, TEXTS, matched
from benchmarks.results import BASELINES, HUB, ROOT, SEEDS, Row
from hub_cards.folder import size

README = ROOT / "README.md"
BEGIN = "<!-- The shipped models: written by `python -m benchmarks.readme`. -->"
END = "<!-- End of the shipped models. -->"
BEGIN_STORIES = "<!-- Stories of seeds 0 to 9: written by `python -m benchmarks.readme`. -->"
END_STORIES = "<!-- End of the stories. -->"
STEPS = (1, 8, 64)


def _quality(row: Row) -> tuple[str, str]:
    """Perplexity and entropy."""
    return f"{row['gppl_ar']:.0f}", f"{row['entropy']:.2f}"


def _perplexity(row: Row) -> str:
    """Perplexity, and the entropy in brackets."""
    return "{} ({})".format(*_quality(row))


# Of each part of the measurements: what its models write, what the table shows of them, and in which words.
PARTS = {
    "tinystories": (
        "stories, 128 tokens",
        "perplexity (entropy)",
        _perplexity,
    ),
    "english": (
        "English, 128 tokens",
        "perplexity (entropy)",
        _perplexity,
    ),
    "sudoku": (
        "9x9 Sudoku grids",
        "puzzles of 40 clues solved (one step, then refinements)",
        lambda row: f"{row['solved, 40 clues']:.1%}",
    ),
    "shidoku": ("4x4 Sudoku grids", "valid grids from nothing", lambda row: f"{row['valid']:.1%}"),
}

PROTOCOL = (
    f"Figures are means over {len(SEEDS)} seeds of {TEXTS} texts, {GRIDS} grids of 4x4 or {PUZZLES} puzzles, with the "
    "model's own sampler. Entropy is that of the tokens of a text, in nats; a lower perplexity at a lower entropy is "
    "no gain. Refinements (`refine_steps`) write the least certain tokens again. Masked diffusion (MDLM, [arXiv "
    "2406.07524](https://arxiv.org/abs/2406.07524)) starts from masks and writes some tokens in each evaluation. In "
    "multiplications an evaluation of `fmlm-tinystories` costs 3.6 of its flow, one of `fmlm-sudoku` 4, one of "
    "`fmlm-shidoku` 3. The figures of `...-english-small` are of the weights before they were rounded to bfloat16."
)


def models(results: dict[str, list[Row]]) -> str:
    """The table, and what its figures are to be compared with."""
    lines = [
        "| model | writes | parameters | measured | "
        + " | ".join(f"{n} evaluation{'s' * (n > 1)}" for n in STEPS)
        + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(STEPS),
    ]
    for part, (writes, measure, words) in PARTS.items():
        for kind, sampler in (("flm", "euler"), ("fmlm", "flow_map")):
            name = f"{kind}-{TEXT[part][1] if part in TEXT else part}"
            rows = [row for row in results[part] if row["model"] == name and row.get("sampler", sampler) == sampler]
            shown = {row["steps"]: words(row) for row in rows if row.get("settings", "") in ("", "refined")}
            parameters = f"{size(HUB / name) / 1e6:.1f} M"
            cells = [f"`hub_cards/{name}`", writes, parameters, measure, *(shown[steps] for steps in STEPS)]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", _compared(results["tinystories"], "tinystories"), "", _compared(results["english"], "english-small")]
    lines += ["", PROTOCOL]
    return "\n".join(lines)


def _compared(rows: list[Row], data: str) -> str:
    """What the perplexities are of, and what held-out text and the baselines have."""
    by_model = {row["model"]: row for row in rows}
    one_step, of_masked, _ = next(matched(rows, data))
    eight = next(
        row for row in rows if row["model"] == f"mdlm-{data}" and (row["steps"], row["temperature"]) == (8, 1)
    )
    gpt2, held_out = by_model[f"ar-{data}"], by_model["held-out text"]
    perplexity, entropy = _quality(one_step)
    of_gpt2, of_mdlm = (f"{size(BASELINES / f'{kind}-{data}') / 1e6:.1f} M" for kind in ("ar", "mdlm"))
    return (
        f"`...-{data}`: perplexity is under a GPT-2 of {of_gpt2} parameters, trained on the same data. To compare: "
        f"held-out text {_perplexity(held_out)}, that GPT-2 {_perplexity(gpt2)} in {gpt2['steps']} evaluations, "
        f"masked diffusion of {of_mdlm} {_perplexity(eight)} in 8. At equal entropy, {entropy}, masked diffusion in 8 "
        f"evaluations has perplexity {of_masked['gppl_ar']:.0f}, the map in one {perplexity}."
    )


def updated(readme: str) -> str:
    """README with the table written anew."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{models(json.loads(RESULTS.read_text()))}\n\n{END}{after}"


def with_stories(readme: str) -> str:
    """README with the stories of the map drawn anew, one for each of the seeds 0 to 9."""
    before, rest = readme.split(BEGIN_STORIES)
    _, after = rest.split(END_STORIES)
    folder = HUB / "fmlm-tinystories"
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = model.generate(num_steps=1, num_return_sequences=10, seed=list(range(10)))
    texts = [" ".join(text.split()) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    stories = "\n".join(f"{seed}. {text}" for seed, text in enumerate(texts))
    return f"{before}{BEGIN_STORIES}\n\n{stories}\n\n{END_STORIES}{after}"


if __name__ == "__main__":
    README.write_text(with_stories(updated(README.read_text(encoding="utf-8"))), encoding="utf-8")
