"""`flm convert` at the four published sizes: time, memory, and how far the logits are from the official equations.

    python -m benchmarks.convert            # or some of them: python -m benchmarks.convert FLM-B-LM1B FMLM-B-OWT

The weights are random, in exactly the official form (the published ones are not part of this repository): names,
shapes and the nested `config.json` of the Hub exports `david3684/{FLM,FMLM}-B-{LM1B,OWT}`. Each conversion runs as its
user runs it, in a process of its own; it compares what it wrote, loaded in another, with an independent forward pass
of the official equations.
"""

import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .results import ROOT, Row, measure_parts, table

RESULTS = ROOT / "benchmarks" / "convert.json"
SIZES = {"LM1B": (30_522, 128), "OWT": (50_258, 1024)}
NAMES = [f"{kind}-B-{data}" for data in SIZES for kind in ("FLM", "FMLM")]
WIDTH, CONDITION, BLOCKS, HEADS = 768, 128, 12, 12

_CONVERT = """
import resource, sys
from command.main import main
status = main(["convert", *sys.argv[1:]])
print("peak of the converter in KiB:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(status)
"""


def official_export(folder: Path, name: str, width: int = WIDTH, blocks: int = BLOCKS) -> None:
    """Write an official Hub export of random weights: `name` is one of `NAMES`."""
    kind, data = name.split("-B-")
    vocab_size, length = SIZES[data]
    weights: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def add(name: str, *shape: int, bias: bool = False) -> None:
        weights[name] = torch.randn(shape, generator=generator) * 0.6 * shape[-1] ** -0.5
        if bias:
            weights[name.replace("weight", "bias")] = torch.randn(shape[0], generator=generator) * 0.1

    def add_time(name: str) -> None:
        add(f"{name}.mlp.0.weight", CONDITION, 256, bias=True)
        add(f"{name}.mlp.2.weight", CONDITION, CONDITION, bias=True)

    add("vocab_embed.embedding", vocab_size, width)
    add_time("sigma_map")
    if kind == "FMLM":
        add_time("sigma_map_prime")
    weights["rotary_emb.inv_freq"] = 10000 ** (-torch.arange(0, width // HEADS, 2) / (width // HEADS))
    for i in range(blocks):
        block = f"blocks.{i}"
        weights[f"{block}.norm1.weight"] = torch.rand(width, generator=generator) + 0.5
        weights[f"{block}.norm2.weight"] = torch.rand(width, generator=generator) + 0.5
        add(f"{block}.attn_qkv.weight", 3 * width, width)
        add(f"{block}.attn_out.weight", width, width)
        add(f"{block}.mlp.0.weight", 4 * width, width, bias=True)
        add(f"{block}.mlp.2.weight", width, 4 * width, bias=True)
        add(f"{block}.adaLN_modulation.weight", 6 * width, CONDITION, bias=True)
    weights["output_layer.norm_final.weight"] = torch.rand(width, generator=generator) + 0.5
    add("output_layer.adaLN_modulation.weight", 2 * width, CONDITION, bias=True)
    add("output_layer.linear.weight", vocab_size, width, bias=True)
    model = {"type": "ddit", "hidden_size": width, "cond_dim": CONDITION, "length": length, "n_blocks": blocks}
    model |= {"n_heads": HEADS, "dropout": 0.1, "scale_by_sigma": True, "tie_word_embeddings": False}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"algo": {"name": kind.lower(), "backbone": "dit"}, "model": model, "vocab_size": vocab_size})
    )


def converted(name: str) -> Row:
    """Convert an export of that name: seconds, GiB, parameters, and the largest difference of logits."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, name), Path(folder, "ours")
        official_export(source, name)
        before = time.perf_counter()
        command = [sys.executable, "-c", _CONVERT, str(source), "--output", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        seconds = time.perf_counter() - before
        if done.returncode:
            raise RuntimeError(done.stderr)
        card = (output / "README.md").read_text()
    peak = int(re.search(r"in KiB: (\d+)", done.stdout)[1])
    reloading = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # the largest descendant of this process so far
    return {
        "checkpoint": name,
        "millions of parameters": float(re.search(r"of ([\d.]+) M parameters", done.stdout)[1]),
        "seconds": seconds,
        "peak GiB": max(peak, reloading) / 2**20,
        "largest difference of logits": re.search(r"within ([\d.e-]+)", card)[1],
    }


def report(results: dict[str, list[Row]]) -> str:
    rows = [row for name in NAMES for row in results.get(name, [])]
    return (
        "# The converter at the published sizes\n\n`python -m benchmarks.convert`: random weights in the official "
        "form; wall time with saving, loading again in a fresh process and comparing; peak resident memory of the "
        f"larger of the two processes.\n\n{table(rows)}\n"
    )


if __name__ == "__main__":
    measure_parts({name: lambda name=name: [converted(name)] for name in NAMES}, RESULTS, report)
