"""The ablation of the paper at the scale of 4x4 Sudoku: writes ablation.json and ablation.md.

    python -m benchmarks.ablation             # or some of it: python -m benchmarks.ablation lagrangian mse

Every map starts from the shipped flow (hub_cards/flm-shidoku) and has the same recipe, with one thing changed. Without
the clock, tau is the interpolation time itself. The flow is then trained anew, too, for as many steps as its map, and
the pair is compared with one that is trained so with the clock. So is a map that is trained with its flow, from fresh
weights: it learns from the data on the diagonal, and from its own averaged weights elsewhere.
"""

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.baselines import mdlm
from benchmarks.few_step import GRIDS, unconditional
from benchmarks.results import HUB, ROOT, Row, measure_parts, over_seeds, page, shown, table
from modeling_flm import FLMModel
from modeling_flm.clock_flm import Clock
from trainers import FLMTrainer
from trainers.recipe import Recipe, load_recipe
from trainers.train import build_distiller, build_trainer

RESULTS = ROOT / "benchmarks" / "ablation.json"
STEPS = (1, 2, 4, 8)
TRAINING_STEPS, BATCH = 500, 64
LONG = 2400  # steps of the shipped map before it is matched
MASKED, MATCHED = 4000, 2000  # steps of a masked diffusion model, and of a map with it as teacher
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
    read = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    read.training |= {"max_steps": TRAINING_STEPS, "per_device_train_batch_size": BATCH}
    read.training |= {"save_strategy": "no", "disable_tqdm": True, "logging_steps": 500, **changes}
    return read


def distilled(teacher: Path | None = HUB / "flm-shidoku", clock: type[Clock] = Clock, **changes) -> FLMModel:
    """A map of the flow in the folder `teacher`. Without a teacher it learns from itself, with fresh weights."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = recipe("shidoku-fmlm", output_dir=folder, **changes)
        wanted.teacher = None if teacher is None else str(teacher)
        if teacher is None:
            wanted.model = recipe("shidoku").model
        return _trained(build_distiller(wanted), clock)


def pair(clock: type[Clock], seed: int) -> FLMModel:
    """The map of a flow, both trained with this clock."""
    with tempfile.TemporaryDirectory() as folder:
        _trained(build_trainer(recipe("shidoku", output_dir=folder, seed=seed)), clock)
        return distilled(Path(folder), clock, seed=seed)


def matched(seed: int, num_loops: int, **changes) -> FLMModel:
    """A map after distribution matching."""
    before = _before_matching(seed)
    with tempfile.TemporaryDirectory() as folder:
        wanted = recipe("shidoku-matched", output_dir=folder, seed=seed, max_steps=MATCHED, **changes)
        wanted.model = {"from": f"{before.name}/map", "num_loops": num_loops}
        wanted.teacher = f"{before.name}/masked"
        return _trained(build_distiller(wanted), Clock)


@cache
def _before_matching(seed: int) -> tempfile.TemporaryDirectory:
    """A folder with the map that is then matched, and with masked diffusion, its teacher."""
    folder = tempfile.TemporaryDirectory()
    _trained(mdlm.build(recipe("shidoku", output_dir=f"{folder.name}/masked", seed=seed, max_steps=MASKED)), Clock)
    distilled(seed=seed, max_steps=LONG).save_pretrained(f"{folder.name}/map")
    return folder


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


_eulerian = partial(distilled, objective="eulerian", ema_target=False)
# Of each map what is changed, in words, and what trains it from a seed.
VARIANTS: dict[str, tuple[str, Callable[..., FLMModel]]] = {
    "semigroup": ("the recipe", distilled),
    "lagrangian": ("the lagrangian objective", partial(distilled, objective="lagrangian", ema_target=False)),
    "eulerian": ("the eulerian objective", _eulerian),
    "semigroup, long": (f"{LONG:,} steps", partial(distilled, max_steps=LONG)),
    "eulerian, long": (f"the eulerian objective, {LONG:,} steps", partial(_eulerian, max_steps=LONG)),
    "matched": (
        f"semigroup, long, and {MATCHED:,} steps of distribution matching at writing temperature 1",
        partial(matched, num_loops=1, writing_temperature=1.0),
    ),
    "matched, three loops": (
        "the same at writing temperature 0.5, three times through all blocks: the recipe",
        partial(matched, num_loops=3),
    ),
    "mse": ("semigroup with squared error instead of cross entropy", partial(distilled, loss_type="mse")),
    "official-split": (
        "semigroup, half of each batch on the diagonal, 1 in 32 jumps the whole way",
        partial(distilled, diagonal_fraction=0.5, boundary_prob=32),
    ),
    "clock": (f"flow and map of {TRAINING_STEPS:,} steps each", partial(pair, Clock)),
    "no-clock": ("the same with tau = t", partial(pair, NoClock)),
    "joint": (
        f"flow and map in one run of {2 * TRAINING_STEPS:,} steps, half of each batch on the diagonal, no teacher",
        partial(distilled, None, max_steps=2 * TRAINING_STEPS, diagonal_fraction=0.5),
    ),
}


def measure(name: str) -> list[Row]:
    models = {seed: VARIANTS[name][1](seed=seed).eval() for seed in TRAINING_SEEDS}

    def valid(steps: int, seed: int) -> Row:
        return {"valid": over_seeds(partial(unconditional, models[seed], "flow_map", steps, GRIDS))["valid"]}

    return shown(
        {"map": name, "steps": n} | over_seeds(partial(valid, n), TRAINING_SEEDS) | {"trainings": len(TRAINING_SEEDS)}
        for n in STEPS
    )


ABOUT = f"""
# Ablation

`python -m benchmarks.ablation`: maps of 4x4 Sudoku, {TRAINING_STEPS} steps of {BATCH} grids each
(long: {LONG:,}, as the shipped map before it was matched; matched: the teacher is masked diffusion of
{MASKED:,} steps).
Share of valid grids at 1 to 8 evaluations, {GRIDS} grids for each of three seeds. ± is the standard
deviation over the trainings.
"""


def report(results: dict[str, list[Row]]) -> str:
    rows = []
    for name in [name for name in VARIANTS if name in results]:
        row: Row = {"map": name}
        for measured in results[name]:
            row |= {f"valid, {measured['steps']}{end}": measured[f"valid{end}"] for end in ("", "_sd")}
        rows.append(row | {"trainings": results[name][0]["trainings"], "what": VARIANTS[name][0]})
    return page(ABOUT, table(rows))


if __name__ == "__main__":
    measure_parts({name: partial(measure, name) for name in VARIANTS}, RESULTS, report)
