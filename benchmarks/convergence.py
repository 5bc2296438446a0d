"""What the gradient through the noise is worth: three estimators of the same loss, by steps and by seconds.

    python -m benchmarks.convergence            # or some of it: python -m benchmarks.convergence flow-dense-1 seconds

    rao-blackwellised   the noise `x0 @ E` drawn in the embedded space: gradient E[x0 | x0 E]^T g (`embedded_noise`)
    dense               the noise drawn over the vocabulary, as the paper writes it: gradient x0^T g
    no gradient         the same value, and no gradient through it

Flows learn the English corpus from fresh weights (`recipes/english-small.yaml`, constant learning rate). Maps start
from the shipped flow (`recipes/english-small-fmlm.yaml`). Rows, times and steps are the same for all, with three seeds
each. The validation loss is that of the raw weights at fixed noise. Seconds are steps times the median time of one.
"""

import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import torch
from matplotlib.figure import Figure

from modeling_flm import FLMModel
from modeling_flm.noise_flm import NoiseLaw, white_noise
from trainers import FLMTrainer, fmlm_trainer
from trainers.recipe import load_recipe
from trainers.train import build_distiller, build_trainer

from .results import HUB, ROOT, SEEDS, Row, measure_parts, page, section, shown
from .timing import in_turn

RESULTS = ROOT / "benchmarks" / "convergence.json"
PICTURE = RESULTS.with_suffix(".png")
ESTIMATORS = ("rao-blackwellised", "dense", "no-gradient")
STEPS = {"flow": 320, "map": 80}
EVALUATIONS, TIMED = 8, 9  # in the course of a training; steps of each

_embedded = FLMModel._embed_noise_and_uniform
_shared = fmlm_trainer.shared_noise


def _noise(estimator: str, model: FLMModel, batch_size: int, length: int, generator, seeds, attention_mask):
    """`FLMModel._embed_noise_and_uniform` with another estimator of its gradient; the same in evaluation for all."""
    if estimator == "dense" and model.training:
        noise, uniform = white_noise(seeds, length, model.config.vocab_size, model.device)
        return model.embed_state(noise), uniform
    noise, uniform = _embedded(model, batch_size, length, generator, seeds, attention_mask)
    return noise.detach() if estimator == "no-gradient" else noise, uniform


def _shared_noise(
    estimator: str, tables: list[torch.Tensor], seeds: list[int], length: int, law: NoiseLaw | None, *padding
) -> list[torch.Tensor]:
    """`shared_noise` of a distillation, likewise."""
    if estimator == "dense":
        white, _ = white_noise(seeds, length, len(tables[0]), tables[0].device)
        return [white @ table for table in tables]
    noises = _shared(tables, seeds, length, law, *padding)
    return [noise.detach() for noise in noises] if estimator == "no-gradient" else noises


def trainer(what: str, estimator: str, seed: int, folder: str) -> FLMTrainer:
    """The trainer of a "flow" or a "map" with one of the estimators."""
    is_flow = what == "flow"
    recipe = load_recipe(ROOT / "recipes" / ("english-small.yaml" if is_flow else "english-small-fmlm.yaml"))
    every = STEPS[what] // EVALUATIONS
    recipe.training |= dict(output_dir=folder, seed=seed, max_steps=STEPS[what], eval_steps=every, logging_steps=every)
    recipe.training |= dict(ema_decay=0, conditioning_rate=0, num_samples=0, save_strategy="no", disable_tqdm=True)
    recipe.training |= dict(lr_scheduler_type="constant_with_warmup", warmup_steps=20)
    recipe.training["learning_rate"] = 1e-3 if is_flow else 5e-4
    if not is_flow:
        recipe.teacher = str(HUB / "flm-english-small")
    made = (build_trainer if is_flow else build_distiller)(recipe)
    made.model._embed_noise_and_uniform = partial(_noise, estimator, made.model)
    fmlm_trainer.shared_noise = partial(_shared_noise, estimator)
    return made


def losses(what: str, estimator: str, seed: int) -> list[Row]:
    """Validation losses in the course of one training; of a map, on the diagonal, and its own loss off it."""
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(what, estimator, seed, folder)
        made.train()
        log = made.state.log_history
    off = {e["step"]: {"off_diagonal": e["loss_off_diagonal"]} for e in log if "loss_off_diagonal" in e}
    of_all = {"estimator": estimator, "seed": seed}
    evaluated = [entry for entry in log if "eval_loss" in entry]
    return shown(of_all | {"step": e["step"], "loss": e["eval_loss"]} | off.get(e["step"], {}) for e in evaluated)


