"""What `hub_cards/` ships: repositories that stand alone, with the package's code, and cards of what was measured."""

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from children import run_python
from tiny import tiny_model
from transformers import AutoModel

from benchmarks import (
    ablation,
    convergence,
    convert,
    deploy,
    few_step,
    generation,
    ingredients,
    likelihood,
    samplers,
    scaling,
    soak,
    solving,
    startup,
    step_options,
    style,
    sudoku_ingredients,
    training_step,
)
from benchmarks.cards import card, shipped
from benchmarks.few_step import RESULTS, solved, unconditional
from benchmarks.results import BASELINES, ROOT
from benchmarks.ship import ship, store_in_half

FOLDERS = shipped()
MEASURED = json.loads(RESULTS.read_text())
FRESH = """
import sys
from transformers import AutoModel, AutoTokenizer
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    ids = model.generate(num_steps=1, num_return_sequences=2, seed=0)
    texts = tokenizer.batch_decode(ids)
    assert ids.shape == (2, model.config.max_position_embeddings) and all(texts), folder
    assert "modeling_flm" not in sys.modules, "not the repository's own code"
print("loaded", len(sys.argv) - 1)
"""


def test_what_is_shipped():
    names = {folder.name for folder in FOLDERS}
    data = ("tinystories", "english-small", "shidoku", "sudoku")
    assert names >= {f"{kind}-{of}" for kind, of in product(("flm", "fmlm"), data)}
    assert all("flm-" + name.split("-", 1)[1] in names for name in names)  # each map with its flow
    for folder in FOLDERS:
        for file in ("config.json", "generation_config.json", "tokenizer.json", "recipe.yaml", "training_log.jsonl"):
            assert (folder / file).stat().st_size > 0
        assert not [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pkl")]
    weights = [*ROOT.glob("hub_cards/*/*.safetensors"), *BASELINES.glob("*/*.safetensors")]
    assert sum(file.stat().st_size for file in weights) < 100e6


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_code_is_links_and_its_card_up_to_date(folder):
    links = {path.name: path.readlink() for path in folder.glob("*.py")}
    sources = (ROOT / "modeling_flm").glob("*_flm.py")
    assert links == {source.name: Path("../../modeling_flm", source.name) for source in sources}
    assert (folder / "README.md").read_text() == card(folder, MEASURED)


BENCHMARKS = [
    ablation,
    convergence,
    convert,
    deploy,
    few_step,
    generation,
    ingredients,
    likelihood,
    samplers,
    soak,
    solving,
    startup,
    step_options,
    style,
    sudoku_ingredients,
    training_step,
]


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda module: module.__name__)
def test_the_report_is_that_of_the_measurements(benchmark):
    measured = json.loads(benchmark.RESULTS.read_text())
    assert benchmark.RESULTS.with_suffix(".md").read_text() == benchmark.report(measured)


def test_the_arithmetic_of_scaling_is_up_to_date():
    assert scaling.REPORT.read_text() == scaling.report()


def test_every_repository_loads_in_a_fresh_process_from_its_folder_alone(tmp_path):
    folders = [shutil.copytree(folder, tmp_path / folder.name) for folder in FOLDERS]
    done = run_python("-P", "-c", FRESH, *folders, cwd=tmp_path)
    assert done.stdout.strip() == f"loaded {len(FOLDERS)}"


SHIDOKU = {(row["model"], row["sampler"], row["steps"]): row["valid"] for row in MEASURED["shidoku"]}
FLOW, MAP = ("flm-shidoku", "bridge"), ("fmlm-shidoku", "flow_map")


@pytest.mark.parametrize("drawn", [(*FLOW, 16), (*MAP, 1), (*MAP, 2)], ids=str)
def test_the_grids_are_as_good_as_the_card_says(drawn):
    name, sampler, steps = drawn
    measured = unconditional(AutoModel.from_pretrained(ROOT / "hub_cards" / name).eval(), sampler, steps, 500, seed=7)
    assert abs(measured["valid"] - SHIDOKU[drawn]) < 4 * (0.25 / 500) ** 0.5


@pytest.mark.parametrize("name, sampler", [("flm-sudoku", "euler"), ("fmlm-sudoku", "flow_map")])
def test_puzzles_are_solved_as_often_as_the_card_says(name, sampler):
    way = {"model": name, "sampler": sampler, "settings": "refined", "steps": 8}
    (row,) = (row for row in MEASURED["sudoku"] if way.items() <= row.items())
    model = AutoModel.from_pretrained(ROOT / "hub_cards" / name).eval()
    (share,) = solved(model, sampler, 1, clues=40, count=100, seed=7, refine_steps=7).values()
    assert abs(share - row["solved, 40 clues"]) < 4 * (0.25 / 100) ** 0.5


def test_the_measured_gain_of_the_map():
    """What the project claims of 4x4 Sudoku."""
    assert min(SHIDOKU[*FLOW, 64], SHIDOKU["flm-shidoku", "euler", 64]) >= 0.95 and SHIDOKU[*FLOW, 1] < 0.02
    assert SHIDOKU[*MAP, 1] >= 0.70
    assert MEASURED["coverage"][0]["distinct"] >= 280


def test_the_measured_gain_of_the_samplers():
    """What the project claims of them, at equal evaluations of the network."""
    measured = json.loads(samplers.RESULTS.read_text())
    solved_by = {
        (row["model"], row["evaluations"], row["settings"]): (row["solved, 36 clues"], row["solved, 36 clues_sd"])
        for row in measured["sudoku"]
    }
    for model, evaluations in product(("flm-sudoku", "fmlm-sudoku"), (4, 8, 16)):
        plain, spread = solved_by[model, evaluations, ""]
        refined, other_spread = solved_by[model, evaluations, f"refine_steps {evaluations - 1}"]
        assert refined - plain > spread + other_spread
    perplexity = {
        (row["sampler"], row["evaluations"]): (row["gppl_ar"], row["entropy"])
        for row in measured["english"]
        if row["model"] == "flm-english-small" and not row["settings"]
    }
    for evaluations in (8, 16):
        (second, its_entropy), (first, entropy) = (perplexity[name, evaluations] for name in ("multistep", "euler"))
        assert second < first and abs(its_entropy - entropy) < 0.01


def test_weights_kept_in_half_load_in_float32(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    store_in_half(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 0.6 * size
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.bfloat16().float())
    configs = [*ROOT.glob("hub_cards/*/config.json"), *BASELINES.glob("*/config.json")]
    assert all(json.loads(config.read_text())["dtype"] == "float32" for config in configs)


def test_shipping_needs_a_finished_run(tmp_path):
    with pytest.raises(ValueError, match="there is no finished run in"):
        ship(ROOT / "recipes" / "shidoku.yaml", tmp_path / "out", run=tmp_path)


def test_a_card_needs_measurements():
    with pytest.raises(ValueError, match="is not in benchmarks/few_step.json"):
        card(FOLDERS[0], {})
