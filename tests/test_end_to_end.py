"""`make shidoku` in miniature: its recipes, from scratch: trained for a few steps, distilled, shipped, drawn from."""

import json
from pathlib import Path

import numpy as np
from transformers import AutoModel, AutoTokenizer

from benchmarks.results import ROOT
from benchmarks.ship import ship
from command.main import main
from hub_cards.push import NEEDED

SMALL = ["model.num_hidden_layers=3", "training.disable_tqdm=true", "training.logging_steps=20"]


def losses(run: Path, name: str = "loss") -> list[float]:
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in log if name in entry]


def test_from_scratch_to_a_shipped_map(tmp_path):
    flow, flow_map, again = (tmp_path / name for name in ("flow", "map", "again"))
    recipe = str(ROOT / "recipes" / "shidoku.yaml")
    steps = [*SMALL, "training.max_steps=240", "training.warmup_steps=10", "training.save_strategy=no"]
    steps += ["training.lr_scheduler_type=constant_with_warmup"]
    assert main(["train", recipe, *steps, f"training.output_dir={flow}"]) == 0
    first, last = losses(flow)[0], losses(flow)[-1]
    assert first > 1.1 and last < 0.7  # nats per cell, where log 4 is to know nothing
    assert main(["train", recipe, *steps, f"training.output_dir={again}", "training.max_steps=20"]) == 0
    assert losses(again)[0] == first  # the seed of the recipe decides everything

    teach = [f"teacher={flow}", f"training.output_dir={flow_map}", "training.max_steps=60", *SMALL[1:]]
    assert main(["distill", str(ROOT / "recipes" / "shidoku-fmlm.yaml"), *teach]) == 0
    assert losses(flow_map, "loss_off_diagonal")[-1] < losses(flow_map, "loss_off_diagonal")[0]

    for run, name, kind in ((flow, "shidoku", "flm"), (flow_map, "shidoku-fmlm", "fmlm")):
        folder = tmp_path / f"{kind}-shipped"
        ship(ROOT / "recipes" / f"{name}.yaml", folder, run)
        assert {path.name for path in folder.iterdir()} >= {*NEEDED, "recipe.yaml"} - {"README.md"}
        model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        assert model.config.model_type == kind
        ids = model.generate(num_return_sequences=3, seed=0)
        assert all(len(text) == 16 and set(text) <= set("1234") for text in tokenizer.batch_decode(ids))

    # Rows are what a flow learns first: far more of them are right than by chance (9 %).
    drawn = AutoModel.from_pretrained(flow).eval().generate(num_steps=16, num_return_sequences=200, seed=1)
    rows = np.sort(drawn.numpy().reshape(-1, 4), axis=1)
    digits = np.sort(np.unique(drawn.numpy()))
    assert (rows == digits).all(axis=1).mean() > 0.4
