"""What test_first_loading.py runs: `first_loads.py FOLDER ROOT` loads the model in FOLDER in a child process for each
case, with a cache for the code of models in ROOT, and writes how each child ended to ROOT/ends.json."""

import ctypes
import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from children import in_child
from transformers import AutoModel, GenerationMixin, Pipeline, PreTrainedModel, dynamic_module_utils

TIMES_AT_ONCE = 4
IMPORTED_ONCE = (GenerationMixin, Pipeline, PreTrainedModel)  # not by every child


def without_network() -> None:
    def refused(*address):
        raise AssertionError(f"the network was asked for {address}")

    socket.getaddrinfo = socket.socket.connect = refused


def without_privileges() -> None:
    """From now on permissions hold for root, too: it gives up its capabilities (capset(2), version 3)."""
    if ctypes.CDLL(None, use_errno=True).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def load(folder: Path, cache: Path, before: Callable[[], object] = lambda: None) -> dict:
    """How a child ends that loads the model by its own code and lets it write."""

    def child() -> None:
        dynamic_module_utils.HF_MODULES_CACHE = str(cache)
        before()
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert sys.modules[type(model).__module__].__file__.startswith(str(cache))
        assert "modeling_flm" not in sys.modules
        assert model.generate(num_steps=2, seed=0).tolist() == json.loads((cache.parent / "ids.json").read_text())

    return in_child(child)


def load_twice_at_once(folder: Path, cache: Path) -> list[dict]:
    barrier = multiprocessing.get_context("fork").Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        return [*pool.map(lambda _: load(folder, cache, lambda: barrier.wait(600)), range(2))]


def main(folder: Path, root: Path) -> None:
    ends = {"offline": load(folder, root / "cache", without_network)}
    for path in (root / "cache", *(root / "cache").rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    ends["read-only, filled"] = load(folder, root / "cache", without_privileges)
    (root / "empty").mkdir(0o555)
    ends["read-only, empty"] = load(folder, root / "empty", without_privileges)
    (root / "file").touch()
    ends["no folder"] = load(folder, root / "file", without_privileges)
    ends["at once"] = [load_twice_at_once(folder, root / f"shared-{i}") for i in range(TIMES_AT_ONCE)]
    ends["after it"] = [load(folder, root / f"shared-{i}") for i in range(TIMES_AT_ONCE)]
    (root / "ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)  # nothing to tidy up: caches that cannot be written stay as they are
