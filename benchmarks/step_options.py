"""What the options of a training step are worth: activation checkpointing, one law of the noise, the fused optimiser.

    python -m benchmarks.step_options             # or a part: python -m benchmarks.step_options accumulation

    checkpointing   a step with and without `activation_checkpointing=True`, which works out activations twice
    accumulation    a step of four small micro-batches that share the law of the noise (`NoiseLaw`), as the trainers
                    have it, or have each their own
    optimiser       AdamW alone, with its loop over the parameters or fused (the trainers' default)

The model is that of `benchmarks.training_step`.
"""

import statistics
import tempfile
from collections.abc import Callable
from functools import partial

import torch

from modeling_flm import FLMConfig, FLMModel
from modeling_flm.noise_flm import NoiseLaw
from trainers import FLMTrainer

from .results import ROOT, Row, measure_parts, page, sections
from .timing import DEVICE, compared, growth, in_its_own_process, in_turn
from .training_step import SIZES, TURNS, Size, trainer

RESULTS = ROOT / "benchmarks" / "step_options.json"
LONG, SMALL = SIZES["owt-4"], Size(30_522, 128, 4)
MICRO_BATCHES = 4

Ways = dict[str, Callable[[], object]]  # in pairs: without the option, with it


def step(made: FLMTrainer, batches: list[dict], one_law: bool = True) -> None:
    """Forward and backward of all micro-batches."""
    drawn, count = made.get_batch_samples(map(dict, batches), len(batches), made.args.device)
    for batch in drawn:
        if not one_law:
            made.model._kept_law, made._law = None, NoiseLaw()  # the flow's is the first, the map's the second
        made.training_step(made.model, batch, count)
    made.model.zero_grad()


def with_and_without_checkpointing(folder: str) -> Ways:
    plain, checkpointing = trainer("flow", LONG, folder), trainer("flow", LONG, folder)
    checkpointing.model.activation_checkpointing_enable()
    ways = {"plain": plain, "activation checkpointing": checkpointing}
    return {way: partial(step, made, list(made.get_train_dataloader())) for way, made in ways.items()}


def of_micro_batches(folder: str) -> Ways:
    ways: Ways = {}
    for kind in ("flow", "map"):
        made = trainer(kind, SMALL, folder, MICRO_BATCHES)
        batches = list(made.get_train_dataloader())
        ways[f"{kind}, a law for each micro-batch"] = partial(step, made, batches, False)
        ways[f"{kind}, one law of the noise"] = partial(step, made, batches, True)
    return ways


def of_optimisers(folder: str) -> Ways:
    parameters = list(FLMModel(FLMConfig(**LONG.config())).to(DEVICE).parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    ways = {"AdamW": False, "AdamW, fused": True}
    return {way: torch.optim.AdamW(parameters, lr=1e-4, fused=fused).step for way, fused in ways.items()}


WAYS: dict[str, tuple[str, Callable[[str], Ways]]] = {
    "checkpointing": (f"V {LONG.vocab_size:,}, {LONG.tokens:,} tokens", with_and_without_checkpointing),
    "accumulation": (
        f"V {SMALL.vocab_size:,}, {MICRO_BATCHES} micro-batches of {SMALL.tokens} tokens",
        of_micro_batches,
    ),
    "optimiser": (f"V {LONG.vocab_size:,}", of_optimisers),
}


def memory(part: str, way: str) -> float:
    """GiB that two steps need beyond the loaded models."""
    with tempfile.TemporaryDirectory() as folder:
        run = WAYS[part][1](folder)[way]
        return growth(lambda: [run() for _ in range(2)])


def measure(part: str) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        seconds = in_turn(WAYS[part][1](folder), TURNS)
    ways = list(seconds)

    def more(way: str, median: float) -> Row:
        plain = seconds[ways[ways.index(way) // 2 * 2]]  # the first of its pair
        return {"x plain": median / statistics.median(plain), "peak GiB": in_its_own_process(memory, part, way)}

    return compared(seconds, more)


ABOUT = f"""
# Options of a training step

`python -m benchmarks.step_options` measures everything here anew: forward and backward (optimiser: its step
alone), float32 on a CPU, median of {TURNS}, run in turn. Memory: beyond the loaded models.
"""


def report(results: dict[str, list[Row]]) -> str:
    return page(ABOUT, *sections(results, {part: f"{part.capitalize()} ({size})" for part, (size, _) in WAYS.items()}))


if __name__ == "__main__":
    measure_parts({part: partial(measure, part) for part in WAYS}, RESULTS, report)
