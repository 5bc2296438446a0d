"""Models, sampling, evaluation and training where the tensors are not the CPU's, as far as a machine without an
accelerator can tell: on a pretended device, with the CPU's results."""

import json

import pytest
from children import HELPERS, ROOT, WITH_HELPERS, run_python
from on_a_device import CASES


@pytest.fixture(scope="module")
def wrong(tmp_path_factory) -> dict[str, str]:
    file = tmp_path_factory.mktemp("device") / "wrong.json"
    run_python(HELPERS / "on_a_device.py", file, cwd=ROOT, PYTHONPATH=WITH_HELPERS)
    return json.loads(file.read_text())


@pytest.mark.parametrize("case", CASES)
def test_on_a_device(wrong, case):
    assert not wrong[case], wrong[case]
