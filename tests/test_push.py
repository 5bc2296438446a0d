"""`flm push`, and what a user of the Hub then loads: against a Hub on loopback, in fresh processes."""

import os
import shutil
import subprocess
import sys

import pytest
from local_hub import local_hub

from benchmarks.results import HUB, ROOT
from hub_cards.push import to_upload

FOLDER = HUB / "fmlm-shidoku"
PUSH = """
import sys
from trainers.cli import main
folder = sys.argv[1]
assert main(["push", folder, "org/fmlm-test", "--dry-run"]) == 0
assert main(["push", folder, "org/fmlm-test"]) == 0
assert main(["push", folder, "org/fmlm-test", "--create-pr"]) == 0
"""
LOAD = """
import sys
from transformers import AutoModel, AutoTokenizer, pipeline
model = AutoModel.from_pretrained("org/fmlm-test", trust_remote_code=True)
ids = model.generate(num_steps=1, num_return_sequences=2, seed=0)
write = pipeline("text-generation", model="org/fmlm-test", trust_remote_code=True)
texts = [text["generated_text"] for text in write(num_steps=1, num_return_sequences=2, seed=0)]
assert texts == AutoTokenizer.from_pretrained("org/fmlm-test", trust_remote_code=True).batch_decode(ids)
commit = sys.argv[1]
pinned = AutoModel.from_pretrained("org/fmlm-test", trust_remote_code=True, revision=commit, code_revision=commit)
assert pinned.generate(num_steps=1, num_return_sequences=2, seed=0).equal(ids)
assert "modeling_flm" not in sys.modules
print(texts)
"""

TRAIN = """
import sys
import yaml
from huggingface_hub import hf_hub_download
from datasets import Dataset, load_dataset
from transformers import AutoModel, AutoTokenizer, Trainer, TrainingArguments
from trainers import FLMTrainer, FLMTrainingArguments
folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
ids = model.generate(num_steps=1, num_return_sequences=8, seed=0)
rows = Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()})
rows.push_to_hub("org/grids", token="any")
rows = load_dataset("org/grids", split="train")
assert rows["input_ids"] == ids.tolist()
ways = {"flow": (FLMTrainer, FLMTrainingArguments), "plain": (Trainer, TrainingArguments)}
for name, (trainer_class, arguments_class) in ways.items():
    args = arguments_class(
        name, push_to_hub=True, hub_model_id=f"org/{name}", hub_token="any", hub_strategy="every_save", save_steps=1,
        max_steps=2, logging_steps=1, per_device_train_batch_size=4, use_cpu=True, report_to="none", disable_tqdm=True,
    )
    trainer = trainer_class(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.push_to_hub(dataset="org/grids", license="apache-2.0")
card = open(hf_hub_download("org/flow", "README.md")).read()
head = yaml.safe_load(card.split("---")[1])
assert head["datasets"] == ["org/grids"] and head["tags"] == ["flow-language-model", "fmlm", "one-step-generation"]
assert "steps taken: 2" in card and "ema decay" in card and "loss: " in card and "Trained from: " in card
"""
LOAD_TRAINED = """
from datasets import load_dataset
from transformers import AutoModel, pipeline
assert load_dataset("org/grids", split="train").num_rows == 8
for name in ("flow", "plain"):
    model = AutoModel.from_pretrained(f"org/{name}", trust_remote_code=True)
    assert model.generate(num_steps=1).shape == (1, 16)
    assert pipeline("text-generation", model=f"org/{name}", trust_remote_code=True)(num_steps=1)
print("loaded")
"""


def run(script: str, cwd, *arguments, **environment: str) -> str:
    left = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-P", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=left | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_pushed_and_loaded_from_the_hub(tmp_path):
    with local_hub() as (address, hub):
        environment = dict(HF_ENDPOINT=address, HF_HOME=str(tmp_path / "home"), HF_TOKEN="any", HF_HUB_DISABLE_XET="1")
        shown = run(PUSH, tmp_path, FOLDER, **environment)
        assert "README.md" in shown and "/commit/" in shown and "/discussions/1" in shown
        (key,) = hub.repositories
        commit, files = hub.head(key)
        names = to_upload(FOLDER).keys()
        assert key == ("models", "org/fmlm-test") and files.keys() == names | {".gitattributes"}
        assert all(files[name] == (FOLDER / name).read_bytes() for name in names)
        assert hub.head(key, "refs/pr/1")[1].keys() == files.keys()
        online = run(LOAD, tmp_path, commit, **environment)
    assert run(LOAD, tmp_path, commit, **environment, HF_HUB_OFFLINE="1") == online  # the Hub is gone: from the cache


def test_trained_with_push_to_hub_and_loaded(tmp_path):
    with local_hub() as (address, hub):
        environment = dict(HF_ENDPOINT=address, HF_HOME=str(tmp_path / "home"), HF_TOKEN="any", HF_HUB_DISABLE_XET="1")
        run(TRAIN, tmp_path, FOLDER, **environment, PYTHONPATH=str(ROOT))
        assert set(hub.repositories) == {("models", "org/flow"), ("models", "org/plain"), ("datasets", "org/grids")}
        assert run(LOAD_TRAINED, tmp_path, **environment).strip() == "loaded"


def without(name: str):
    return lambda folder: (folder / name).unlink()


def damaged(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    "damage, message",
    [
        (without("README.md"), "has no README.md"),
        (without("pipeline_flm.py"), "has no pipeline_flm.py"),
        (damaged("model.safetensors", "short"), "model.safetensors is damaged"),
        (damaged("README.md", "# a title\n"), "has no YAML"),
        (damaged("README.md", "---\na: [1\n---\n"), "the YAML at the head of .* is broken"),
    ],
)
def test_a_repository_that_is_not_whole_is_refused(damage, message, tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        to_upload(folder)


def test_what_is_left_out(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    for name in ("optimizer.pt", ".secret", "training_args.bin"):
        (folder / name).touch()
    (folder / "checkpoint-5").mkdir()
    assert to_upload(folder).keys() == {path.name for path in FOLDER.iterdir() if path.is_file()}
