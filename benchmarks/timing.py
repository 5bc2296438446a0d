"""How the benchmarks of speed measure: ways in turn in one process, the memory of each in a process of its own."""

import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path

import torch

from .results import Row

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def in_turn(ways: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Seconds of each call, way by way and turn by turn, after a first turn that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, run in ways.items():
            before = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn > 0:
                seconds[name].append(time.perf_counter() - before)
    return seconds


def compared(
    seconds: dict[str, list[float]], more: Callable[[str, float], Row] = lambda way, median: {}, what: str = "way"
) -> list[Row]:
    """A row for each way: its name, its seconds (median, least, most), what `more` says, and the machine.

    Args:
        seconds: seconds of each way, as `in_turn` returns them.
        more: further columns, from the name of a way and the median of its seconds.
        what: the column of the names.
    """
    rows: list[Row] = []
    for way, values in seconds.items():
        median = statistics.median(values)
        rows.append({what: way, "seconds": median, "from": min(values), "to": max(values)} | more(way, median))
        print(rows[-1], flush=True)
    return [row | {"machine": machine()} for row in rows]


def in_its_own_process(function: Callable, *arguments):
    """`function(*arguments)` in a fresh process; both must be importable or picklable."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def growth(run: Callable[[], object]) -> float:
    """GiB that `run` needs beyond what is there: of the resident set (Linux), on a GPU of what is allocated."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak: what follows is that of `run`
    before = resident()
    run()
    return (_status("VmHWM") - before) / 2**20


def resident() -> int:
    """KiB of memory that this process holds (Linux)."""
    return _status("VmRSS")


def _status(name: str) -> int:
    """KiB, of this process (Linux)."""
    return int(re.search(rf"^{name}:\s*(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)[1])


def matmul_flops(size: int = 2048) -> float:
    """FLOP per second of a large float32 product: what this machine can do."""
    (seconds,) = in_turn({"product": partial(torch.mm, *torch.randn(2, size, size))}, turns=7).values()
    return 2 * size**3 / min(seconds)


def machine() -> str:
    """What the figures were measured on, and when: code has changed since."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:(.*)", info.read_text(), re.MULTILINE) if info.exists() else None
    model = named[1].strip() if named else platform.processor() or platform.machine()
    if torch.cuda.is_available():
        model = torch.cuda.get_device_name()
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__.split('+')[0]}, {date.today()}"


def transformer(vocab_size: int, length: int, width: int, blocks: int) -> dict:
    """The fields of a configuration: heads of 64, an MLP of four times the width."""
    return dict(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        max_position_embeddings=length,
    )
