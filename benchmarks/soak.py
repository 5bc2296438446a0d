"""Memory in the course of hours of `generate` in ever changing shapes: flat, unless something is kept by mistake.

    python -m benchmarks.soak

takes two hours, in one process of one thread. Each call is drawn anew: batch, length, prompt, steps, sampler,
temperature, guidance, reward, refinement, drafts, windows longer than the context. What the process holds is noted
once a minute: resident memory, live tensors and their bytes, Python objects. The first quarter of the time warms up.
"""

import gc
import json
import random
import time
from collections.abc import Callable

import numpy as np
import torch
from matplotlib.figure import Figure

from modeling_flm import FLMModel, FMLMModel
from modeling_flm.guidance_flm import Lookahead

from .results import HUB, ROOT, Row, measure_parts, page, table
from .timing import machine, resident

RESULTS = ROOT / "benchmarks" / "soak.json"
PICTURE = RESULTS.with_suffix(".png")
MINUTES = 120
MEASURES = ("resident MiB", "tensors", "tensor MiB", "objects")


def draw_call(rng: random.Random, model: FMLMModel, weak: FLMModel) -> dict:
    """Arguments of `generate`."""
    context = model.config.max_position_embeddings
    batch, length = rng.randint(1, 8), rng.randint(2, context)
    arguments: dict = {"seed": rng.randrange(2**32), "max_length": length, "num_steps": rng.choice((1, 1, 1, 2, 4))}
    if rng.random() < 0.5:
        prompt = rng.randint(1, length - 1)
        arguments["input_ids"] = torch.randint(0, model.config.vocab_size, (batch, prompt))
    else:
        arguments["batch_size"] = batch
    kinds: list[Callable[[], dict]] = [
        dict,
        lambda: {"sampler": "bridge", "temperature": rng.random(), "top_p": 0.9},
        lambda: {"gamma": rng.random(), "renoise": rng.choice(("official", "markov"))},
        lambda: {"guidance_scale": 1 + rng.random(), "guidance_model": weak, "sampler": "euler"},
        lambda: {"guidance_scale": 1 + rng.random(), "guidance_dropout": 0.1},
        lambda: {"reward_fn": _reward, "reward_scale": 0.1, "num_steps": 2},
        lambda: {"refine_steps": rng.randint(1, 3), "suppress_tokens": [rng.randrange(4, 4000)]},
        lambda: {"output_trajectory": True},
        lambda: {"max_length": length + context, "window_overlap": rng.randint(0, context // 2)},
    ]
    return arguments | rng.choice(kinds)()


def _reward(ahead: Lookahead) -> torch.Tensor:
    return ahead.embedding.square().mean((1, 2))


def measure() -> list[Row]:
    model = FMLMModel.from_pretrained(HUB / "fmlm-english-small").eval()
    weak = FLMModel.from_pretrained(HUB / "flm-english-small").eval()
    rng, calls, start = random.Random(0), 0, time.monotonic()
    rows: list[Row] = []
    shapes: set[tuple[int, ...]] = set()
    while (minutes := (time.monotonic() - start) / 60) < MINUTES:
        written = model.generate(**draw_call(rng, model, weak))
        shapes.add(tuple((written if torch.is_tensor(written) else written.sequences).shape))
        calls += 1
        del written
        if minutes >= len(rows):
            rows.append({"minute": minutes, "calls": calls, "shapes": len(shapes)} | held())
            print(rows[-1], flush=True)
    return [row | {"machine": machine()} for row in rows]


def held() -> Row:
    """What this process holds."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    megabytes = sum(t.nbytes for t in tensors) / 2**20
    objects = len(gc.get_objects())
    return {"resident MiB": resident() / 2**10, "tensors": len(tensors), "tensor MiB": megabytes, "objects": objects}


def trend(rows: list[Row], measure: str) -> Row:
    """Of the rows after the first quarter of the time: level, extent, and a straight line's rise per hour."""
    minutes, values = (np.array([row[name] for row in rows]) for name in ("minute", measure))
    warm = minutes > minutes[-1] / 4
    minutes, values = minutes[warm], values[warm]
    figures = {"first": values[0], "least": values.min(), "most": values.max(), "last": values[-1]}
    figures["rise per hour"] = 60 * np.polyfit(minutes, values, 1)[0]
    return {"what": measure} | {name: float(value) for name, value in figures.items()}


def report(results: dict[str, list[Row]]) -> str:
    rows = results["soak"]
    last = rows[-1]
    about = f"""
`python -m benchmarks.soak`: {last["minute"]:.0f} minutes, {last["calls"]:,} calls of
`generate` in {last["shapes"]:,} shapes of output, one process. What it held, noted once a minute after
the first quarter of the time; the rise is that of a straight line through it.
"""
    trends = [trend(rows, measure) | {"machine": last["machine"]} for measure in MEASURES]
    return page("# Hours of generation", about, table(trends), f"![Memory by minutes]({PICTURE.name})")


def draw(rows: list[Row]) -> None:
    figure = Figure(figsize=(8, 5), layout="constrained")
    minutes = [row["minute"] for row in rows]
    for measure, axes in zip(MEASURES, figure.subplots(2, 2, sharex=True).flat, strict=True):
        axes.plot(minutes, [row[measure] for row in rows])
        axes.set(title=measure, ylim=(0, None))
    figure.supxlabel("minutes")
    figure.savefig(PICTURE, dpi=100)


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure_parts({"soak": measure}, RESULTS, report)
    draw(json.loads(RESULTS.read_text())["soak"])
