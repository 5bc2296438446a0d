"""The files that `flm evaluate` writes: evaluation.json, evaluation.md and frontier.png."""

import json
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure

MARKERS = "os^vD<>pPX*hd"
LEGEND = """\
Perplexity (`gppl`) and entropy belong together: a lower perplexity at a lower entropy is no gain. Brackets hold 95 %
intervals over the samples. The controls say what a figure is worth: where a metric ranks them wrongly, do not rely on
it. What each metric is, how it is hacked, and which control shows it, is in `docs/evaluation.md`."""


def write(result: dict, folder: Path) -> None:
    """Write the three files of a comparison, the `result` of [`evaluation.compare.compare`], into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    (folder / "evaluation.md").write_text(markdown(result))
    picture(result).savefig(folder / "frontier.png", dpi=110)


def markdown(result: dict) -> str:
    """The comparison as a Markdown page: controls, models, perplexity at the data's entropy, protocol."""
    protocol, rows = result["protocol"], result["rows"]
    command = ["```", protocol["command"], "```", ""] if "command" in protocol else []
    lines = ["# Evaluation", "", *command, *_introduction(result), ""]
    lines += ["## Controls", "", *_controls([row for row in rows if row["kind"] == "control"]), ""]
    lines += ["## Models", "", *_models([row for row in rows if row["kind"] != "control"]), ""]
    lines += ["## Perplexity at the data's entropy", "", *_frontier(protocol["reference"], result["frontier"]), ""]
    lines += ["![Perplexity against entropy](frontier.png)", ""]
    lines += ["## Protocol", "", "```json", json.dumps(protocol, indent=1, ensure_ascii=False), "```"]
    return "\n".join(lines) + "\n"


def _introduction(result: dict) -> list[str]:
    protocol = result["protocol"]
    seeds, length = ", ".join(map(str, protocol["seeds"])), protocol["length"]
    scorers = {scorer.get("weights_sha256", "") for scorer in protocol["scorers"]}
    return [
        f"{result['rows'][0]['samples']} samples a row, {protocol['num_samples']} for each of the seeds {seeds}, "
        f"of at most {length} tokens.",
        LEGEND,
        *(
            f"{model['model']} is a scorer too: its own perplexity there is a reference, no result."
            for model in protocol["models"]
            if model.get("weights_sha256") in scorers
        ),
    ]


def _controls(rows: list[dict]) -> list[str]:
    return _table(["what", *rows[0]["metrics"]], [[row["model"], *_figures(row)] for row in rows])


def _models(rows: list[dict]) -> list[str]:
    head = ["model", "settings", "evaluations", *rows[0]["metrics"]]
    cells = [[row["model"], _settings(row["settings"]), str(row["evaluations"] or ""), *_figures(row)] for row in rows]
    return _table(head, cells)


def _frontier(reference: dict, frontier: list[dict]) -> list[str]:
    rows, entropy = reference["rows"], reference["entropy"]
    lines = [
        f"The held-out text ({rows} rows) has an entropy of {entropy:.3f} nats within a row. Along a sweep of one "
        "setting the log of the",
        "perplexity is interpolated linearly in the entropy, between neighbours on either side of the data's, and",
        'is "not reached" where there are none. `reached`: share of the bootstrap\'s resamples that do.',
        "",
    ]
    cells = [
        [
            entry["model"],
            _settings(entry["settings"]),
            f"{entry['varied']} {', '.join(map(str, entry['values']))}",
            " to ".join(f"{end:.3f}" for end in entry["entropies"]),
            entry["metric"],
            _figure({"mean": entry["perplexity"], "interval": entry["interval"]}),
            f"{entry['reached']:.0%}",
        ]
        for entry in frontier
    ]
    head = ["model", "held fixed", "sweep", "entropies", "metric", "at the data's entropy", "reached"]
    return lines + _table(head, cells) + ([] if frontier else ["No sweep: no setting was given two values."])


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def _settings(settings: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _figures(row: dict) -> list[str]:
    return [_figure(value) for value in row["metrics"].values()]


def _figure(value: dict) -> str:
    mean, interval = value["mean"], value["interval"]
    if mean is None:
        return "not reached"
    shown = _number(mean)
    return shown if interval is None else f"{shown} [{_number(interval[0])}, {_number(interval[1])}]"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:,.{1 if abs(value) >= 20 else 3}f}"


def picture(result: dict) -> Figure:
    """Perplexity against entropy, a panel for each scorer: lines are sweeps, black marks controls."""
    metrics = [name for name in result["rows"][0]["metrics"] if name.startswith("gppl ")]
    figure = Figure(figsize=(7.5 * len(metrics), 7), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    entropy = result["protocol"]["reference"]["entropy"]
    for axes, metric in zip(panels, metrics, strict=True):
        for (name, rows), marker in zip(_lines(result["rows"]).items(), cycle(MARKERS), strict=False):
            x, y = ([row["metrics"][key]["mean"] for row in rows] for key in ("entropy", metric))
            of_controls = {"color": "black", "linestyle": "none"} if rows[0]["kind"] == "control" else {}
            axes.plot(x, y, marker=marker, label=name, **of_controls)
        axes.axvline(entropy, color="0.7", linestyle=":", label="the data's entropy")
        axes.set(yscale="log", xlabel="entropy within a sample (nats)", ylabel="generative perplexity", title=metric)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return figure


def _lines(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each line of the picture, by its label. A line is a sweep of the temperature or of gamma, where a
    model has several, or else of the number of steps."""
    lines: dict[str, list[dict]] = {}
    for row in rows:
        own = [other["settings"] for other in rows if other["model"] == row["model"]]
        swept = {name for name in ("temperature", "gamma") if len({s[name] for s in own if name in s}) > 1}
        fixed = {name: value for name, value in row["settings"].items() if name not in swept}
        if len(fixed) == len(row["settings"]):
            fixed.pop("num_steps", None)
        lines.setdefault(", ".join([row["model"], *filter(None, [_settings(fixed)])]), []).append(row)
    return lines