def step_of(what: str, estimator: str, folder: str) -> Callable[[], None]:
    """A training step, on the next batch with each call."""
    made = trainer(what, estimator, 1, folder)
    made.create_optimizer_and_scheduler(num_training_steps=STEPS[what])
    made.current_gradient_accumulation_steps = 1
    loader = iter(made.get_train_dataloader())
    batches = iter([next(loader) for _ in range(TIMED + 1)])  # before the time is taken

    def step() -> None:
        fmlm_trainer.shared_noise = partial(_shared_noise, estimator)
        (drawn,), _ = made.get_batch_samples(batches, 1, made.args.device)
        made.training_step(made.model, drawn)
        made.optimizer.step()
        made.optimizer.zero_grad()

    return step


def seconds() -> list[Row]:
    """The median time of a step of each, run in turn."""
    rows: list[Row] = []
    for what in STEPS:
        with tempfile.TemporaryDirectory() as folder:
            times = in_turn({estimator: step_of(what, estimator, folder) for estimator in ESTIMATORS}, TIMED)
        rows += [
            {"of": what, "estimator": e, "seconds a step": statistics.median(t), "seconds a step_sd": float(np.std(t))}
            for e, t in times.items()
        ]
    return rows


def curves(results: dict[str, list[Row]], what: str, measure: str) -> dict[str, dict[int, np.ndarray]]:
    """Of each estimator, by step: the values over the seeds."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for estimator in ESTIMATORS:
        rows = [row for seed in SEEDS for row in results.get(f"{what}-{estimator}-{seed}", []) if measure in row]
        steps = sorted({int(row["step"]) for row in rows})
        if rows:
            found[estimator] = {n: np.array([r[measure] for r in rows if r["step"] == n]) for n in steps}
    return found


def draw(results: dict[str, list[Row]]) -> None:
    """Loss against steps and against seconds, of flows and maps; the band is the range over the seeds."""
    pace = {(row["of"], row["estimator"]): row["seconds a step"] for row in results.get("seconds", [])}
    drawn = [what for what in STEPS if curves(results, what, "loss")]
    figure = Figure(figsize=(10, 3.5 * len(drawn)), layout="constrained")
    for what, axes in zip(drawn, figure.subplots(len(drawn), 2, squeeze=False), strict=True):
        for estimator, values in curves(results, what, "loss").items():
            steps = np.array(list(values))
            mean, low, high = (np.array([f(v) for v in values.values()]) for f in (np.mean, np.min, np.max))
            for ax, x in zip(axes, (steps, steps * pace.get((what, estimator), np.nan)), strict=True):
                ax.plot(x, mean, label=estimator)
                ax.fill_between(x, low, high, alpha=0.2)
        axes[0].set(ylabel=f"validation loss of the {what}, nats a token", xlabel="steps")
        axes[1].set(xlabel="seconds of one core")
        axes[0].legend()
    figure.savefig(PICTURE, dpi=100)


ABOUT = """
# Convergence by the gradient through the noise

`python -m benchmarks.convergence` measures everything here anew. Validation cross entropy of the denoiser,
nats a token, at fixed noise and uniform tau (of a map: on the diagonal; off it, its own training loss),
mean over the seeds ± standard deviation; rows of 128 tokens, 24 a step.
"""


def report(results: dict[str, list[Row]]) -> str:
    blocks = [ABOUT]
    for what, (measure, title) in product(STEPS, {"loss": "", "off_diagonal": ", off the diagonal"}.items()):
        rows: list[Row] = []
        for estimator, values in curves(results, what, measure).items():
            rows.append({"estimator": estimator, "seeds": min(map(len, values.values()))})
            for n, v in values.items():
                rows[-1] |= {
                    f"step {n}": float(v.mean()),
                    f"step {n}_sd": float(v.std(ddof=1)) if len(v) > 1 else None,
                }
        blocks.append(section(rows, f"The {what}{title}"))
    seconds = section(results.get("seconds"), f"A step (median of {TIMED}, run in turn ± standard deviation)")
    return page(*blocks, seconds, f"![Loss against steps and seconds]({PICTURE.name})")


PARTS = {
    f"{what}-{estimator}-{seed}": partial(losses, what, estimator, seed)
    for what, seed, estimator in product(STEPS, SEEDS, ESTIMATORS)
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    measure_parts(PARTS | {"seconds": seconds}, RESULTS, report)
    draw(json.loads(RESULTS.read_text()))
