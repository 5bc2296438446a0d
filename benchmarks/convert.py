"""`flm convert` at the four published sizes: time, memory, and how far the logits are from the official equations.

    python -m benchmarks.convert            # or some of them: python -m benchmarks.convert FLM-B-LM1B FMLM-B-OWT

The weights are random, with the names, shapes and nested `config.json` of the official Hub exports
`david3684/{FLM,FMLM}-B-{LM1B,OWT}` (the published weights are not part of this repository). Each conversion runs as
its user runs it, in a process of its own. It loads what it wrote in another process, and compares it with the official
equations.
"""

import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from .results import ROOT, Row, measure_parts, page, table
from .timing import in_its_own_process

RESULTS = ROOT / "benchmarks" / "convert.json"
SIZES = {"LM1B": (30_522, 128), "OWT": (50_258, 1024)}
NAMES = [f"{kind}-B-{data}" for data in SIZES for kind in ("FLM", "FMLM")]
WIDTH, CONDITION, BLOCKS, HEADS = 768, 128, 12, 12


def weights_of(kind: str, vocab_size: int) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Name and shape of each official weight, and whether it has a bias."""
    yield "vocab_embed.embedding", (vocab_size, WIDTH), False
    for name in ("sigma_map", "sigma_map_prime")[: 2 if kind == "FMLM" else 1]:
        yield f"{name}.mlp.0.weight", (CONDITION, 256), True
        yield f"{name}.mlp.2.weight", (CONDITION, CONDITION), True
    for block in [f"blocks.{i}" for i in range(BLOCKS)]:
        yield f"{block}.norm1.weight", (WIDTH,), False
        yield f"{block}.norm2.weight", (WIDTH,), False
        yield f"{block}.attn_qkv.weight", (3 * WIDTH, WIDTH), False
        yield f"{block}.attn_out.weight", (WIDTH, WIDTH), False
        yield f"{block}.mlp.0.weight", (4 * WIDTH, WIDTH), True
        yield f"{block}.mlp.2.weight", (WIDTH, 4 * WIDTH), True
        yield f"{block}.adaLN_modulation.weight", (6 * WIDTH, CONDITION), True
    yield "output_layer.norm_final.weight", (WIDTH,), False
    yield "output_layer.adaLN_modulation.weight", (2 * WIDTH, CONDITION), True
    yield "output_layer.linear.weight", (vocab_size, WIDTH), True


def official_export(folder: Path, name: str) -> None:
    """Write an official Hub export of random weights: `name` is one of `NAMES`."""
    kind, data = name.split("-B-")
    vocab_size, length = SIZES[data]
    generator = torch.Generator().manual_seed(0)
    weights = {"rotary_emb.inv_freq": 10000 ** (-torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS))}
    for weight, shape, has_bias in weights_of(kind, vocab_size):
        if len(shape) == 1:  # of a norm
            weights[weight] = torch.rand(shape, generator=generator) + 0.5
        else:
            weights[weight] = torch.randn(shape, generator=generator) * 0.6 * shape[-1] ** -0.5
        if has_bias:
            weights[weight.replace("weight", "bias")] = torch.randn(shape[0], generator=generator) * 0.1
    model = {"type": "ddit", "hidden_size": WIDTH, "cond_dim": CONDITION, "length": length, "n_blocks": BLOCKS}
    model |= {"n_heads": HEADS, "dropout": 0.1, "scale_by_sigma": True, "tie_word_embeddings": False}
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")
    config = {"algo": {"name": kind.lower(), "backbone": "dit"}, "model": model, "vocab_size": vocab_size}
    (folder / "config.json").write_text(json.dumps(config))


def converted(name: str) -> Row:
    """Convert an export of that name: seconds, GiB, parameters, and the largest difference of logits. The memory is
    right in a process that has begun no other one."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, name), Path(folder, "ours")
        official_export(source, name)
        before = time.perf_counter()
        command = [sys.executable, "-m", "command.main", "convert", str(source), "--output", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        seconds = time.perf_counter() - before
        if done.returncode:
            raise RuntimeError(done.stderr)
        card = (output / "README.md").read_text()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # KiB of the largest process that this one began
    return {
        "checkpoint": name,
        "millions of parameters": float(re.search(r"of ([\d.]+) M parameters", done.stdout)[1]),
        "seconds": seconds,
        "peak GiB": peak / 2**20,
        "largest difference of logits": re.search(r"within ([\d.e-]+)", card)[1],
    }


ABOUT = (
    "`python -m benchmarks.convert`: random weights in the official form; wall time with saving, loading again in a "
    "fresh process and comparing; peak resident memory of the larger of the two processes."
)


def report(results: dict[str, list[Row]]) -> str:
    rows = [row for name in NAMES for row in results.get(name, [])]
    return page("# The converter at the published sizes", ABOUT, table(rows))


if __name__ == "__main__":
    measure_parts({name: lambda name=name: [in_its_own_process(converted, name)] for name in NAMES}, RESULTS, report)
