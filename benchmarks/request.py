"""The command of a benchmark of several models: which parts and models to measure, and where the stories are."""

import argparse
import json
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.results import Row, measure_parts
from benchmarks.stories import Stories, add_stories


@dataclass
class Request:
    """What the command of a benchmark is to measure.

    Args:
        stories: where the stories are.
        models (*optional*): the models to measure, by default all.
    """

    stories: Stories
    models: Collection[str] | None = None

    def wants(self, model: str) -> bool:
        """Whether a model is to be measured."""
        return self.models is None or model in self.models


def measure_models(
    about: str,
    parts: Mapping[str, Callable[[Request], list[Row]]],
    results_file: Path,
    report: Callable[[dict[str, list[Row]]], str],
) -> None:
    """Run the command of a benchmark: `measure_parts` of the parts and models that its arguments name; `about` is the
    command's description."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; default: all")
    add_stories(parser)
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="these only; rows of other models stay")
    options = parser.parse_args()
    request = Request(Stories(options.train, options.validation), options.models)

    def measured(name: str) -> list[Row]:
        rows = parts[name](request)
        return rows if request.models is None else _beside_others(rows, name, request.models, results_file)

    measure_parts({name: partial(measured, name) for name in parts}, results_file, report, options.parts)


def _beside_others(rows: list[Row], part: str, models: Collection[str], results_file: Path) -> list[Row]:
    """The rows of `models` that were measured now, at their places among those of a part that were measured before."""
    if unknown := {*models} - {str(row.get("model")) for row in rows}:
        sys.exit(f"no model {', '.join(sorted(unknown))} in {part}.")
    by_model: dict[str, list[Row]] = {}
    for row in json.loads(results_file.read_text())[part]:
        by_model.setdefault(str(row.get("model")), []).append(row)
    for model in models:
        by_model[model] = [row for row in rows if row["model"] == model]
    return [row for rows in by_model.values() for row in rows]
