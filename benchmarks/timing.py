"""How things are timed here: in turn, in one process; their memory in a process of its own."""

import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from .results import Row, table


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


def spread(seconds: list[float]) -> Row:
    """Median, least and most, as a table has them."""
    return {"seconds": statistics.median(seconds), "from": min(seconds), "to": max(seconds)}


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
    Path("/proc/self/clear_refs").write_text("5")  # the peak is forgotten: what comes is that of `run`
    before = resident()
    run()
    return (_status("VmHWM") - before) / 2**20


def resident() -> int:
    """KiB of memory that this process holds (Linux)."""
    return _status("VmRSS")


def _status(name: str) -> int:
    """KiB, of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def matmul_flops(size: int = 2048, repeats: int = 7) -> float:
    """FLOP per second of a large float32 product: what this machine can do."""
    a, b = torch.randn(2, size, size)
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - before)
    return 2 * size**3 / min(times)


def machine() -> str:
    """What the figures were taken on."""
    info = Path("/proc/cpuinfo")
    model = platform.processor() or platform.machine()
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    if torch.cuda.is_available():
        model = torch.cuda.get_device_name()
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__.split('+')[0]}"


def timed_table(rows: list[Row]) -> str:
    """Rows that say what machine they were taken on as Markdown: it stands below them, once."""
    shown = [{name: value for name, value in row.items() if name != "machine"} for row in rows]
    return f"{table(shown)}\n\n({rows[0]['machine']})"
