"""What test_on_a_device.py runs: `on_a_device.py FILE` does everything on the CPU and on a pretended device. FILE
gets, by case, what went wrong."""

import gc
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from accelerate import Accelerator, dispatch_model
from pretended_device import DEVICE, Device, pretended_device, register
from tiny import random_ids, tiny_model
from training import by_step, make_distiller, make_trainer, padded_rows
from transformers import TrainingArguments

from evaluation.likelihood import log_likelihood
from evaluation.scorers import CausalScorer
from evaluation.writers import Sweep, open_writer
from trainers import FLMTrainer

AR, MDLM = "benchmarks/baselines/ar-english-small", "benchmarks/baselines/mdlm-english-small"
PROMPT = torch.tensor([[3, 9, 4]])
GENERATIONS = {
    "one step": ("fmlm", {"num_steps": 1}),
    "flow map": ("fmlm", {"num_steps": 3, "gamma": 0.5}),
    "multistep": ("flm", {"sampler": "multistep"}),
    "bridge": ("flm", {"sampler": "bridge", "temperature": 0.8, "top_k": 5, "top_p": 0.9}),
    "guided by itself": ("fmlm", {"num_steps": 3, "guidance_scale": 3, "guidance_dropout": 0.2}),
    "guided by the prompt": ("fmlm", {"num_steps": 3, "guidance_scale": 2, "input_ids": PROMPT}),
    "rewarded": ("fmlm", {"num_steps": 3, "reward_fn": lambda ahead: ahead.probabilities[..., 5].sum(1)}),
    "refined": ("fmlm", {"num_steps": 2, "refine_steps": 2, "input_ids": PROMPT}),
    "restricted": ("fmlm", {"num_steps": 2, "suppress_tokens": [3, 7]}),
    "in windows": ("fmlm", {"num_steps": 1, "max_length": 30, "window_overlap": 4, "input_ids": PROMPT}),
}
TRAININGS = {
    "flow": {"gradient_accumulation_steps": 2, "conditioning_rate": 0.5},
    "semigroup": {"objective": "semigroup", "conditioning_rate": 0.5},
    "semigroup, averaged": {"objective": "semigroup", "ema_target": True, "gradient_accumulation_steps": 2},
    "semigroup, without a teacher": {"objective": "semigroup", "teacher": None},
}


def generate(name: str, float64: bool = True) -> None:
    kind, settings = GENERATIONS[name]
    settings = {"num_steps": 4} | settings | {"num_return_sequences": 4, "seed": 0}
    for vocab_size in (61, 11):  # wider and narrower than the model
        model = tiny_model(kind, vocab_size=vocab_size)
        expected = model.generate(**settings)
        with pretended_device(float64):
            ids = model.to(DEVICE).generate(**settings)
            assert str(ids.device) == DEVICE and torch.equal(ids.cpu(), expected)


def two_devices() -> None:
    """The layers of a model on the CPU and on the device, in turn, as a `device_map` puts them."""
    for here in (["embed_tokens", "layers.1", "norm"], ["embed_tokens", "layers.0", "lm_head", "time_embedding"]):
        model = tiny_model("fmlm", vocab_size=61, learned_positions=True, loss_weighting=True)
        names = [name for name, _ in model.named_children() if name != "layers"] + ["layers.0", "layers.1"]
        ids, times = random_ids(2, 12), torch.tensor([0.2, 0.6])
        question = {"labels": ids, "timesteps": times, "noise_seed": [1, 2]}
        settings = [values | {"seed": 0} for _, values in GENERATIONS.values()]
        expected = [model.generate(**values) for values in settings]
        loss, logits = model(**question).loss, model(input_ids=ids, timesteps=times).logits
        bound = log_likelihood(model, ids, num_steps=2).bound
        with pretended_device():
            places = {name: "cpu" if name in here else DEVICE for name in names}
            for name, place in places.items():
                model.get_submodule(name).to(place)
            model = dispatch_model(model, places, main_device="cpu")
            assert {str(parameter.device) for parameter in model.parameters()} == {"cpu", DEVICE}
            assert model.device == model.embed_tokens.weight.device
            torch.testing.assert_close(model(**question).loss.cpu(), loss)
            torch.testing.assert_close(model(input_ids=ids, timesteps=times).logits.cpu(), logits)
            for values, written in zip(settings, expected, strict=True):
                assert torch.equal(model.generate(**values).cpu(), written), values
            torch.testing.assert_close(log_likelihood(model, ids, num_steps=2).bound, bound)


