"""Settings every test runs under: no network, one thread, the same hypothesis examples each time."""

import atexit
import os
import shutil
import sys
import tempfile

# huggingface_hub reads these once, at import: they come before anything that may import it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Processes that test at the same time would write the same code of models into one cache, half of it while it is read.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix=f"flm-tests-{worker}-")
    atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # the models are tiny: a second thread waits more than it works

settings.register_profile("flm", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("flm")


@pytest.fixture(autouse=True)
def progress_bars():
    """A command may switch them off, for all of its process: here other tests come after it."""
    yield
    if "transformers" in sys.modules:
        sys.modules["transformers"].logging.enable_progress_bar()


@pytest.fixture(autouse=True)
def fresh_compiler():
    """What one test compiled (flex attention does) shall not make another's shapes dynamic."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
