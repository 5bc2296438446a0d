"""What the benchmarks share: measures over seeds, tables, pages, and files that keep results part by part."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
HUB, BASELINES, CORPUS = ROOT / "hub_cards", ROOT / "benchmarks" / "baselines", ROOT / "examples" / "corpus"
SEEDS = (1, 2, 3)

Row = dict[str, Any]


def over_seeds(measure: Callable[[int], Row], seeds: Sequence[int] = SEEDS) -> Row:
    """`measure` of each seed; its numbers become mean and, of several seeds, standard deviation."""
    rows = [measure(seed) for seed in seeds]
    measured: Row = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        measured[name] = float(np.mean(values))
        if len(seeds) > 1:
            measured[f"{name}_sd"] = float(np.std(values, ddof=1))
    return measured


def show(row: Row) -> None:
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items() if not k.endswith("_sd")}, flush=True)


def shown(rows: Iterable[Row]) -> list[Row]:
    """The rows as a list. Each is printed as soon as it is measured."""
    measured = []
    for row in rows:
        show(row)
        measured.append(row)
    return measured


def table(rows: list[Row]) -> str:
    """The rows as Markdown. A figure has its standard deviation beside it where there is one. The machine on which the
    rows were measured stands below them."""
    names = {name: None for row in rows for name in row}
    columns = [name for name in names if not name.endswith("_sd") and name != "machine"]
    lines = ["| " + " | ".join(columns).replace("_", " ") + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = [_cell(row.get(name), row.get(f"{name}_sd")) for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    if "machine" in names:
        lines += ["", f"({rows[0]['machine']})"]
    return "\n".join(lines)


def _cell(value, spread) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        digits = 1 if abs(value) >= 20 else 3
        return f"{value:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")
    return str(value)


def section(rows: list[Row] | None, title: str, *text: str) -> str:
    """A section of a page: title, text and a table of the rows. Without rows it is empty."""
    return page(f"## {title}", *text, table(rows)) if rows else ""


def sections(results: dict[str, list[Row]], titles: Mapping[str, str]) -> list[str]:
    """A section for each part in `titles` that was measured."""
    return [section(results.get(part), title) for part, title in titles.items()]


def page(*blocks: str) -> str:
    """Blocks of Markdown with a blank line between them. Empty ones are left out."""
    return "\n\n".join(block.strip("\n") for block in blocks if block) + "\n"


def measure_parts(
    parts: Mapping[str, Callable[[], list[Row]]],
    results_file: Path,
    report: Callable[[dict[str, list[Row]]], str],
    wanted: Sequence[str] | None = None,
) -> None:
    """Measure the `wanted` parts and keep the others as they were measured before. After each part the results go to
    `results_file`, and their report goes to the Markdown file beside it.

    Args:
        parts: what measures each part, by the name of the part.
        wanted: names of parts; by default the arguments of the command, or all parts if it has none.
    """
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
