"""Memory in the course of hours of `generate` in ever changing shapes: flat, unless something is kept by mistake.

    python -m benchmarks.soak                   # two hours
    SOAK_MINUTES=5 python -m benchmarks.soak

One model, one process, one thread. Each call is drawn anew: batch, length, prompt, blanks, steps, sampler,
temperature, guidance, reward, refinement, drafts, windows longer than the context. Once a minute is noted what the
process holds: resident memory, live tensors and their bytes, Python objects. The first quarter of the time warms up.
"""

import gc
import json
import os
import random
import time
from collections import Counter

import numpy as np
import torch
from matplotlib.figure import Figure

from modeling_flm import FLMModel, FMLMModel
from modeling_flm.guidance_flm import Lookahead

from .results import HUB, ROOT, Row, measure_parts, table
from .timing import machine, resident

RESULTS = ROOT / "benchmarks" / "soak.json"
PICTURE = RESULTS.with_suffix(".png")
MINUTES = float(os.environ.get("SOAK_MINUTES", "120"))
MEASURES = {"resident MiB": "MiB", "tensors": "", "tensor MiB": "MiB", "objects": ""}


def draw_call(rng: random.Random, model: FMLMModel, weak: FLMModel) -> tuple[str, dict]:
    """The name of a kind of call, and arguments of `generate`."""
    context = model.config.max_position_embeddings
    batch, length, prompt = rng.randint(1, 8), rng.randint(2, context), 0
    arguments: dict = {"seed": rng.randrange(2**32), "max_length": length, "num_steps": rng.choice((1, 1, 1, 2, 4))}
    if rng.random() < 0.5:
        prompt = rng.randint(1, length - 1)
        arguments["input_ids"] = torch.randint(0, model.config.vocab_size, (batch, prompt))
    else:
        arguments["batch_size"] = batch
    kind = rng.choice(("plain", "bridge", "gamma", "guided", "dropout", "reward", "refined", "drafts", "windows"))
    if kind == "bridge":
        arguments |= {"sampler": "bridge", "temperature": rng.random(), "top_p": 0.9}
    elif kind == "gamma":
        arguments |= {"gamma": rng.random(), "renoise": rng.choice(("official", "markov"))}
    elif kind == "guided":
        arguments |= {"guidance_scale": 1 + rng.random(), "guidance_model": weak, "sampler": "euler"}
    elif kind == "dropout":
        arguments |= {"guidance_scale": 1 + rng.random(), "guidance_dropout": 0.1}
    elif kind == "reward":
        arguments |= {"reward_fn": _reward, "reward_scale": 0.1, "num_steps": 2}
    elif kind == "refined":
        arguments |= {"refine_steps": rng.randint(1, 3), "suppress_tokens": [rng.randrange(4, 4000)]}
    elif kind == "drafts":
        arguments |= {"output_trajectory": True}
    elif kind == "windows":
        arguments |= {"max_length": length + context, "window_overlap": rng.randint(0, context // 2)}
    return kind, arguments


def _reward(ahead: Lookahead) -> torch.Tensor:
    return ahead.embedding.square().mean((1, 2))


def measure() -> list[Row]:
    model = FMLMModel.from_pretrained(HUB / "fmlm-english-small").eval()
    weak = FLMModel.from_pretrained(HUB / "flm-english-small").eval()
    rng, calls, rows, start = random.Random(0), Counter[str](), [], time.monotonic()
    shapes: set[tuple[int, ...]] = set()
    while (minutes := (time.monotonic() - start) / 60) < MINUTES:
        kind, arguments = draw_call(rng, model, weak)
        written = model.generate(**arguments)
        shapes.add(tuple((written if torch.is_tensor(written) else written.sequences).shape))
        calls[kind] += 1
        del written, arguments
        if minutes >= len(rows):
            gc.collect()
            tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
            rows.append(
                {
                    "minute": minutes,
                    "calls": calls.total(),
                    "shapes": len(shapes),
                    "resident MiB": resident() / 2**10,
                    "tensors": len(tensors),
                    "tensor MiB": sum(t.nbytes for t in tensors) / 2**20,
                    "objects": len(gc.get_objects()),
                }
            )
            del tensors
            print(rows[-1], flush=True)
    return [row | {"machine": machine()} for row in rows]


def trend(rows: list[Row], measure: str) -> Row:
    """Of the rows after the first quarter of the time: level, extent, and a straight line's rise per hour."""
    minutes, values = (np.array([float(str(row[name])) for row in rows]) for name in ("minute", measure))
    warm = minutes > minutes[-1] / 4
    minutes, values = minutes[warm], values[warm]
    rise = 60 * np.polyfit(minutes, values, 1)[0]
    return {
        "what": measure,
        "first": float(values[0]),
        "least": float(values.min()),
        "most": float(values.max()),
        "last": float(values[-1]),
        "rise per hour": float(rise),
    }


def report(results: dict[str, list[Row]]) -> str:
    rows = results["soak"]
    last = rows[-1]
    return "\n".join(
        [
            "# Hours of generation",
            "",
            f"`python -m benchmarks.soak`: {float(str(last['minute'])):.0f} minutes, {last['calls']:,} calls of",
            f"`generate` in {last['shapes']:,} shapes of output, one process. What it held, noted once a minute after",
            "the first quarter of the time; the rise is that of a straight line through it.",
            "",
            table([trend(rows, measure) for measure in MEASURES]),
            "",
            f"({last['machine']})",
            "",
            f"![Memory by minutes]({PICTURE.name})",
            "",
        ]
    )


def draw(rows: list[Row]) -> None:
    figure = Figure(figsize=(8, 5), layout="constrained")
    minutes = [float(str(row["minute"])) for row in rows]
    for measure, axes in zip(MEASURES, figure.subplots(2, 2, sharex=True).flat, strict=True):
        axes.plot(minutes, [float(str(row[measure])) for row in rows])
        axes.set(title=measure, ylim=(0, None))
    figure.supxlabel("minutes")
    figure.savefig(PICTURE, dpi=100)


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure_parts({"soak": measure}, RESULTS, report)
    draw(json.loads(RESULTS.read_text())["soak"])
