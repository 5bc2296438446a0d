"""`flm push`, and what a user of the Hub then loads: against a Hub on loopback, in fresh processes."""

import json
import re
import shutil
from concurrent.futures import Future
from fnmatch import fnmatch
from threading import Timer

import pytest
import yaml
from children import run_python
from local_hub import local_hub
from training import make_trainer
from transformers.utils import PushInProgress

from benchmarks.cards import card
from benchmarks.few_step import RESULTS
from benchmarks.results import HUB, ROOT
from command.main import main
from hub_cards.push import card_in, check_name, remarks, to_upload
from modeling_flm import FMLMModel
from trainers.pushes import PICKLED

FOLDER = HUB / "fmlm-shidoku"
PUSH = """
import sys
from command.main import main
folder, flow = sys.argv[1:]
assert main(["push", folder, "org/fmlm-test"]) == 0
assert main(["push", folder, "org/fmlm-test", "--create-pr"]) == 0
assert main(["push", flow, "org/flm-shidoku"]) == 0
"""
# The examples of a card, as its reader runs them.
READ = """
import sys
from huggingface_hub import ModelCard, hf_hub_download, model_info
def read(name):
    card = open(hf_hub_download(name, "README.md")).read()
    example = card.split("```python\\n")[1].split("```")[0]
    assert example.count(f'from_pretrained("{name}"') == 2 and f'model="{name}"' in card
    exec(example, found := {})
    base = ModelCard(card).data.base_model
    assert base is None or model_info(base).id == base
    assert "modeling_flm" not in sys.modules
    return found["ids"]
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
from pathlib import Path
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

def train(name, trainer_class, arguments_class, strategy, finish):
    args = arguments_class(
        name, push_to_hub=True, hub_model_id=f"org/{name}", hub_token="any", hub_strategy=strategy, save_steps=1,
        max_steps=2, logging_steps=1, per_device_train_batch_size=4, use_cpu=True, report_to="none", disable_tqdm=True,
        hub_always_push=True,
    )
    Path(name).mkdir()
    Path(name, "tokens.pkl").touch()  # of the user
    trainer = trainer_class(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    finish(trainer)

def push(trainer):
    trainer.push_to_hub(dataset="org/grids", license="apache-2.0")

train("plain", Trainer, TrainingArguments, "every_save", push)
ways = {"end": lambda trainer: trainer.save_model(), "every_save": push, "checkpoint": push, "all_checkpoints": push}
for strategy, finish in ways.items():
    train(strategy, FLMTrainer, FLMTrainingArguments, strategy, finish)
card = open(hf_hub_download("org/every_save", "README.md")).read()
head = yaml.safe_load(card.split("---")[1])
assert head["datasets"] == ["org/grids"] and head["tags"] == ["flow-language-model", "flm", "flow-matching"]
assert "steps taken: 2" in card and "ema decay" in card and "Loss of the training" in card and "Trained from: " in card

# A later push by hand, to a repository that no argument names.
args = FLMTrainingArguments("by-hand", use_cpu=True, report_to="none", hub_token="any")
FLMTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer).push_to_hub()
model.push_to_hub("org/model", token="any")
"""
BY_HAND = """
import sys
from transformers import AutoTokenizer
from modeling_flm import FLMConfig, FLMModel
from command.main import main
folder = sys.argv[1]
assert main(["card", "left", "--dataset", "org/grids"]) == 0
assert main(["push", "left", "org/left"]) == 0
sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conditioning_size=16)
vocabulary = len(AutoTokenizer.from_pretrained(folder))
FLMModel(FLMConfig(vocab_size=vocabulary, max_position_embeddings=8, **sizes)).save_pretrained("tiny")
assert main(["export-official", "tiny", "--output", "official"]) == 0
assert main(["convert", "official", "--output", "ours", "--tokenizer", folder, "--push-to-hub", "org/converted"]) == 0
"""
LOAD_TRAINED = """
from datasets import load_dataset
from transformers import AutoModel, pipeline
assert load_dataset("org/grids", split="train").num_rows == 8
for name in ("org/end", "org/every_save", "tester/by-hand", "org/left", "org/converted"):
    assert read(name).shape == (4, 8 if name == "org/converted" else 16)
assert AutoModel.from_pretrained("org/plain", trust_remote_code=True).generate(num_steps=1).shape == (1, 16)
for name in ("every_save", "plain"):
    assert pipeline("text-generation", model=f"org/{name}", trust_remote_code=True)(num_steps=1)
print("loaded")
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The 4x4 Sudoku models, with cards as `python -m benchmarks.cards` writes them."""
    root = tmp_path_factory.mktemp("models")
    for name in ("flm-shidoku", "fmlm-shidoku"):
        copy = shutil.copytree(HUB / name, root / name)
        (copy / "README.md").write_text(card(HUB / name, json.loads(RESULTS.read_text())))
    return root


