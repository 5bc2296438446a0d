"""The package as it is installed: what the wheel holds, what it does away from the checkout, what `make` installs."""

import re
import shutil
import subprocess
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from children import run_python
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.results import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"

# In a folder that is no checkout, then in the checkout: the installed package finds there what is shipped.
USE = """
import importlib.util, os, sys
from pathlib import Path
from command.main import main
installed, checkout = map(Path, sys.argv[1:])
assert main(["demo"]) == 1 and main(["demo", "--web"]) == 1 and "torch" not in sys.modules
assert main(["push", str(checkout / "hub_cards" / "space"), "org/play", "--dry-run"]) == 1
assert importlib.util.find_spec("hub_cards.space.app").origin == str(installed / "hub_cards" / "space" / "app.py")

os.chdir(checkout)
import evaluation, flm_data, hub_cards.page, modeling_flm, trainers.model_card
from command import demonstration
from trainers import FLMTrainer
for package in (evaluation, flm_data, hub_cards, modeling_flm, trainers):
    assert Path(package.__file__).parent.parent == installed
for template in (trainers.model_card.TEMPLATE, hub_cards.page.TEMPLATE):
    assert template.is_relative_to(installed) and template.exists()
demonstration.PARTS = {"fmlm-shidoku": demonstration.PARTS["fmlm-shidoku"]}
assert main(["demo"]) == 0
assert main(["push", "hub_cards/space", "org/play", "--dry-run"]) == 0
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's files, unpacked as `pip install` does."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        left_out = shutil.ignore_patterns("flm-*", "fmlm-*", "space", "__pycache__")
        shutil.copytree(ROOT / Path(*package.split(".")), source / Path(*package.split(".")), ignore=left_out)
    run_python("-c", BUILD, built, cwd=source)
    [file] = built.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(built / "installed")
    return built / "installed"


def test_the_wheel_has_every_module_and_what_they_read(wheel):
    for package in PACKAGES:
        folder = Path(*package.split("."))
        files = [file for pattern in ("*.py", "*.html", "model_card.md") for file in (ROOT / folder).glob(pattern)]
        assert [file.name for file in files if not (wheel / folder / file.name).is_file()] == []
    [metadata] = wheel.glob("*.dist-info/METADATA")
    assert "Requires-Dist: transformers<6,>=5.17" in metadata.read_text()
    [scripts] = wheel.glob("*.dist-info/entry_points.txt")
    assert "flm = command.main:main" in scripts.read_text()


def test_the_wheel_works_away_from_the_checkout_and_in_one(wheel, tmp_path):
    done = run_python("-P", "-c", USE, wheel, ROOT, cwd=tmp_path, PYTHONPATH=str(wheel))
    said = [line for line in done.stderr.splitlines() if line.startswith("flm: ")]
    assert len(said) == 3 and all(
        "lie in a checkout of the repository, not in the installed package" in s for s in said
    )
    assert "grids of 4x4 Sudoku" in done.stdout and "examples/sudoku/9x9/puzzles.txt" in done.stdout


def test_what_is_installed_is_within_the_bounds_and_what_is_tested():
    """transformers' classes are completed here: another major version may take them away."""
    found = re.findall(r"^([\w.-]+)==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    pins = {canonicalize_name(name): pin for name, pin in found}
    required = {r.name: r for r in map(Requirement, PROJECT["project"]["dependencies"])}
    operators = {specifier.operator for specifier in required["transformers"].specifier}
    assert operators == {">=", "<"}
    for name, requirement in required.items():
        assert pins[name] in requirement.specifier and version(name).split("+")[0] in requirement.specifier, name
    assert version("transformers") == pins["transformers"]


def test_make_installs_what_is_needed_and_torch_first(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def planned(*goal: str) -> list[str]:
        shown = subprocess.run(["make", "-n", *goal], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        return [line.split(" -c constraints.txt ")[1] for line in shown.splitlines() if " install " in line]

    torch = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
    assert planned("demo") == [torch, '-e "."']
    assert planned("demo", "ARGS=--seed 3 --web") == [torch, '-e ".[space]"']
    assert planned("test") == planned("lint") == [torch, '-e ".[dev]"']
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".demo-ready").touch()
    assert planned("demo") == [] != planned("demo", "ARGS=--web")
