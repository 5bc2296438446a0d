"""Training with `torch_compile`: the graphs of the compiler, run as they are, give the losses of the plain run."""

import pytest
import torch
from torch._dynamo import config
from training import by_step, make_distiller, make_trainer
from transformers import AutoModel

from trainers import FLMTrainer

LASTING = dict(max_steps=12, eval_strategy="steps", eval_steps=6, gradient_accumulation_steps=2)


def make(kind: str, folder, **changes) -> FLMTrainer:
    changes |= LASTING | {"per_device_train_batch_size": 4, "learned_loss_weighting": True}
    if kind == "flow":
        return make_trainer(folder, **changes)
    return make_distiller(folder, 0, objective=kind, **changes)


@pytest.mark.parametrize("kind", ["flow", "semigroup", "lagrangian"])
def test_compiled_training_is_plain_training(kind, tmp_path):
    plain = make(kind, tmp_path / "plain")
    plain.train()
    compiled = make(kind, tmp_path / "compiled", torch_compile=True, torch_compile_backend="aot_eager")
    # Each step has seeds of its own: none may be taken for a constant, or every step would be compiled anew. A map's
    # forward is compiled with gradients and without, and for any batch.
    torch._dynamo.utils.counters.clear()
    with config.patch(recompile_limit=4, fail_on_recompile_limit_hit=True):
        compiled.train()
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    for name in ("loss", "eval_loss"):
        assert by_step(compiled, name) == pytest.approx(by_step(plain, name), rel=1e-5)
    compiled.save_model()
    AutoModel.from_pretrained(tmp_path / "compiled")
