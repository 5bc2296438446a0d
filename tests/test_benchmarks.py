"""Results of the benchmarks, kept part by part and model by model."""

import json

import pytest

from benchmarks.request import Request, measure_models
from benchmarks.results import Row


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs a benchmark of two models with these arguments; its results are those of the file."""
    file = tmp_path / "results.json"
    runs = iter(range(9))

    def tales(request: Request) -> list[Row]:
        run = next(runs)
        return [{"model": model, "run": run} for model in ("flow", "map", "flow") if request.wants(model)]

    def numbers(request: Request) -> list[Row]:
        return [{"run": next(runs)}]

    def run(*arguments: str) -> dict[str, list[Row]]:
        monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
        measure_models("A benchmark", {"numbers": numbers, "tales": tales}, file, lambda rows: f"{len(rows)} parts\n")
        return json.loads(file.read_text())

    return run


def test_parts_that_are_not_named_stay(command, tmp_path):
    assert [row["run"] for row in command()["numbers"]] == [0]
    results = command("tales")
    assert [row["run"] for row in results["numbers"] + results["tales"]] == [0, 2, 2, 2]
    assert (tmp_path / "results.md").read_text() == "2 parts\n"


def test_rows_of_models_that_are_not_named_stay(command):
    command()
    rows = command("tales", "--models", "flow")["tales"]
    assert [(row["model"], row["run"]) for row in rows] == [("flow", 2), ("flow", 2), ("map", 1)]


def test_unknown_parts_and_models_are_refused(command):
    command()
    with pytest.raises(SystemExit, match="unknown part tails: choose from numbers, tales."):
        command("tails")
    with pytest.raises(SystemExit, match="no model masked in tales."):
        command("tales", "--models", "map", "masked")
    assert [row["run"] for row in command("numbers")["tales"]] == [1, 1, 2]  # what was measured is kept
    with pytest.raises(SystemExit, match="no model map in numbers."):
        command("numbers", "--models", "map")


def test_rows_of_one_model_go_beside_others(command):
    with pytest.raises(SystemExit, match="tales was not measured yet, so .*: leave out --models."):
        command("tales", "--models", "map")
