"""Runs that are killed, or meet a full disk, at any moment go on to the losses of a run that was not."""

import json
from pathlib import Path

import pytest
from children import HELPERS, WITH_HELPERS, run_python
from interrupted_runs import FULL_DISKS, KILLS, RANDOM_KILLS, make
from training import by_step, same, weights

from modeling_flm import FLMModel
from trainers.checkpoints import is_whole, last_whole_checkpoint

# The checkpoint that is left to go on from, where it is not that of step 2.
LEFT = {"before the first checkpoint": None, "while an old checkpoint is removed": 4}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    trainer = make(tmp_path_factory.mktemp("whole"))
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of the runs, and how each of them ended."""
    root = tmp_path_factory.mktemp("interrupted")
    run_python(HELPERS / "interrupted_runs.py", root, cwd=root, PYTHONPATH=WITH_HELPERS)
    return root, json.loads((root / "ends.json").read_text())


def go_on(folder: Path, uninterrupted) -> None:
    """Resume the run in `folder` and see that it becomes the uninterrupted one."""
    resumed = make(folder, model_seed=1)
    resumed.train(resume_from_checkpoint=True)
    for name in ("loss", "grad_norm", "eval_loss"):
        assert by_step(resumed, name) == by_step(uninterrupted, name)
    assert same(weights(resumed.model), weights(uninterrupted.model))
    assert same(resumed.ema.average, uninterrupted.ema.average)


@pytest.mark.parametrize("moment", KILLS)
def test_a_killed_run_goes_on_to_the_same_losses(interrupted, uninterrupted, moment):
    root, ends = interrupted
    assert ends[moment] == {"signal": 9, "message": ""}
    left = LEFT.get(moment, 2)
    if left is None:
        assert last_whole_checkpoint(root / moment) is None
        return
    assert last_whole_checkpoint(root / moment).name == f"checkpoint-{left}"
    go_on(root / moment, uninterrupted)
    assert is_whole(root / moment / "checkpoint-6")
    assert not list((root / moment).rglob(".saving-*")), "what the killed save left behind is still there"


@pytest.mark.parametrize("seed", range(RANDOM_KILLS))
def test_a_run_killed_at_any_moment_goes_on_to_the_same_losses(interrupted, uninterrupted, seed):
    root, ends = interrupted
    folder = root / f"random {seed}"
    assert ends[folder.name]["signal"] in (0, 9) and ends[folder.name]["message"] == ""
    if last_whole_checkpoint(folder) is not None:  # killed before the first: there is nothing to go on from
        go_on(folder, uninterrupted)


def test_kills_at_random_moments_met_the_run(interrupted):
    _, ends = interrupted
    of_random = [ends[f"random {seed}"] for seed in range(RANDOM_KILLS)]
    assert sum(end["signal"] == 9 for end in of_random) > RANDOM_KILLS / 2
    assert len({end["left"] for end in of_random}) > 2


@pytest.mark.parametrize("limit", FULL_DISKS)
def test_a_full_disk_is_an_error_and_the_last_checkpoint_stays_whole(interrupted, uninterrupted, limit):
    root, ends = interrupted
    end = ends[f"{limit} bytes"]
    assert end["signal"] == 0 and "Error" in end["message"]
    assert last_whole_checkpoint(root / f"{limit} bytes").name == "checkpoint-2"
    go_on(root / f"{limit} bytes", uninterrupted)


@pytest.mark.parametrize("limit", FULL_DISKS[:3])
def test_saving_over_a_model_on_a_full_disk_leaves_the_old_model(interrupted, limit):
    root, ends = interrupted
    end, folder = ends[f"over an old model, {limit} bytes"], root / f"over an old model, {limit} bytes"
    assert end["signal"] == 0 and "Error" in end["message"]
    model, before = (weights(FLMModel.from_pretrained(folder / name)) for name in ("model", "before"))
    assert same(model, before)
