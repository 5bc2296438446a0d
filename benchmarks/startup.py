"""What a user waits for before anything is written: imports, the command's help, the first model.

    python -m benchmarks.startup

Each is measured in fresh processes, after one that fills the disk's cache. Beside them is what torch and transformers
take by themselves.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

from .results import HUB, ROOT, Row, measure_parts, page, table
from .timing import compared, in_turn

RESULTS = ROOT / "benchmarks" / "startup.json"
TURNS = 5
PYTHON = [sys.executable, "-c"]
LOAD = "from transformers import AutoModel; AutoModel.from_pretrained({folder!r}, trust_remote_code=True)"
WAYS = {
    "`flm --help`": [str(Path(sys.executable).with_name("flm")), "--help"],
    "`import modeling_flm`": [*PYTHON, "import modeling_flm"],
    "`from modeling_flm import FLMModel`": [*PYTHON, "from modeling_flm import FLMModel"],
    "first `AutoModel.from_pretrained`": [*PYTHON, LOAD.format(folder=str(HUB / "fmlm-english-small"))],
    "(`import torch`)": [*PYTHON, "import torch"],
    "(`from transformers import PreTrainedModel`)": [*PYTHON, "from transformers import PreTrainedModel"],
}


def measure() -> list[Row]:
    run = partial(subprocess.run, check=True, capture_output=True, cwd=ROOT)
    return compared(in_turn({what: partial(run, command) for what, command in WAYS.items()}, TURNS), what="what")


def report(results: dict[str, list[Row]]) -> str:
    about = f"`python -m benchmarks.startup`: fresh processes, median of {TURNS}."
    return page("# Start-up", about, table(results["startup"]))


if __name__ == "__main__":
    measure_parts({"startup": measure}, RESULTS, report)
