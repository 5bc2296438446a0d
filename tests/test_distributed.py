"""Two processes train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training import distance, weights
from transformers import AutoModel
from two_processes import CASES, RESUMED_FROM, run, run_all

from modeling_flm import FLMModel

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    return tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def one(folders) -> dict:
    return run_all(folders[0], batch_size=8)


@pytest.fixture(scope="module")
def two(folders) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, HERE / "two_processes.py", folders[1]], env=environment, check=True, timeout=300, cwd=folders[1]
    )
    return json.loads((folders[1] / "results.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(folders, one, two, case):
    a, b = one[case], two[case]
    assert (a["processes"], b["processes"]) == (1, 2)
    assert a["steps"] == b["steps"] == 4
    assert a["eval_loss"].keys() == {"2", "4"}
    for name in ("loss", "eval_loss", "eval_loss_tau_0.0_0.2"):
        assert b[name] == pytest.approx(a[name], rel=1e-5)
    assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
    averages = (weights(AutoModel.from_pretrained(folder / case)) for folder in folders)
    assert distance(*averages) < 1e-5


def test_two_processes_go_on_from_their_checkpoint(two):
    assert two["resumed"] == two["plain"]


def test_one_process_goes_on_from_a_checkpoint_of_two(folders, one, two, tmp_path):
    checkpoint = folders[1] / "plain" / f"checkpoint-{RESUMED_FROM}"
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
    resumed = json.loads(json.dumps(run(tmp_path, "plain", batch_size=8, resume=str(checkpoint))))
    assert resumed["loss"] == pytest.approx(one["plain"]["loss"], rel=1e-5)
    assert distance(*(weights(FLMModel.from_pretrained(f / "plain")) for f in (tmp_path, folders[0]))) < 1e-5


def test_samples_are_drawn_once(folders, one, two):
    one_file, two_file = ((folder / "plain" / "samples.jsonl").read_text() for folder in folders)
    assert len(two_file.splitlines()) == 2
    assert one_file == two_file
