"""The baselines train on an FLM's recipe. (Their sampling and likelihood: tests of evaluation.)"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.baselines import ar
from benchmarks.results import ROOT


def test_a_gpt2_trains_on_the_rows_of_a_recipe(tmp_path, monkeypatch):
    output = tmp_path / "run"
    recipe = ROOT / "recipes" / "english-small.yaml"
    settings = [f"training.output_dir={output}", "training.max_steps=2", "training.per_device_train_batch_size=2"]
    settings += ["training.use_cpu=true", "training.bf16=false", "training.disable_tqdm=true", "data.eos_token=<mask>"]
    settings += [
        "model.hidden_size=32",
        "model.num_attention_heads=2",
        "model.num_hidden_layers=1",
        "data.train=../examples/corpus/test.parquet",
    ]
    monkeypatch.setattr(sys, "argv", ["ar", str(recipe), *settings])
    ar.main()
    folder = tmp_path / "run-ar"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert (model.config.n_embd, model.config.n_layer) == (32, 2) and tokenizer.eos_token == "<mask>"
    assert json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())["global_step"] == 2
    ids = model.generate(torch.tensor([[tokenizer.bos_token_id]]))
    assert ids.shape == (1, model.config.n_positions)
