"""What the benchmarks of quality share: measures over seeds, their tables, and files that keep them part by part."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
HUB, BASELINES, CORPUS = ROOT / "hub_cards", ROOT / "benchmarks" / "baselines", ROOT / "examples" / "corpus"
SEEDS = (1, 2, 3)

Row = dict[str, object]


def over_seeds(measure: Callable[[int], Row], seeds: Sequence[int] = SEEDS) -> Row:
    """`measure` of each seed; its numbers become mean and, of several seeds, standard deviation."""
    rows = [measure(seed) for seed in seeds]
    measured: Row = {}
    for name in rows[0]:
        values = [number(row[name]) for row in rows]
        measured[name] = float(np.mean(values))
        if len(seeds) > 1:
            measured[f"{name}_sd"] = float(np.std(values, ddof=1))
    return measured


def number(value: object) -> float:
    return float(str(value))


def show(row: Row) -> None:
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items() if not k.endswith("_sd")}, flush=True)


def table(rows: list[Row]) -> str:
    """The rows as Markdown, each figure with its standard deviation over the seeds where there is one."""
    columns = [name for name in {name: None for row in rows for name in row} if not name.endswith("_sd")]
    lines = ["| " + " | ".join(columns).replace("_", " ") + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = [_cell(row.get(name), row.get(f"{name}_sd")) for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value, spread) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        digits = 1 if abs(value) >= 20 else 3
        return f"{value:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")
    return str(value)


def measure_parts(
    parts: Mapping[str, Callable[[], list[Row]]],
    results_file: Path,
    report: Callable[[dict[str, list[Row]]], str],
    wanted: Sequence[str] | None = None,
) -> None:
    """Measure the `wanted` parts, by default those that the command line names, all if it names none; the others stay
    as they were. After each part results go to `results_file`, and `report` of them to the Markdown file beside it."""
    wanted = sys.argv[1:] if wanted is None else wanted
    unknown = {*wanted} - parts.keys()
    if unknown:
        sys.exit(f"unknown part {', '.join(sorted(unknown))}: choose from {', '.join(parts)}.")
    for name in wanted or parts:
        measured = parts[name]()
        # Read only now: another part may have been measured meanwhile.
        results = json.loads(results_file.read_text()) if results_file.exists() else {}
        results[name] = measured
        results_file.write_text(json.dumps(results, indent=1) + "\n")
        results_file.with_suffix(".md").write_text(report(results))