def waits_of_generation() -> None:
    """A text in one step: whether the table is as it was, and whether its tokens are finite; no more is asked."""
    model = tiny_model("fmlm", vocab_size=61)
    with pretended_device() as device:
        model.to(DEVICE)
        for _ in range(2):
            device.waits.clear()
            model.generate(num_steps=1, seed=0)
    asked = [wait for wait in device.waits if "copy" not in wait]
    assert asked == ["aten.equal.default", "aten._local_scalar_dense.default"], asked


def trajectory() -> None:
    model = tiny_model("fmlm")
    expected = model.generate(PROMPT, num_steps=3, seed=0, output_trajectory=True)
    with pretended_device():
        out = model.to(DEVICE).generate(PROMPT, num_steps=3, seed=0, output_trajectory=True)
        assert torch.equal(out.trajectory.cpu(), expected.trajectory)
        torch.testing.assert_close(out.confidence.cpu(), expected.confidence)


def guided_by_a_model(float64: bool = True) -> None:
    settings = dict(num_steps=3, seed=0, guidance_scale=3.0)
    model, weak = tiny_model("fmlm", vocab_size=61), tiny_model("fmlm", vocab_size=61, hidden_size=16)
    expected = model.generate(guidance_model=weak, **settings)
    with pretended_device(float64):
        model.to(DEVICE), weak.to(DEVICE)
        assert torch.equal(model.generate(guidance_model=weak, **settings).cpu(), expected)


def loss_and_gradients(float64: bool = True) -> None:
    """Of `model(labels=...)`, as the plain Trainer takes it, with padding, a prompt and seeds in a column."""
    ids = random_ids(4, 12)
    batch = {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}
    batch["labels"][:, :3], batch["labels"][2, 9:], batch["attention_mask"][2, 9:] = -100, -100, 0
    batch["noise_seed"] = torch.arange(4)
    model = tiny_model("flm", hidden_dropout=0.0).train()
    model(**batch).loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    with pretended_device(float64):
        model.to(DEVICE)
        model(**{name: tensor.to(DEVICE) for name, tensor in batch.items()}).loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad.cpu(), expected[name], msg=name)


def evaluation_loss() -> None:
    """Without seeds, with padding on the left: noise and times come from the ids, for which the host waits."""
    ids = random_ids(4, 12)
    batch = {"labels": ids, "attention_mask": (torch.arange(12) >= torch.arange(4)[:, None]).long()}
    model = tiny_model("flm")
    expected = model(**batch)
    with pretended_device():
        found = model.to(DEVICE)(**{name: tensor.to(DEVICE) for name, tensor in batch.items()})
        torch.testing.assert_close(found.loss.cpu(), expected.loss)
        torch.testing.assert_close(found.timesteps.cpu(), expected.timesteps)


def likelihood() -> None:
    model, ids = tiny_model("flm"), random_ids(2, 6)
    expected = log_likelihood(model, ids, num_steps=4, seed=0)
    with pretended_device():
        found = log_likelihood(model.to(DEVICE), ids.to(DEVICE), num_steps=4, seed=0)
        torch.testing.assert_close(found.bound.cpu(), expected.bound)


