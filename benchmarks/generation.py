"""One-step generation against a GPT-2 of the same size with its cache, and against the paper's way of sampling.

    python -m benchmarks.generation             # or some of it: python -m benchmarks.generation 128x1 1024x1

    one step      FMLMModel.generate(num_steps=1): noise drawn in the embedded space, the vocabulary read in blocks
    compiled      the same with `compile_config=CompileConfig()`: the network through torch.compile
    dense         the same step as the paper writes it: noise of size batch x length x V, embedded, all logits at once
    GPT-2         transformers' GPT2LMHeadModel.generate with its key-value cache, sampling, one token after another

Weights are random: time does not depend on them. Single texts are written in bfloat16, too, and `agreement` is the
share of tokens that shipped maps then write as in float32, from the same noise. A long GPT-2 text takes minutes and is
timed once, after a short one that warms up.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.generation import CompileConfig

from modeling_flm import FMLMConfig, FMLMModel

from .results import HUB, ROOT, Row, measure_parts, page, sections
from .timing import DEVICE, compared, growth, in_its_own_process, in_turn, transformer

RESULTS = ROOT / "benchmarks" / "generation.json"
VOCABULARY, WIDTH, BLOCKS = 50_257, 768, 12
TURNS = 7
SIZES = {f"{length}x{batch}": (length, batch, torch.float32) for length in (128, 1024) for batch in (1, 16)}
SIZES |= {f"{length}x1-bfloat16": (length, 1, torch.bfloat16) for length in (128, 1024)}
ONE_STEP, COMPILED, DENSE, GPT2 = "one step", "compiled", "dense", "GPT-2"
SHIPPED = ("fmlm-english-small", "fmlm-shidoku", "fmlm-sudoku")


def write(way: str, length: int, batch: int, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """A function that writes `batch` texts of `length` tokens."""
    torch.manual_seed(0)
    if way == GPT2:
        shape = dict(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=BLOCKS, n_head=WIDTH // 64, n_positions=length)
        gpt2 = GPT2LMHeadModel(GPT2Config(**shape)).eval().to(DEVICE, dtype)
        start = torch.zeros(batch, 1, dtype=torch.long, device=DEVICE)
        new = dict(min_new_tokens=length - 1, max_new_tokens=length - 1, do_sample=True, pad_token_id=0)
        return partial(gpt2.generate, start, attention_mask=torch.ones_like(start), **new)
    model = FMLMModel(FMLMConfig(**transformer(VOCABULARY, length, WIDTH, BLOCKS))).eval().to(DEVICE, dtype)
    if way == DENSE:
        return partial(_dense, model, length, batch)
    compiled = {"compile_config": CompileConfig(fullgraph=False)} if way == COMPILED else {}
    return partial(model.generate, num_steps=1, num_return_sequences=batch, seed=0, **compiled)


@torch.no_grad()
def _dense(model: FMLMModel, length: int, batch: int) -> torch.Tensor:
    noise = torch.randn(batch, length, VOCABULARY, device=DEVICE, dtype=model.dtype)
    state = model.embed_state(noise)
    start, end = torch.zeros(batch, device=DEVICE), torch.ones(batch, device=DEVICE)
    logits = model(inputs_embeds=state, timesteps=start, target_timesteps=end).logits
    return logits.log_softmax(-1).argmax(-1)


def memory(way: str, length: int, batch: int, dtype: torch.dtype) -> float:
    return growth(write(way, length, batch, dtype))


def measure(name: str) -> list[Row]:
    length, batch, dtype = SIZES[name]
    ways = (ONE_STEP, COMPILED, DENSE) if batch == 1 else (ONE_STEP, DENSE)
    seconds = in_turn({way: write(way, length, batch, dtype) for way in ways}, TURNS)
    write(GPT2, 16, batch, dtype)()  # warms up
    gpt2 = write(GPT2, length, batch, dtype)
    before = time.perf_counter()
    gpt2()
    seconds[GPT2] = [time.perf_counter() - before]
    del gpt2
    best = statistics.median(seconds[ONE_STEP])

    def more(way: str, median: float) -> Row:
        row: Row = {"x one step": median / best, "tokens a second": batch * length / median}
        return row | {"peak GiB": in_its_own_process(memory, way, length, batch, dtype)}

    return compared(seconds, more)


def agreement() -> list[Row]:
    rows: list[Row] = []
    for name in SHIPPED:
        models = [FMLMModel.from_pretrained(HUB / name, dtype=d).eval() for d in (torch.float32, torch.bfloat16)]
        for steps in (1, 4):
            whole, half = (m.generate(num_steps=steps, num_return_sequences=64, seed=0) for m in models)
            rows.append({"model": name, "steps": steps, "the same tokens": (whole == half).float().mean().item()})
    return rows


ABOUT = f"""
# Generation

`python -m benchmarks.generation` measures everything here anew: a map in one evaluation, the same as the
paper writes it, a GPT-2 of the same size with its cache. d {WIDTH}, {BLOCKS} blocks, V {VOCABULARY:,},
on a CPU; median of {TURNS} in turn (GPT-2: one run). Memory: beyond the loaded model.
"""


def report(results: dict[str, list[Row]]) -> str:
    titles = {
        name: f"{batch} x {length:,} tokens, {str(dtype).removeprefix('torch.')}"
        for name, (length, batch, dtype) in SIZES.items()
    }
    titles["agreement"] = "Tokens in bfloat16 as in float32, of shipped maps (64 texts)"
    return page(ABOUT, *sections(results, titles))


if __name__ == "__main__":
    measure_parts({name: partial(measure, name) for name in SIZES} | {"agreement": agreement}, RESULTS, report)
