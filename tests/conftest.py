"""Settings every test runs under: no network, one thread, caches of its own, the same hypothesis examples
(but in test_any_arguments)."""

import atexit
import gc
import os
import shutil
import sys
import tempfile

# huggingface_hub reads these once, at import: they come before anything that may import it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Caches (code of models, data sets, compiled graphs) are this process's own: processes that test at the same time
# would write into one another's, and what an earlier run left would count. A child may be given its own HF_HOME.
os.environ["FLM_TEST_CACHES"] = tempfile.mkdtemp(prefix="flm-tests-")
os.environ["HF_HOME"] = os.environ["FLM_TEST_CACHES"] + "/huggingface"
# All of these are in HF_HOME.
os.environ.pop("HF_DATASETS_CACHE", None)
os.environ.pop("HF_HUB_CACHE", None)
os.environ.pop("HUGGINGFACE_HUB_CACHE", None)
os.environ.pop("HF_MODULES_CACHE", None)
os.environ.pop("HF_ASSETS_CACHE", None)
os.environ.pop("HF_TOKEN", None)
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.environ["FLM_TEST_CACHES"] + "/inductor"

import pytest
import torch
from hypothesis import settings

atexit.register(shutil.rmtree, os.environ["FLM_TEST_CACHES"], ignore_errors=True)
torch.set_num_threads(1)  # the models are tiny: a second thread waits more than it works

settings.register_profile("flm", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("flm")

# Files that train, compile, start processes or write many texts, the slowest first. All others are the quick set.
SLOW = """
fixed_point distributed faults examples export space_static convert guidance snippets faults_of_pushing
push end_to_end parity model space data sharded oracle compiled_training first_loading on_a_device
compare fmlm_trainer flm_trainer likelihood resume samplers shipped vocabulary metrics any_arguments
generate loading package pipeline cli plain_trainer sudoku evaluation_loss lm_eval lora ema card page
""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the quick tests; the slowest files begin first, so that all processes end at about the same time."""
    rank = {f"test_{name}": place for place, name in enumerate(SLOW)}
    for item in items:
        if item.path.stem not in rank:
            item.add_marker(pytest.mark.quick)
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_collection_finish() -> None:
    """Each training ends with a collection of garbage: what is imported by now is no longer looked through for it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def progress_bars():
    """A command may switch them off, for all of its process: here other tests come after it."""
    yield
    if "transformers" in sys.modules:
        sys.modules["transformers"].logging.enable_progress_bar()


@pytest.fixture(autouse=True)
def fresh_compiler():
    """What one test compiled (flex attention does) shall not make another's shapes dynamic. The number of threads is
    compiled in: what a test or an example sets is taken back."""
    yield
    torch.set_num_threads(1)
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
