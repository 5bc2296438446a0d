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
    found: set[str] = set()

    def before(part: str) -> list[Row]:
        return json.loads(results_file.read_text()).get(part, []) if results_file.exists() else []

    def measured(part: str) -> list[Row]:
        if request.models is not None and not before(part):
            sys.exit(f"{part} was not measured yet, so there are no rows of other models to keep: leave out --models.")
        rows = parts[part](request)
        found.update(str(row.get("model")) for row in rows)
        return rows if request.models is None else _beside_others(rows, before(part))

    measure_parts({name: partial(measured, name) for name in parts}, results_file, report, options.parts)
    if unknown := {*(request.models or ())} - found:
        sys.exit(f"no model {', '.join(sorted(unknown))} in {', '.join(options.parts or parts)}.")


def _beside_others(rows: list[Row], before: list[Row]) -> list[Row]:
    """The rows that were measured now, at the places of their models among those that were measured before."""
    by_model: dict[str, list[Row]] = {}
    for row in before:
        by_model.setdefault(str(row.get("model")), []).append(row)
    for model in {str(row.get("model")): None for row in rows}:
        by_model[model] = [row for row in rows if str(row.get("model")) == model]
    return [row for rows in by_model.values() for row in rows]