def run(script: str, cwd, *arguments, **environment: str) -> str:
    return run_python("-P", "-c", script, *arguments, cwd=cwd, OMP_NUM_THREADS="1", **environment).stdout


def test_pushed_and_loaded_from_the_hub(folders, tmp_path):
    folder, key = folders / "fmlm-shidoku", ("models", "org/fmlm-test")
    with local_hub(tmp_path / "home") as (environment, hub):
        shown = run(PUSH, tmp_path, folder, folders / "flm-shidoku", **environment)
        assert "README.md" in shown and "/commit/" in shown and "/discussions/1" in shown
        commit, files = hub.head(key)
        names = to_upload(folder).keys()
        assert hub.repositories.keys() == {key, ("models", "org/flm-shidoku")}
        assert files.keys() == names | {".gitattributes"}
        assert all(files[name] == (folder / name).read_bytes() for name in names if name != "README.md")
        assert files["README.md"].decode() == card_in(folder, "org/fmlm-test")
        assert hub.head(key, "refs/pr/1")[1] == files
        reading = "\nread('org/fmlm-test'), read('org/flm-shidoku')\n"
        online = run(READ + reading + LOAD, tmp_path, commit, **environment)
    offline = dict(environment, HF_HUB_OFFLINE="1")
    assert run(LOAD, tmp_path, commit, **offline) == online.splitlines()[-1] + "\n"  # the Hub is gone: from the cache


def test_trained_with_push_to_hub_and_loaded(tmp_path):
    with local_hub(tmp_path / "home") as (environment, hub):
        run(TRAIN, tmp_path, HUB / "flm-shidoku", **environment, PYTHONPATH=str(ROOT))
        on_the_way = hub.repositories["models", "org/plain"][1][2]
        assert "modeling_flm.py" not in on_the_way and "README.md" not in on_the_way
        (tmp_path / "left").mkdir()
        for name, file in on_the_way.items():
            (tmp_path / "left" / name).write_bytes(file)
        run(BY_HAND, tmp_path, FOLDER, **environment, PYTHONPATH=str(ROOT))
        assert run(READ + LOAD_TRAINED, tmp_path, **environment).splitlines()[-1] == "loaded"
    wanted = {("models", "tester/by-hand"), ("models", "org/model"), ("datasets", "org/grids")}
    assert hub.repositories.keys() >= wanted
    states = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}  # what a checkpoint cannot be resumed without
    allowed = {
        "org/checkpoint": {f"last-checkpoint/{state}" for state in states},
        "org/all_checkpoints": {f"checkpoint-{step}/{state}" for state in states for step in (1, 2)},
    }
    for (kind, name), revisions in hub.repositories.items():
        if kind == "models" and name != "org/plain":
            pushed = {path for _, _, files in revisions for path in files}
            pickled = {path for path in pushed if any(fnmatch(path, pattern) for pattern in PICKLED)}
            assert pickled == allowed.get(name, set()) and "model.safetensors" in pushed
    for strategy in ("end", "every_save", "checkpoint", "all_checkpoints"):
        assert (tmp_path / strategy / "training_args.bin").is_file()  # at home


# -- before a push ----------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_what_the_hub_will_have_and_asks_nobody(folders, tmp_path):
    requests = []
    with local_hub(tmp_path / "home") as (environment, hub):
        hub.watch = lambda moment, request: requests.append(request)
        command = ["-m", "command.main", "push", folders / "fmlm-shidoku", "me/map", "--dry-run"]
        done = run_python(*command, cwd=ROOT, **environment)
        assert requests == [] and hub.repositories == {}
    lines = done.stdout.split("\n\n")
    files = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in lines[0].splitlines()[:-1]}
    assert files.keys() == to_upload(FOLDER).keys()
    assert files["README.md"] == len(card_in(folders / "fmlm-shidoku", "me/map").encode())
    assert files["model.safetensors"] == (FOLDER / "model.safetensors").stat().st_size
    total = f"{sum(files.values()):,} in {len(files)} files, to me/map"
    assert lines[0].splitlines()[-1].split() == total.split()
    head = yaml.safe_load(lines[2])
    assert head["base_model"] == "me/flm-shidoku" and head["results"] == "6 (accuracy)"
    assert done.stderr == "flm: warning: the card names no data set on the Hub (flm card --dataset org/name).\n"


