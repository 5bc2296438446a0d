"""What the gradient through the noise is worth: three estimators of the same loss, by steps and by seconds.

    python -m benchmarks.convergence                        # or some of it:
    python -m benchmarks.convergence flow-dense-1 seconds

    rao-blackwellised   the noise `x0 @ E` drawn in the embedded space: gradient E[x0 | x0 E]^T g (`embedded_noise`)
    dense               the noise drawn over the vocabulary, as the paper writes it: gradient x0^T g
    no gradient         the same value, and no gradient through it

Flows on the English corpus from fresh weights (`recipes/english-small.yaml`, constant learning rate), and maps of the
shipped flow (`recipes/english-small-fmlm.yaml`), the same rows, times and steps for all, three seeds each. The
validation loss is that of the raw weights at fixed noise. Seconds are the steps times the median time of one, which is
measured with the three run in turn in one process.
"""

import json
import statistics
import tempfile
import time
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

from modeling_flm import FLMModel
from modeling_flm.noise_flm import NoiseLaw, white_noise
from trainers import FLMTrainer, fmlm_trainer
from trainers.recipe import load_recipe
from trainers.train import build_distiller, build_trainer

from .results import HUB, ROOT, SEEDS, Row, measure_parts, number, table

RESULTS = ROOT / "benchmarks" / "convergence.json"
PICTURE = RESULTS.with_suffix(".png")
ESTIMATORS = ("rao-blackwellised", "dense", "no-gradient")
STEPS = {"flow": 320, "map": 80}
EVALUATIONS = 8  # in the course of a training
TIMED = 9  # steps of each

_embedded = FLMModel._embed_noise_and_uniform
_shared = fmlm_trainer.shared_noise


def _noise(estimator: str, model: FLMModel, batch_size: int, length: int, generator, seeds, law, attention_mask):
    """`FLMModel._embed_noise_and_uniform` with another estimator of its gradient; the same in evaluation for all."""
    if estimator == "dense" and model.training:
        noise, uniform = white_noise(seeds, length, model.config.vocab_size, model.device)
        return model.embed_state(noise), uniform
    noise, uniform = _embedded(model, batch_size, length, generator, seeds, law, attention_mask)
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


def trainer(what: str, estimator: str, seed: int, folder: str, **changes) -> FLMTrainer:
    """The trainer of a flow or a map with one of the estimators."""
    recipe = load_recipe(ROOT / "recipes" / ("english-small.yaml" if what == "flow" else "english-small-fmlm.yaml"))
    recipe.training |= {
        "output_dir": folder,
        "seed": seed,
        "max_steps": STEPS[what],
        "learning_rate": 1e-3 if what == "flow" else 5e-4,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 20,
        "ema_decay": 0,
        "conditioning_rate": 0,
        "eval_steps": STEPS[what] // EVALUATIONS,
        "logging_steps": STEPS[what] // EVALUATIONS,
        "num_samples": 0,
        "save_strategy": "no",
        "disable_tqdm": True,
        **changes,
    }
    if what == "map":
        recipe.teacher = str(HUB / "flm-english-small")
    made = (build_trainer if what == "flow" else build_distiller)(recipe)
    made.model._embed_noise_and_uniform = partial(_noise, estimator, made.model)
    fmlm_trainer.shared_noise = partial(_shared_noise, estimator)
    return made


def losses(what: str, estimator: str, seed: int) -> list[Row]:
    """Validation losses in the course of one training; of a map, on the diagonal, and its own loss off it."""
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(what, estimator, seed, folder)
        made.train()
        log = made.state.log_history
    off = {entry["step"]: entry["loss_off_diagonal"] for entry in log if "loss_off_diagonal" in entry}
    rows: list[Row] = []
    for entry in log:
        if "eval_loss" in entry:
            rows.append({"estimator": estimator, "seed": seed, "step": entry["step"], "loss": entry["eval_loss"]})
            rows[-1] |= {"off_diagonal": off[entry["step"]]} if entry["step"] in off else {}
    print(*rows, sep="\n", flush=True)
    return rows


