"""From a finished run to a model repository: what `hub_cards/` ships.

    python -m benchmarks.ship recipes/shidoku.yaml hub_cards/flm-shidoku

takes the run in the recipe's output directory and writes the folder of a Hub repository: configurations, safetensors,
tokenizer, links to the code in modeling_flm/, the recipe and the training log. `python -m benchmarks.cards` writes its
card, once the model is measured.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

import modeling_flm  # noqa: F401  registers the model types
from benchmarks.results import ROOT
from trainers.recipe import load_recipe


def store_in_half(folder: Path) -> None:
    """Round the weights of a model folder to bfloat16, half the size. They still load in float32, which `config.json`
    says."""
    file = folder / "model.safetensors"
    weights = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})


def ship(recipe_path: Path, folder: Path, run: Path | None = None, resumed_at: int = 0, half: bool = False) -> None:
    """Write the repository `folder` from `run`, by default the output directory of the recipe.

    Args:
        resumed_at: the step from which an interrupted run went on: the training time that it logged counts from there.
        half: whether the weights are kept in bfloat16, see [`store_in_half`].

    Raises:
        ValueError: there is no finished run there.
    """
    recipe = load_recipe(recipe_path)
    run = run or Path(recipe.training["output_dir"])
    state = run / "trainer_state.json"
    if not state.exists():
        raise ValueError(
            f"there is no finished run in {run}: train it first (flm train or flm distill {recipe_path})."
        )
    AutoModel.from_pretrained(run).save_pretrained(folder)
    AutoTokenizer.from_pretrained(run).save_pretrained(folder)
    if half:
        store_in_half(folder)
    for source in sorted((ROOT / "modeling_flm").glob("*_flm.py")):
        (folder / source.name).unlink()
        (folder / source.name).symlink_to(os.path.relpath(source, folder))
    shutil.copy(recipe_path, folder / "recipe.yaml")
    log = json.loads(state.read_text())["log_history"]
    if resumed_at:
        next(entry for entry in reversed(log) if "train_runtime" in entry)["resumed_at"] = resumed_at
    (folder / "training_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a model repository from a finished run.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resumed-at", type=int, default=0, help="the last step that an interrupted run resumed at")
    parser.add_argument("--half", action="store_true", help="keep the weights in bfloat16")
    options = parser.parse_args()
    ship(options.recipe, options.folder, resumed_at=options.resumed_at, half=options.half)


if __name__ == "__main__":
    main()
