"""What a training step needs at the paper's sizes and at a billion parameters: arithmetic, not a measurement.

    python -m benchmarks.scaling

Work: 6 FLOP for each weight of the products that a token goes through (forward and backward), 12 d L for the
attention of each block, and 6 V d^2 a step for the Gram matrix of the noise. A distillation step is taken as so many
steps of the flow as was measured (`benchmarks/training_step.md`). Time: that work at `UTILISATION` of what the GPU can
do, an assumption. Memory: weights, gradients, two moments and the average of the weights in float32, and what the
blocks keep for the backward pass in bfloat16.
"""

import json
from dataclasses import dataclass

from .results import ROOT, Row, page, table

REPORT = ROOT / "benchmarks" / "scaling.md"
GPUS, PEAK, UTILISATION = 8, 989e12, 0.35  # H100, bfloat16 without sparsity, as its maker states
KEPT = 34  # bytes a token, block and unit of width: inputs of norms, products and gates, and dropout masks
CONDITION = 128
STATES = 5  # weights, gradients, two moments, average
STEPS, ROWS = 1_000_000, 512  # rows a step, over all GPUs


@dataclass(frozen=True)
class Size:
    name: str
    vocab_size: int
    length: int
    width: int = 768
    blocks: int = 12
    rows_of_map: int = ROWS  # a step of its distillation
    measured: str = "owt-4"  # the part of `training_step.json` whose distillation step counts

    @property
    def distillation(self) -> float:
        """How many steps of the flow a distillation step takes, as it was measured."""
        parts = json.loads((ROOT / "benchmarks" / "training_step.json").read_text())
        return next(row["x ours"] for row in parts[self.measured] if row["way"] == "distillation")

    def row(self) -> Row:
        """What a model of this size takes."""
        tokens, table_weights = ROWS * self.length, self.vocab_size * self.width
        block_weights = 12 * self.width**2 * self.blocks
        parameters = 2 * table_weights + block_weights + 6 * self.width * CONDITION * self.blocks
        attention = 12 * self.width * self.length * self.blocks
        work = (6 * (block_weights + table_weights) + attention) * tokens + 6 * self.vocab_size * self.width**2
        seconds = work / (GPUS * PEAK * UTILISATION)
        states = STATES * 4 * parameters / 2**30
        kept = KEPT * (tokens // GPUS) * self.width * self.blocks / 2**30
        return {
            "": self.name,
            "parameters, M": f"{parameters / 1e6:,.0f}",
            "tokens a step": f"{tokens:,}",
            "TFLOP a step": f"{work / 1e12:,.0f}",
            "ms a step": f"{1000 * seconds:,.0f}",
            "ms a distillation step": f"{1000 * seconds * self.distillation * self.rows_of_map / ROWS:,.0f}",
            "hours": f"{STEPS * seconds / 3600:,.0f}",
            "GiB of states": f"{states:.1f}",
            "the same, sharded": f"{states / GPUS:.1f}",
            "GiB kept": f"{kept:.0f}",
        }


SIZES = [
    Size("LM1B", 30_522, 128, measured="lm1b-64"),
    Size("OpenWebText", 50_258, 1024, rows_of_map=128),
    Size("1 B, OpenWebText", 50_258, 1024, width=1792, blocks=22),
]


def report() -> str:
    of_lm1b, of_owt, _ = (size.distillation for size in SIZES)
    about = f"""
`python -m benchmarks.scaling`: arithmetic for {GPUS} H100, not a measurement. Assumed:
{UTILISATION:.0%} of the GPUs' {PEAK / 1e12:.0f} TFLOP/s; a distillation step is {of_lm1b:.2f} steps of
the flow with as many rows for LM1B, {of_owt:.2f} for OpenWebText, as measured on a CPU (the map of OpenWebText
takes a quarter of the rows).
States: weights, gradients, moments and average, per GPU, whole (DDP) or sharded (FSDP2). Kept: for the
backward pass, per GPU, all its rows at once; gradient accumulation and activation checkpointing divide it.
"""
    return page("# What it takes", about, table([size.row() for size in SIZES]))


if __name__ == "__main__":
    REPORT.write_text(report())
    print(report())
