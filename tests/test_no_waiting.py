"""A training step asks for no value of a tensor: on an accelerator the host would wait for the device each time.

So do those of `on_a_device.py`, which sees copies too, but cannot take forward-mode derivatives.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from pretended_device import depends_on_values
from torch.utils._python_dispatch import TorchDispatchMode
from training import make_distiller, make_trainer

from modeling_flm import checks_flm, embedding_flm, modeling_flm
from trainers import FLMTrainer


class NoValues(TorchDispatchMode):
    """Refuses operations whose result, or its shape, depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not depends_on_values(func, args), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def trainer_of(kind: str, folder, **changes) -> FLMTrainer:
    changes |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "learned_loss_weighting": True}
    return make_trainer(folder, **changes) if kind == "flow" else make_distiller(folder, 1, objective=kind, **changes)


def a_step(trainer: FLMTrainer, watch) -> None:
    """Both micro-batches of a step, forward and backward, while `watch`."""
    trainer.current_gradient_accumulation_steps = 2
    micro_batches, count = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 2, trainer.args.device)
    with watch:
        for batch in micro_batches:
            trainer.training_step(trainer.model, batch, count)
    assert all(p.grad is not None for p in trainer.model.lm_head.parameters())


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", ["flow", "semigroup", "lagrangian", "eulerian"])
def test_a_step_asks_for_no_value(kind, tmp_path, monkeypatch):
    # On a CPU arguments are looked at, which costs nothing there: here as on an accelerator.
    for module in (checks_flm, embedding_flm, modeling_flm):
        monkeypatch.setattr(module, "checkable", lambda x: False)
    a_step(trainer_of(kind, tmp_path, conditioning_rate=0.5), NoValues())


def test_what_would_wait_is_seen():
    for ask in (torch.Tensor.item, bool, torch.Tensor.nonzero, lambda x: x[x > 0], lambda x: torch.equal(x, x)):
        with NoValues(), pytest.raises(AssertionError, match="waits for the device"):
            ask(torch.ones(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["flow", "semigroup"])
def test_a_step_does_not_wait_for_a_gpu(kind, tmp_path):
    trainer = trainer_of(kind, tmp_path, use_cpu=False)
    a_step(trainer, nullcontext())  # the first allocates, and starts libraries
    a_step(trainer, no_waiting())
