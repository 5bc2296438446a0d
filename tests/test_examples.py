"""The example scripts, run in miniature as their user runs them: one fresh process, in another folder."""

import json
import runpy
import shlex
import sqlite3
import sys
from contextlib import closing

import pytest
from children import run_python
from datasets import load_dataset
from local_hub import local_hub
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import same

from benchmarks.results import CORPUS, HUB, ROOT

# One process for all of them: it takes longer to start than they do.
RUN = """
import json, runpy, sys
for script, *options in json.loads(sys.argv[1]):
    sys.argv = [script, *options]
    runpy.run_path(script, run_name="__main__")
"""
SHORT = "--use-cpu --disable-tqdm true --logging-steps 1 --per-device-train-batch-size 8 --warmup-steps 0 "
SHORT += "--lr-scheduler-type constant --train play.parquet"
STREAM = "finetune_streaming --ema-decay 0.5 --save-steps 2 --shuffle-buffer 9"
COMMANDS = f"""
finetune_trainer --validation play.parquet --output-dir plain --max-steps 8 --eval-on-start --save-strategy no \
    --report tensorboard trackio {SHORT} --train text.parquet --source ""
finetune_flm_trainer {SHORT} --train text.parquet --validation text.parquet --source "" --output-dir flow \
    --ema-decay 0.5 --max-steps 8 --num-samples 0
finetune_map --teacher flow --output-dir map --max-steps 2 {SHORT}
finetune_lora --validation play.parquet --output-dir lora --ema-decay 0.5 --max-steps 8 --save-steps 8 {SHORT} \
    --push-to-hub --hub-model-id me/lora --hub-strategy every_save --hub-always-push
{STREAM} --output-dir streamed --max-steps 4 {SHORT}
{STREAM} --output-dir resumed --max-steps 2 {SHORT}
{STREAM} --output-dir resumed --max-steps 4 --resume {SHORT}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder where all of them have run, the Hub that one pushed to, and what was printed."""
    folder = tmp_path_factory.mktemp("examples")
    play = load_dataset("parquet", data_files=str(CORPUS / "validation.parquet"), split="train")
    play = play.filter(lambda row: row["title"].startswith("Comedy Of Errors")).take(10)
    play.to_parquet(folder / "play.parquet")
    play.select_columns("text").to_parquet(folder / "text.parquet")
    commands = [shlex.split(line) for line in COMMANDS.strip().splitlines()]
    commands = [[str(ROOT / "examples" / f"{script}.py"), *options] for script, *options in commands]
    with local_hub(folder / "home") as (environment, hub):
        environment |= dict(TRACKIO_DIR=str(folder / "trackio"), PYTHONPATH=str(ROOT))
        environment |= dict(OMP_NUM_THREADS="1")  # as the other tests: the models are tiny
        done = run_python("-P", "-c", RUN, json.dumps(commands), cwd=folder, **environment)
    return folder, hub, done.stdout


def evaluation_losses(folder) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry]


@pytest.mark.parametrize(
    "script, option",
    [
        *((f"finetune_{name}", "--model") for name in ("trainer", "flm_trainer", "map", "lora", "streaming")),
        *((f"finetune_{name}", "--train") for name in ("trainer", "flm_trainer", "map", "lora", "streaming")),
        ("finetune_map", "--teacher"),
    ],
)
def test_a_path_to_nothing_is_named(script, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, option, "./missing", "--use-cpu", "--output-dir", "out"])
    with pytest.raises(ValueError, match=r"^there is no file or folder \./missing\.$"):
        runpy.run_path(str(ROOT / "examples" / f"{script}.py"), run_name="__main__")


@pytest.mark.parametrize("name", ["plain", "flow", "map", "streamed"])
def test_a_whole_model_folder_is_left(runs, name):
    shipped = HUB / ("fmlm-english-small" if name == "map" else "flm-english-small")
    needed = {path.name for path in shipped.iterdir()} - {"README.md", "recipe.yaml", "training_log.jsonl"}
    assert needed <= {path.name for path in (runs[0] / name).iterdir()}
    before, after = (load_file(folder / "model.safetensors") for folder in (shipped, runs[0] / name))
    assert before.keys() == after.keys() and not same(before, after)


def test_fine_tuning_learns(runs):
    folder = runs[0]
    before, *_, after = evaluation_losses(folder / "flow")
    assert after < before - 0.02
    before, *_, after = evaluation_losses(folder / "lora" / "checkpoint-8")
    assert after < before - 0.02


def test_the_plain_trainer_reports(runs):
    folder = runs[0]
    (events,) = (folder / "plain").rglob("events.out.tfevents*")
    board = EventAccumulator(str(events)).Reload()
    losses = [event.value for event in board.Scalars("train/loss")]
    before, after = (event.value for event in board.Scalars("eval/loss"))
    assert len(losses) == 8 and after < before - 0.02
    (database,) = (folder / "trackio").glob("*.db")
    with closing(sqlite3.connect(database)) as connection:
        rows = [json.loads(row) for (row,) in connection.execute("select metrics from metrics order by id")]
    assert [row["train/loss"] for row in rows if "train/loss" in row] == pytest.approx(losses, rel=1e-6)


def test_the_adapter_merges_without_a_change_and_is_pushed(runs):
    folder, hub, printed = runs
    (line,) = [line for line in printed.splitlines() if line.startswith("merging changed the logits by at most")]
    assert float(line.split()[-1]) < 1e-3
    _, files = hub.head(("models", "me/lora"))
    for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json"):
        assert files[name] == (folder / "lora" / name).read_bytes()
    assert "model.safetensors" not in files and b"library_name: peft" in files["README.md"]
    assert b"runs" not in files["README.md"] and str(ROOT).encode() not in files["README.md"]


def test_a_streamed_run_is_resumed_to_the_same_weights(runs):
    whole, resumed = (load_file(runs[0] / name / "model.safetensors") for name in ("streamed", "resumed"))
    assert same(whole, resumed)
