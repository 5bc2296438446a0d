"""In a training loop of one's own, too, parameters sharded over two processes train as whole ones do."""

import pytest
import torch
from children import HELPERS, TORCHRUN, WITH_HELPERS, run_python
from sharded import train
from training import fresh_model


def test_sharded_parameters_train_and_write_as_whole_ones_do(tmp_path):
    path, environment = tmp_path / "results.pt", dict(PYTHONPATH=WITH_HELPERS, OMP_NUM_THREADS="1")
    run_python(*TORCHRUN, 2, HELPERS / "sharded.py", path, cwd=tmp_path, **environment)
    sharded, gathered, drawn_sharded = torch.load(path, weights_only=True)
    whole, weights, drawn = train(fresh_model(num_loops=2))
    assert sharded == pytest.approx(whole, rel=1e-5) and whole[-1] < whole[0]
    assert gathered.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(gathered[name], tensor, atol=1e-5, rtol=0)
    assert torch.equal(drawn_sharded, drawn)