@pytest.mark.parametrize("name", ["map", "org/a/b", "org/a--b", "org/", "org/a b", "org/model.git", "x" * 97])
def test_a_name_that_the_hub_does_not_allow_or_of_nobody_is_refused(name, capsys):
    with pytest.raises(ValueError):
        check_name(name)
    assert main(["push", str(FOLDER), name, "--dry-run"]) == main(["push", str(FOLDER), name]) == 1
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith("flm: ") and name.split("/")[0] in line


def test_what_a_reader_would_miss_is_said(folders, tmp_path):
    text = "---\nbase_model: flow\n---\n\n[here](../flow) [there](https://a.b) [log](log.jsonl) [top](#top)\n"
    large = tmp_path / "model.safetensors"
    with open(large, "wb") as file:
        file.truncate(5 * 10**9 + 1)  # a hole
    said = remarks(text, {"model.safetensors": large, "log.jsonl": FOLDER / "config.json"}, "org/map")
    wanted = ["no data set", "no license", "no evaluation results", "base_model flow has no organisation"]
    wanted += ["do not load org/map", r"links \.\./flow,", "more than 5 GB"]
    assert len(said) == len(wanted) and all(re.search(part, line) for part, line in zip(wanted, said, strict=True))
    shutil.copytree(folders / "fmlm-shidoku", alone := tmp_path / "alone" / "map")  # its flow is not beside it
    assert "base_model flm-shidoku has no organisation" in remarks(card_in(alone, "org/map"), {}, "org/map")[1]


def test_weights_in_several_files(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    FMLMModel.from_pretrained(FOLDER).save_pretrained(folder, max_shard_size="2MB")
    names = {path.name for path in folder.glob("model-*.safetensors")}
    assert len(names) == 2 and names | {"model.safetensors.index.json"} <= to_upload(folder).keys()
    (folder / min(names)).unlink()
    with pytest.raises(ValueError, match=f"has no {min(names)}"):
        to_upload(folder)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("README.md", None, "has no README.md"),
        ("pipeline_flm.py", None, "has no pipeline_flm.py, which a model repository needs: `flm card` writes it"),
        ("model.safetensors", "short", "model.safetensors is damaged"),
        ("README.md", "# a title\n", "has no YAML"),
        ("README.md", "---\na: [1\n---\n", "the YAML at the head of .* is broken"),
    ],
)
def test_a_repository_that_is_not_whole_is_refused(name, content, message, tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        to_upload(folder)


def test_what_is_left_out(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    for name in ("optimizer.pt", ".secret", "training_args.bin", "rng_state.pth", "cache.pickle"):
        (folder / name).touch()
    (folder / "checkpoint-5").mkdir()
    assert to_upload(folder).keys() == {path.name for path in FOLDER.iterdir() if path.is_file()}


def test_weights_in_other_files_are_removed(tmp_path, monkeypatch):
    """transformers would load an old `model.safetensors` beside new shards."""
    folder = tmp_path / "model"
    shutil.copytree(FOLDER, folder)
    (folder / "model.safetensors").unlink()
    FMLMModel.from_pretrained(FOLDER).save_pretrained(folder, max_shard_size="1MB")
    with local_hub(tmp_path / "home") as (environment, hub):
        for name in (FOLDER, folder, FOLDER):
            run_python("-m", "command.main", "push", name, "org/model", cwd=ROOT, **environment)
        kept = [
            {path for path in files if "safetensors" in path}
            for _, _, files in hub.repositories["models", "org/model"]
        ]
    shards = {path.name for path in folder.glob("model*safetensors*")}
    assert len(shards) > 2 and kept[-3:] == [{"model.safetensors"}, shards, {"model.safetensors"}]


def test_what_is_being_pushed_is_not_overwritten(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2, hub_always_push=True)
    trainer.train()
    earlier, done_before = Future(), []
    monkeypatch.setattr(trainer, "push_in_progress", PushInProgress([earlier]), raising=False)
    monkeypatch.setattr(trainer, "hub_model_id", "org/model", raising=False)
    monkeypatch.setattr(trainer, "create_model_card", lambda **_: done_before.append(earlier.done()))
    monkeypatch.setattr(trainer, "_upload", lambda *args, **kwargs: Future())
    for push in (lambda: trainer._push_from_checkpoint(str(tmp_path / "checkpoint-2")), trainer.push_to_hub):
        trainer.push_in_progress.jobs = [earlier]
        Timer(0.2, earlier.set_result, [None]).start()
        push()
        earlier = Future()
    assert done_before == [True, True]