def evaluation() -> None:
    """A flow, masked diffusion and a causal model write; the last one scores."""
    writings = []
    for source in ("hub_cards/fmlm-english-small", f"masked:{MDLM}", AR):
        for device in ("cpu", DEVICE):
            torch.manual_seed(0)
            with pretended_device():
                writer = open_writer(source, device)
                settings = writer.settings(Sweep([3], [], [], []))[0]
                writings.append(writer.write(settings, 2, [0], 16).ids)
        assert writings[-2] == writings[-1], source
    with pretended_device():
        expected, found = (CausalScorer(AR, device=device).score(writings[-1]) for device in ("cpu", DEVICE))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def make(kind: str, folder: str) -> FLMTrainer:
    changes = {"per_device_train_batch_size": 4, "learned_loss_weighting": True, "save_strategy": "no"}
    changes |= {"eval_strategy": "steps", "eval_steps": 2, "num_samples": 1, "sample_num_steps": [2]} | TRAININGS[kind]
    changes["train_dataset"] = padded_rows(32)
    return make_trainer(folder, **changes) if kind == "flow" else make_distiller(folder, 1, **changes)


def train(kind: str) -> None:
    """Four steps, with evaluations and samples: the CPU's losses, and after the first step nothing to wait for."""
    with tempfile.TemporaryDirectory() as folder:
        plain = make(kind, folder)
        plain.train()
    with tempfile.TemporaryDirectory() as folder, pretended_device() as device, for_training():
        trainer = make(kind, folder)
        waits = waits_of_steps(trainer, device)
        trainer.train()
        assert str(trainer.model.device) == DEVICE
    for name in ("loss", "eval_loss", "grad_norm"):
        expected, found = by_step(plain, name), by_step(trainer, name)
        assert expected.keys() == found.keys() and len(expected) > 0
        assert all(abs(found[step] - expected[step]) < 1e-5 for step in expected), (name, expected, found)
    micro_batches = trainer.args.gradient_accumulation_steps
    assert len(waits) == 4 * micro_batches and not any(waits[micro_batches:]), waits


@contextmanager
def for_training() -> Iterator[None]:
    """Within the context the Trainer and accelerate take the pretended device for the one to use."""
    found = TrainingArguments.device.fget  # which sets up other things, too
    asked = property(lambda args: (found(args), torch.device(DEVICE))[1])
    placed = property(lambda accelerator: torch.device(DEVICE))
    with mock.patch.object(TrainingArguments, "device", asked), mock.patch.object(Accelerator, "device", placed):
        yield


def waits_of_steps(trainer: FLMTrainer, device: Device) -> list[list[str]]:
    """A list that gets what each micro-batch waits for, forward and backward."""
    waits, step = [], trainer.training_step

    def watched(*args):
        before = len(device.waits)
        loss = step(*args)
        waits.append(device.waits[before:])
        return loss

    trainer.training_step = watched
    return waits


def without_float64() -> None:
    """What is done in float64 elsewhere is done in float32 or on the CPU, as on MPS."""
    for name in ("one step", "flow map", "multistep", "bridge", "refined"):
        generate(name, float64=False)
    guided_by_a_model(float64=False)
    loss_and_gradients(float64=False)


CASES: dict[str, Callable[[], None]] = {
    **{f"generate, {name}": partial(generate, name) for name in GENERATIONS},
    **{f"train, {name}": partial(train, name) for name in TRAININGS},
    "two devices": two_devices,
    "waits of generation": waits_of_generation,
    "trajectory": trajectory,
    "guided by a model": guided_by_a_model,
    "loss and gradients": loss_and_gradients,
    "evaluation loss": evaluation_loss,
    "likelihood": likelihood,
    "without float64": without_float64,
    "evaluation": evaluation,
}


if __name__ == "__main__":
    register()
    gc.freeze()  # or each training looks through all that was imported
    torch.set_num_threads(1)
    wrong = {}
    for name, case in CASES.items():
        try:
            case()
            wrong[name] = ""
        except Exception:
            wrong[name] = traceback.format_exc()
    Path(sys.argv[1]).write_text(json.dumps(wrong))
