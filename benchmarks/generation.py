"""One-step generation against a GPT-2 of the same size with its cache, and against the paper's way of sampling.

    python -m benchmarks.generation             # or some of it: python -m benchmarks.generation 128x1 1024x1

    one step      FMLMModel.generate(num_steps=1): noise drawn in the embedded space, the vocabulary read in blocks
    dense         the same step as the paper writes it: noise of size batch x length x V, embedded, all logits at once
    GPT-2         transformers' GPT2LMHeadModel.generate with its key-value cache, sampling, one token after another

d 768, 12 blocks of 12 heads, V 50,257, random weights (time does not depend on them), float32 on a CPU. The two ways
of the map run in turn; a long GPT-2 text takes minutes and is timed once, after a short one that warms up. Memory is
what the text needs beyond the loaded model, each way in a process of its own.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from modeling_flm import FMLMConfig, FMLMModel

from .results import ROOT, Row, measure_parts, table
from .timing import growth, in_its_own_process, in_turn, machine, spread

RESULTS = ROOT / "benchmarks" / "generation.json"
VOCABULARY, WIDTH, BLOCKS, HEADS = 50_257, 768, 12, 12
TURNS = 3
SIZES = {f"{length}x{batch}": (length, batch) for length in (128, 1024) for batch in (1, 16)}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MAP_WAYS, GPT2 = ("one step", "dense"), "GPT-2"


def write(way: str, length: int, batch: int) -> Callable[[], torch.Tensor]:
    """A function that writes `batch` texts of `length` tokens."""
    torch.manual_seed(0)
    if way == GPT2:
        shape = dict(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=BLOCKS, n_head=HEADS, n_positions=length)
        gpt2 = GPT2LMHeadModel(GPT2Config(**shape)).eval().to(DEVICE)
        start = torch.zeros(batch, 1, dtype=torch.long, device=DEVICE)
        new = dict(min_new_tokens=length - 1, max_new_tokens=length - 1, do_sample=True, pad_token_id=0)
        return partial(gpt2.generate, start, attention_mask=torch.ones_like(start), **new)
    config = FMLMConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=length,
    )
    model = FMLMModel(config).eval().to(DEVICE)
    if way == "one step":
        return partial(model.generate, num_steps=1, num_return_sequences=batch, seed=0)
    return partial(_dense, model, length, batch)


@torch.no_grad()
def _dense(model: FMLMModel, length: int, batch: int) -> torch.Tensor:
    noise = torch.randn(batch, length, VOCABULARY, device=DEVICE)
    state = noise @ model.embed_tokens.weight
    times = torch.zeros(batch, device=DEVICE), torch.ones(batch, device=DEVICE)
    logits = model(inputs_embeds=state, timesteps=times[0], target_timesteps=times[1]).logits
    return logits.log_softmax(-1).argmax(-1)


def memory(way: str, length: int, batch: int) -> float:
    return growth(write(way, length, batch))


def measure(name: str) -> list[Row]:
    length, batch = SIZES[name]
    seconds = in_turn({way: write(way, length, batch) for way in MAP_WAYS}, TURNS)
    write(GPT2, 16, batch)()  # warms up
    gpt2 = write(GPT2, length, batch)
    before = time.perf_counter()
    gpt2()
    seconds[GPT2] = [time.perf_counter() - before]
    del gpt2
    best = statistics.median(seconds["one step"])
    rows: list[Row] = []
    for way, values in seconds.items():
        row: Row = {"way": way} | spread(values)
        row["x one step"] = statistics.median(values) / best
        row["tokens a second"] = batch * length / statistics.median(values)
        rows.append(row | {"peak GiB": in_its_own_process(memory, way, length, batch)})
        print(rows[-1], flush=True)
    return [row | {"machine": machine()} for row in rows]


def report(results: dict[str, list[Row]]) -> str:
    text = [
        "# Generation",
        "",
        "`python -m benchmarks.generation` measures everything here anew: a map in one evaluation, the same as the",
        f"paper writes it, a GPT-2 of the same size with its cache. d {WIDTH}, {BLOCKS} blocks, V {VOCABULARY:,},",
        f"float32 on a CPU; median of {TURNS} in turn (GPT-2: one run). Memory: beyond the loaded model.",
    ]
    for name, (length, batch) in SIZES.items():
        if name in results:
            rows = [{k: v for k, v in row.items() if k != "machine"} for row in results[name]]
            text += ["", f"## {batch} x {length:,} tokens", "", table(rows), "", f"({results[name][0]['machine']})"]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    measure_parts({name: partial(measure, name) for name in SIZES}, RESULTS, report)
