"""The ablation of the paper at the scale of 4x4 Sudoku: writes ablation.json and ablation.md.

    python -m benchmarks.ablation
    python -m benchmarks.ablation lagrangian mse     # some of it; the others stay as they were measured

Every map starts from the shipped flow (hub_cards/flm-shidoku) and gets the same number of steps of the same recipe,
with one thing changed. Without the clock, tau is the interpolation time itself, in the flow too, which is trained anew
for as many steps as its map and compared with a pair that is trained so with the clock.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.few_step import GRIDS, unconditional
from benchmarks.results import HUB, ROOT, Row, measure_parts, over_seeds, show, table
from modeling_flm import FLMModel
from modeling_flm.clock_flm import Clock
from trainers import FLMTrainer
from trainers.recipe import Recipe, load_recipe
from trainers.train import build_distiller, build_trainer

RESULTS = ROOT / "benchmarks" / "ablation.json"
STEPS = (1, 2, 4, 8)
TRAINING_STEPS, BATCH = 500, 64
LONG = 2400  # steps of the shipped map
TRAINING_SEEDS = (42, 43)


class NoClock(Clock):
    """tau = t."""

    def tau(self, t: Tensor) -> Tensor:
        return t

    def t(self, tau: Tensor) -> Tensor:
        return tau

    def dtau_dt(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


def recipe(name: str, **changes) -> Recipe:
    changes = {
        "max_steps": TRAINING_STEPS,
        "per_device_train_batch_size": BATCH,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 500,
        **changes,
    }
    read = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    read.training |= changes
    return read


def distilled(teacher: Path | None, clock: type[Clock] = Clock, **changes) -> FLMModel:
    """A map trained for TRAINING_STEPS from the flow in `teacher` (None: from itself, with fresh weights)."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = recipe("shidoku-fmlm", output_dir=folder, **changes)
        wanted.teacher = None if teacher is None else str(teacher)
        if teacher is None:
            wanted.model = recipe("shidoku").model
        return _trained(build_distiller(wanted), clock)


def _trained(trainer: FLMTrainer, clock: type[Clock]) -> FLMModel:
    """The model with its averaged weights."""
    for network in (trainer.model, getattr(trainer, "teacher", None)):
        if network is not None:
            network._clock = clock(network.config.vocab_size)
    trainer.train()
    trainer.save_model()
    model = type(trainer.model).from_pretrained(trainer.args.output_dir)
    model._clock = clock(model.config.vocab_size)
    return model


def pair(clock: type[Clock], seed: int) -> FLMModel:
    """A flow and its map, both trained for TRAINING_STEPS with this clock."""
    with tempfile.TemporaryDirectory() as folder:
        _trained(build_trainer(recipe("shidoku", output_dir=folder, seed=seed)), clock)
        return distilled(Path(folder), clock, seed=seed)


FLOW = HUB / "flm-shidoku"
VARIANTS: dict[str, Callable[..., FLMModel]] = {
    "semigroup": partial(distilled, FLOW),
    "lagrangian": partial(distilled, FLOW, objective="lagrangian", ema_target=False),
    "eulerian": partial(distilled, FLOW, objective="eulerian", ema_target=False),
    "semigroup, long": partial(distilled, FLOW, max_steps=LONG),
    "eulerian, long": partial(distilled, FLOW, objective="eulerian", ema_target=False, max_steps=LONG),
    "mse": partial(distilled, FLOW, loss_type="mse"),
    "official-split": partial(distilled, FLOW, diagonal_fraction=0.5, boundary_prob=32),
    "self-distilled": partial(distilled, None),
    "clock": partial(pair, Clock),
    "no-clock": partial(pair, NoClock),
}
NOTES = {
    "semigroup": "the recipe",
    "semigroup, long": f"{LONG:,} steps",
    "eulerian, long": f"the eulerian objective, {LONG:,} steps",
    "mse": "semigroup with squared error instead of cross entropy",
    "official-split": "semigroup, half of each batch on the diagonal, 1 in 32 jumps the whole way",
    "self-distilled": "semigroup, no teacher, fresh weights",
    "clock": f"flow and map of {TRAINING_STEPS:,} steps each",
    "no-clock": "the same with tau = t",
}


def measure(name: str) -> list[Row]:
    models = {seed: VARIANTS[name](seed=seed).eval() for seed in TRAINING_SEEDS}

    def valid(steps: int, seed: int) -> Row:
        drawn = over_seeds(partial(unconditional, models[seed], "flow_map", steps, GRIDS))
        return {"valid": drawn["valid"]}

    rows = [{"map": name, "steps": n} | over_seeds(partial(valid, n), TRAINING_SEEDS) for n in STEPS]
    rows = [row | {"trainings": len(TRAINING_SEEDS)} for row in rows]
    for row in rows:
        show(row)
    return rows


def report(results: dict[str, list[Row]]) -> str:
    rows = []
    for name in VARIANTS:
        if name in results:
            cells = {f"valid, {row['steps']}": row["valid"] for row in results[name]}
            spread = {f"valid, {row['steps']}_sd": row["valid_sd"] for row in results[name]}
            said = {
                "trainings": results[name][0].get("trainings", 1),
                "what": NOTES.get(name, f"the {name} objective"),
            }
            rows.append({"map": name} | cells | spread | said)
    return (
        "\n".join(
            [
                "# Ablation",
                "",
                f"`python -m benchmarks.ablation`: maps of 4x4 Sudoku, {TRAINING_STEPS} steps of {BATCH} grids each",
                f"(long: {LONG:,}, as the shipped map). Share of valid grids at 1 to 8 evaluations, {GRIDS} grids for",
                "each of three seeds. ± is the standard deviation: over the trainings, or the seeds of a single one.",
                "",
                table(rows),
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    measure_parts({name: partial(measure, name) for name in VARIANTS}, RESULTS, report)
