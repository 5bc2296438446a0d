"""What a user waits for before anything is written: imports, the command's help, the first model.

    python -m benchmarks.startup

Each in fresh processes, median of five after one that fills the disk's cache; beside them what torch and transformers
take by themselves.
"""

import subprocess
import sys
import time
from pathlib import Path

from .results import HUB, ROOT, Row, measure_parts
from .timing import machine, spread, timed_table

RESULTS = ROOT / "benchmarks" / "startup.json"
TURNS = 5
LOAD = "from transformers import AutoModel; AutoModel.from_pretrained({folder!r}, trust_remote_code=True)"
WAYS = {
    "`flm --help`": [str(Path(sys.executable).with_name("flm")), "--help"],
    "`import modeling_flm`": [sys.executable, "-c", "import modeling_flm"],
    "`from modeling_flm import FLMModel`": [sys.executable, "-c", "from modeling_flm import FLMModel"],
    "first `AutoModel.from_pretrained`": [sys.executable, "-c", LOAD.format(folder=str(HUB / "fmlm-english-small"))],
    "(`import torch`)": [sys.executable, "-c", "import torch"],
    "(`from transformers import PreTrainedModel`)": [
        *(sys.executable, "-c"),
        "from transformers import PreTrainedModel",
    ],
}


def measure() -> list[Row]:
    seconds: dict[str, list[float]] = {what: [] for what in WAYS}
    for turn in range(TURNS + 1):
        for what, command in WAYS.items():
            before = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
            if turn > 0:
                seconds[what].append(time.perf_counter() - before)
    return [{"what": what} | spread(values) | {"machine": machine()} for what, values in seconds.items()]


def report(results: dict[str, list[Row]]) -> str:
    return "\n".join(
        [
            "# Start-up",
            "",
            f"`python -m benchmarks.startup`: fresh processes, median of {TURNS}.",
            "",
            timed_table(results["startup"]),
            "",
        ]
    )


if __name__ == "__main__":
    measure_parts({"startup": measure}, RESULTS, report)
