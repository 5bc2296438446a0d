"""A model folder is loaded for the first time where that is hard: without a network, with a cache that cannot be
written, by two processes at once."""

import json

import pytest
from children import HELPERS, WITH_HELPERS, run_python
from first_loads import TIMES_AT_ONCE
from tiny import tiny_model

WELL = {"signal": 0, "message": ""}


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> dict:
    """How each of the processes ended in which `first_loads.py` loads a model."""
    root, model = tmp_path_factory.mktemp("first"), tiny_model("fmlm")
    model.save_pretrained(root / "model")
    (root / "ids.json").write_text(json.dumps(model.generate(num_steps=2, seed=0).tolist()))
    run_python(HELPERS / "first_loads.py", root / "model", root, cwd=root, PYTHONPATH=WITH_HELPERS, HF_HUB_OFFLINE="1")
    return json.loads((root / "ends.json").read_text())


@pytest.mark.parametrize("case", ["offline", "read-only, filled"])
def test_a_model_loads(ends, case):
    assert ends[case] == WELL


@pytest.mark.parametrize("case, error", [("read-only, empty", "PermissionError"), ("no folder", "FileExistsError")])
def test_a_cache_that_cannot_be_written_is_named(ends, case, error):
    end = ends[case]
    assert end["signal"] == 0 and error in end["message"]
    assert ("/empty/" if "empty" in case else "/file") in end["message"]


def test_two_processes_at_once_leave_a_whole_cache(ends):
    """transformers copies the code without a lock: a process may read half a file that the other one writes. Then it
    says so, and does not load a wrong model; and whatever happened, the next one loads."""
    both = [end for pair in ends["at once"] for end in pair]
    assert len(both) == 2 * TIMES_AT_ONCE and all(end["signal"] == 0 for end in both)
    assert all("Error: " in end["message"] and "AssertionError" not in end["message"] for end in both if end != WELL)
    assert ends["after it"] == [WELL] * TIMES_AT_ONCE