def seconds() -> list[Row]:
    """The median time of a step of each, run in turn."""
    rows: list[Row] = []
    for what in STEPS:
        times: dict[str, list[float]] = {estimator: [] for estimator in ESTIMATORS}
        with tempfile.TemporaryDirectory() as folder:
            steps = {}
            for estimator in ESTIMATORS:
                made = trainer(what, estimator, 1, folder)
                made.create_optimizer_and_scheduler(num_training_steps=STEPS[what])
                made.current_gradient_accumulation_steps = 1
                steps[estimator] = made, iter(made.get_train_dataloader())
            for turn in range(TIMED + 1):
                for estimator, (made, batches) in steps.items():
                    fmlm_trainer.shared_noise = partial(_shared_noise, estimator)
                    batch = next(batches)
                    before = time.perf_counter()
                    (drawn,), _ = made.get_batch_samples(iter([batch]), 1, made.args.device)
                    made.training_step(made.model, drawn)
                    made.optimizer.step()
                    made.optimizer.zero_grad()
                    if turn > 0:  # the first warms up
                        times[estimator].append(time.perf_counter() - before)
        rows += [
            {"of": what, "estimator": e, "seconds a step": statistics.median(t), "seconds a step_sd": float(np.std(t))}
            for e, t in times.items()
        ]
    return rows


# -- report -----------------------------------------------------------------------------------------------------------


def curves(results: dict[str, list[Row]], what: str, measure: str) -> dict[str, dict[int, np.ndarray]]:
    """By estimator and step: the values over the seeds."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for estimator in ESTIMATORS:
        rows = [row for seed in SEEDS for row in results.get(f"{what}-{estimator}-{seed}", []) if measure in row]
        steps = sorted({int(number(row["step"])) for row in rows})
        if rows:
            found[estimator] = {n: np.array([number(r[measure]) for r in rows if r["step"] == n]) for n in steps}
    return found


def draw(results: dict[str, list[Row]]) -> None:
    """Loss against steps and against seconds, of flows and maps; the band is the range over the seeds."""
    pace = {(row["of"], row["estimator"]): number(row["seconds a step"]) for row in results.get("seconds", [])}
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


def report(results: dict[str, list[Row]]) -> str:
    text = [
        "# Convergence by the gradient through the noise",
        "",
        "`python -m benchmarks.convergence` measures everything here anew. Validation cross entropy of the denoiser,",
        "nats a token, at fixed noise and uniform tau (of a map: on the diagonal; off it, its own training loss),",
        "mean over the seeds ± standard deviation; rows of 128 tokens, 24 a step.",
    ]
    for what in STEPS:
        for measure, title in (("loss", f"The {what}"), ("off_diagonal", f"The {what}, off the diagonal")):
            rows = [
                {"estimator": e, "seeds": min(map(len, values.values()))}
                | {f"step {n}{end}": f(v) for n, v in values.items() for end, f in _SPREAD.items()}
                for e, values in curves(results, what, measure).items()
            ]
            if rows:
                text += ["", f"## {title}", "", table(rows)]
    if "seconds" in results:
        text += ["", f"## A step (median of {TIMED}, run in turn ± standard deviation)", "", table(results["seconds"])]
    return "\n".join([*text, "", f"![Loss against steps and seconds]({PICTURE.name})"]) + "\n"


_SPREAD = {"": lambda v: float(v.mean()), "_sd": lambda v: float(v.std(ddof=1)) if len(v) > 1 else None}


PARTS = {
    f"{what}-{estimator}-{seed}": partial(losses, what, estimator, seed)
    for what in STEPS
    for seed in SEEDS
    for estimator in ESTIMATORS
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    measure_parts(PARTS | {"seconds": seconds}, RESULTS, report)
    draw(json.loads(RESULTS.read_text()))
