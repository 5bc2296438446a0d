"""What `flm evaluate` writes of a comparison: evaluation.json, evaluation.md and frontier.png."""

import json
from pathlib import Path

from matplotlib.figure import Figure

MARKERS = "os^vD<>pPX*hd"
LEGEND = """\
Perplexity (`gppl`) and entropy belong together: a lower perplexity at a lower entropy is no gain. Brackets hold 95 %
intervals over the samples. The controls say what a figure is worth: where a metric ranks them wrongly, do not rely on
it. What each metric is, how it is hacked, and which control shows it, is in `docs/evaluation.md`."""


def write(result: dict, folder: Path) -> None:
    """Write the three files into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    (folder / "evaluation.md").write_text(markdown(result))
    picture(result).savefig(folder / "frontier.png", dpi=110)


def markdown(result: dict) -> str:
    """The comparison as a Markdown page."""
    protocol, rows, frontier = result["protocol"], result["rows"], result["frontier"]
    names = list(rows[0]["metrics"])
    controls = [row for row in rows if row["kind"] == "control"]
    written = [row for row in rows if row["kind"] != "control"]
    head = ["settings", "evaluations", *names]
    lines = ["# Evaluation", ""]
    if "command" in protocol:
        lines += ["```", protocol["command"], "```", ""]
    lines += [
        f"{rows[0]['samples']} samples a row, {protocol['num_samples']} for each of the seeds "
        f"{', '.join(map(str, protocol['seeds']))}, of at most {protocol['length']} tokens.",
        LEGEND,
        *(
            f"{model['model']} is a scorer too: its own perplexity there is a reference, no result."
            for model in protocol["models"]
            for scorer in protocol["scorers"]
            if model.get("weights_sha256", 0) == scorer.get("weights_sha256", 1)
        ),
        "",
        "## Controls",
        "",
        *_table(["what", *names], [[row["model"], *_figures(row, names)] for row in controls]),
        "",
        "## Models",
        "",
        *_table(
            ["model", *head],
            [
                [row["model"], _settings(row["settings"]), str(row["evaluations"] or ""), *_figures(row, names)]
                for row in written
            ],
        ),
        "",
        "## Perplexity at the data's entropy",
        "",
        f"The held-out text ({protocol['reference']['rows']} rows) has an entropy of "
        f"{protocol['reference']['entropy']:.3f} nats within a row. Along a sweep of one setting the log of the",
        "perplexity is interpolated linearly in the entropy, between neighbours on either side of the data's, and",
        'is "not reached" where there are none. `reached`: share of the bootstrap\'s resamples that do.',
        "",
    ]
    lines += _table(
        ["model", "held fixed", "sweep", "entropies", "metric", "at the data's entropy", "reached"],
        [
            [
                entry["model"],
                _settings(entry["settings"]),
                f"{entry['varied']} {', '.join(map(str, entry['values']))}",
                " to ".join(f"{entropy:.3f}" for entropy in entry["entropies"]),
                entry["metric"],
                _figure({"mean": entry["perplexity"], "interval": entry["interval"]}),
                f"{entry['reached']:.0%}",
            ]
            for entry in frontier
        ],
    )
    if not frontier:
        lines.append("No sweep: no setting was given two values.")
    lines += ["", "![Perplexity against entropy](frontier.png)", "", "## Protocol", "", "```json"]
    lines += [json.dumps(protocol, indent=1, ensure_ascii=False), "```"]
    return "\n".join(lines) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def _settings(settings: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _figures(row: dict, names: list[str]) -> list[str]:
    return [_figure(row["metrics"][name]) for name in names]


def _figure(value: dict) -> str:
    mean, interval = value["mean"], value["interval"]
    if mean is None:
        return "not reached"
    shown = _number(mean)
    return shown if interval is None else f"{shown} [{_number(interval[0])}, {_number(interval[1])}]"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:,.{1 if abs(value) >= 20 else 3}f}"


def picture(result: dict) -> Figure:
    """Perplexity against entropy, a panel for each scorer: a line for each sweep; the controls; the data's entropy."""
    metrics = [name for name in result["rows"][0]["metrics"] if name.startswith("gppl ")]
    figure = Figure(figsize=(7.5 * len(metrics), 7), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    lines: dict[str, list[dict]] = {}
    for row in result["rows"]:
        fixed = {name: value for name, value in row["settings"].items() if name not in ("temperature", "gamma")}
        if len(fixed) == len(row["settings"]):
            fixed.pop("num_steps", None)
        lines.setdefault(", ".join([row["model"], *filter(None, [_settings(fixed)])]), []).append(row)
    for axes, metric in zip(panels, metrics, strict=True):
        for place, (name, rows) in enumerate(lines.items()):
            x, y = ([row["metrics"][key]["mean"] for row in rows] for key in ("entropy", metric))
            control = rows[0]["kind"] == "control"
            axes.plot(
                x,
                y,
                marker=MARKERS[place % len(MARKERS)],
                color="black" if control else None,
                linestyle="none" if control else "-",
                label=name,
            )
        axes.axvline(
            result["protocol"]["reference"]["entropy"], color="0.7", linestyle=":", label="the data's entropy"
        )
        axes.set(yscale="log", xlabel="entropy within a sample (nats)", ylabel="generative perplexity")
        axes.set_title(metric)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return figure
