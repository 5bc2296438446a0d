"""Models, sampling, evaluation and training where the tensors are not the CPU's, as far as a machine without an
accelerator can tell: on a pretended device, with the CPU's results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from on_a_device import CASES

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def wrong(tmp_path_factory) -> dict[str, str]:
    file = tmp_path_factory.mktemp("device") / "wrong.json"
    environment = os.environ | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE / 'helpers'}"}
    command = [sys.executable, HERE / "helpers" / "on_a_device.py", file]
    subprocess.run(command, env=environment, check=True, timeout=300, cwd=HERE.parent)
    return json.loads(file.read_text())


@pytest.mark.parametrize("case", CASES)
def test_on_a_device(wrong, case):
    assert not wrong[case], wrong[case]
