"""A shipped flow map in onnxruntime beside torch and beside a GPT-2 with its cache: writes deploy.json and deploy.md.

    python -m benchmarks.deploy                 # or a part: python -m benchmarks.deploy start

The map and the GPT-2 are exported to onnxruntime. The GPT-2 is a graph that takes a token, and the keys and values
before it.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from transformers import AutoModel, DynamicCache, GPT2LMHeadModel

from benchmarks.results import BASELINES, HUB, ROOT, Row, measure_parts, page, sections
from benchmarks.timing import compared, growth, in_its_own_process, in_turn
from examples.onnx_generate import FlowMap
from hub_cards.export import DTYPES, export

RESULTS = ROOT / "benchmarks" / "deploy.json"
MAP, GPT2 = HUB / "fmlm-english-small", BASELINES / "ar-english-small"
TURNS, TEXTS = 7, 64
MAP_IN_TORCH, GPT2_IN_TORCH = "flow map, torch", "GPT-2 with cache, torch"
GPT2_IN_ORT = "GPT-2 with cache, onnxruntime"


def in_ort(dtype: str) -> str:
    return f"flow map, onnxruntime, {dtype}"


@cache
def place() -> tempfile.TemporaryDirectory:
    """Where this process puts what it exports; it goes with the process."""
    return tempfile.TemporaryDirectory(prefix="flm-deploy-")


@cache
def exported(dtype: str) -> Path:
    """The folder of the exported map."""
    folder = Path(place().name, dtype)
    export(MAP, folder, dtype=dtype)
    return folder


class NextToken(nn.Module):
    """A GPT-2 for onnxruntime: from a token, and the keys and values before it, to logits, and those with it."""

    def __init__(self, gpt2: GPT2LMHeadModel):
        super().__init__()
        self.gpt2 = gpt2

    def forward(self, ids: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ids (1, 1); keys and values (blocks, 1, heads, length, head_dim)."""
        past = DynamicCache()
        for block, (key, value) in enumerate(zip(keys, values, strict=True)):
            past.update(key, value, block)
        out = self.gpt2(ids, past_key_values=past, use_cache=True)
        layers = out.past_key_values.layers
        return out.logits[:, -1], torch.stack([x.keys for x in layers]), torch.stack([x.values for x in layers])


@cache
def exported_gpt2() -> Path:
    gpt2 = GPT2LMHeadModel.from_pretrained(GPT2, attn_implementation="eager").eval()
    config = gpt2.config
    empty = torch.zeros(config.n_layer, 1, config.n_head, 7, config.n_embd // config.n_head)
    past = torch.export.Dim("past", min=1, max=config.n_positions - 1)
    program = torch.onnx.export(
        NextToken(gpt2),
        (torch.zeros(1, 1, dtype=torch.long), empty, empty),
        dynamo=True,
        input_names=["ids", "keys", "values"],
        output_names=["logits", "new_keys", "new_values"],
        dynamic_shapes=({}, {3: past}, {3: past}),
        verbose=False,
    )
    path = Path(place().name, "gpt2.onnx")
    assert program is not None
    program.save(path)
    return path


def writer(way: str):
    """A function that writes one text of 128 tokens."""
    if way == MAP_IN_TORCH:
        return partial(AutoModel.from_pretrained(MAP).eval().generate, num_steps=1, seed=0)
    if way == GPT2_IN_TORCH:
        gpt2 = GPT2LMHeadModel.from_pretrained(GPT2).eval()
        return partial(gpt2.generate, torch.tensor([[gpt2.config.bos_token_id]]))
    if way == GPT2_IN_ORT:
        return _gpt2_in_ort()
    flow_map = FlowMap(exported(way.rsplit(", ", 1)[1]))
    return partial(flow_map.generate, [0])


def _gpt2_in_ort():
    session = onnxruntime.InferenceSession(str(exported_gpt2()), providers=["CPUExecutionProvider"])
    blocks, _, heads, _, width = session.get_inputs()[1].shape
    rng = np.random.default_rng(0)

    def write(length: int = 128, bos: int = 0) -> list[int]:
        # The graph wants a position before the first: an empty one, which costs what any costs.
        keys = values = np.zeros((blocks, 1, heads, 1, width), np.float32)
        ids = [bos]
        while len(ids) < length:
            logits, keys, values = session.run(None, {"ids": [[ids[-1]]], "keys": keys, "values": values})
            odds = np.exp(logits[0] - logits[0].max())
            ids.append(int(rng.choice(len(odds), p=odds / odds.sum())))
        return ids

    return write


def speed() -> list[Row]:
    ways = [MAP_IN_TORCH, *map(in_ort, DTYPES), GPT2_IN_TORCH, GPT2_IN_ORT]
    seconds = in_turn({way: writer(way) for way in ways}, TURNS)
    usual = statistics.median(seconds[MAP_IN_TORCH])

    def more(way: str, median: float) -> Row:
        row: Row = {"x torch's map": usual / median, "tokens a second": 128 / median}
        return row | {"beyond the model, GiB": in_its_own_process(_growth, way)}

    return compared(seconds, more)


def _growth(way: str) -> float:
    return growth(writer(way))


def size() -> list[Row]:
    """Sizes of the files, and how many tokens are those of float32 in torch."""
    texts = AutoModel.from_pretrained(MAP).eval().generate(num_steps=1, num_return_sequences=TEXTS, seed=0).numpy()
    rows: list[Row] = [{"weights": "safetensors", "MB": (MAP / "model.safetensors").stat().st_size / 1e6}]
    for dtype in DTYPES:
        ids = FlowMap(exported(dtype)).generate(range(TEXTS))
        megabytes = (exported(dtype) / "model.onnx").stat().st_size / 1e6
        rows.append({"weights": f"ONNX, {dtype}", "MB": megabytes, "the same tokens": float((ids == texts).mean())})
    return rows


IN_TORCH = """
import sys
from transformers import AutoModel, AutoTokenizer
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
print(tokenizer.decode(model.generate(num_steps=1, seed=0)[0]))
"""


def start() -> list[Row]:
    """From the start of a process to the end of its first text."""
    program = str(ROOT / "examples" / "onnx_generate.py")
    commands = {f"onnxruntime, {dtype}": [sys.executable, program, str(exported(dtype))] for dtype in DTYPES}
    commands["torch"] = [sys.executable, "-c", IN_TORCH, str(MAP)]
    seconds = in_turn({name: partial(_run, command) for name, command in commands.items()}, TURNS)
    return compared(seconds, lambda name, _: {"peak GiB": in_its_own_process(_peak, commands[name])}, "flow map in")


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _peak(command: list[str]) -> float:
    """GiB that a command holds at the most, by itself."""
    _run(command)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


ABOUT = f"""
# onnxruntime

`python -m benchmarks.deploy`: 128 tokens of English from the shipped flow map (4.1 M parameters) in
one evaluation, and from a GPT-2 of the same size in 127. On all cores; median of {TURNS} in turn.
"""
TITLES = {
    "speed": "One text, with the model loaded",
    "start": "From the start of a process to its first text",
    "size": f"Files, and tokens as torch writes them in float32 ({TEXTS} texts)",
}


def report(results: dict[str, list[Row]]) -> str:
    return page(ABOUT, *sections(results, TITLES))


if __name__ == "__main__":
    measure_parts({"speed": speed, "start": start, "size": size}, RESULTS, report)
