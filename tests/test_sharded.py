"""In a training loop of one's own, too, parameters sharded over two processes train as whole ones do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sharded import train
from training import fresh_model

HERE = Path(__file__).parent


def test_sharded_parameters_train_and_write_as_whole_ones_do(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE / 'helpers'}", "OMP_NUM_THREADS": "1"}
    path = tmp_path / "results.pt"
    subprocess.run(
        [*command, HERE / "helpers" / "sharded.py", path], env=environment, check=True, timeout=300, cwd=tmp_path
    )
    sharded, gathered, drawn_sharded = torch.load(path, weights_only=True)
    whole, weights, drawn = train(fresh_model())
    assert sharded == pytest.approx(whole, rel=1e-5) and whole[-1] < whole[0]
    assert gathered.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(gathered[name], tensor, atol=1e-5, rtol=0)
    assert torch.equal(drawn_sharded, drawn)
