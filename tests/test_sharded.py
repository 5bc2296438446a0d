"""Parameters sharded over two processes by FSDP2 (`fully_shard`) train as those of one do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def results(folder: Path, processes: int) -> tuple[list[float], dict, torch.Tensor]:
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, HERE / "sharded.py", folder], env=environment, check=True, timeout=300, cwd=folder)
    weights, drawn = torch.load(folder / "weights.pt", weights_only=True)
    return json.loads((folder / "losses.json").read_text()), weights, drawn


def test_sharded_parameters_train_and_write_as_whole_ones_do(tmp_path):
    whole, weights, drawn = results(tmp_path / "one", 1)
    sharded, gathered, drawn_sharded = results(tmp_path / "two", 2)
    assert sharded == pytest.approx(whole, rel=1e-5) and whole[-1] < whole[0]
    assert gathered.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(gathered[name], tensor, atol=1e-5, rtol=0)
    assert torch.equal(drawn_sharded, drawn)
