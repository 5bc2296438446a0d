"""The `flm` command, as its users call it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree

import pytest
from children import run_python
from datasets import Dataset
from huggingface_hub import ModelCard, constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from training import arguments, same, weights
from transformers import PreTrainedTokenizerFast

import trainers.train
from benchmarks.results import BASELINES, HUB, ROOT
from command.generate import shown
from command.main import main
from hub_cards.push import NEEDED, to_upload
from modeling_flm import FLMModel, FMLMModel
from trainers.recipe import finetuning_recipe, load_recipe

WORDS = "the cat saw a dog and one bird sang to an old fox under some tree by our red barn".split()
LINES = [" ".join(WORDS[(7 * i + k * k) % len(WORDS)] for k in range(8)) + "." for i in range(120)]

RECIPE = """
model:
  {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64, conditioning_size: 16,
   time_embedding_size: 16, max_position_embeddings: 16}
tokenizer: ./tokenizer
data: {train: ./train.txt, validation: ./validation.txt, max_validation_rows: 1000}
training:
  {max_steps: 4, per_device_train_batch_size: 8, learning_rate: 1e-3, ema_decay: 0.5, eval_strategy: steps,
   eval_steps: 2, save_steps: 2, logging_steps: 1, num_samples: 1, sample_num_steps: [2], use_cpu: true,
   disable_tqdm: true}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with recipes, their texts and their tokenizer."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "distil.yaml").write_text("teacher: ./runs/finished\n" + RECIPE[RECIPE.index("tokenizer:") :])
    (folder / "train.txt").write_text("\n".join(LINES))
    (folder / "validation.txt").write_text("\n".join(LINES[:30]))
    (folder / "other.txt").write_text("\n".join(line.upper() for line in LINES))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]"}
    trainer = BpeTrainer(vocab_size=100, special_tokens=list(special.values()), show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "tokenizer")
    return folder


def train(project: Path, output: Path, *more: str) -> int:
    return main(["train", str(project / "recipe.yaml"), f"training.output_dir={output}", *more])


def distill(project: Path, output: Path, *more: str) -> int:
    return main(["distill", str(project / "distil.yaml"), f"training.output_dir={output}", *more])


@pytest.fixture(scope="module")
def trained(project) -> Path:
    """The folder of a finished run of four steps."""
    output = project / "runs" / "finished"
    assert train(project, output) == 0
    return output


def saved(folder: Path, kind: type[FLMModel] = FLMModel) -> dict:
    return weights(kind.from_pretrained(folder))


def one_line(capture, bars: bool = False) -> str:
    """The only line on stderr; with `bars`, beside those of `datasets`, which a terminal overwrites."""
    lines = capture.readouterr().err.splitlines()
    if bars:
        lines = [line for line in lines if line.strip() and "%|" not in line and "examples/s]" not in line]
    [line] = lines
    return line


def training_raises(error: BaseException, monkeypatch) -> None:
    def fail(*_):
        raise error

    monkeypatch.setattr(trainers.train, "build_trainer", fail)


# -- help, and mistakes that need no model ----------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
from command.main import main

for command in ([], ["train"], ["distill"], ["generate"], ["evaluate"], ["demo"]):
    try:
        main([*command, "--help"])
    except SystemExit as end:
        assert end.code == 0, end.code
assert main(["train", "missing.yaml"]) == 1
print(sorted({"torch", "transformers", "datasets"} & set(sys.modules)))
"""


def test_help_and_a_wrong_recipe_do_not_wait_for_torch(tmp_path):
    result = run_python("-c", WITHOUT_TORCH, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert result.stdout.endswith("[]\n")
    assert all(name in result.stdout for name in ("usage: flm", "--resume", "--num-steps", "section.name=value"))
    assert result.stderr == "flm: the recipe missing.yaml cannot be read: No such file or directory.\n"


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
ENVIRONMENT["PYTHONPATH"] = str(ROOT)
FLM = [sys.executable, "-m", "command.main"]


@pytest.mark.parametrize(
    "arguments, left",
    [
        (["--help"], "stdout"),
        (["push", str(HUB / "space"), "org/name", "--dry-run"], "stdout"),
        (["train", "missing.yaml"], "stderr"),
    ],
)
def test_a_reader_that_leaves_is_no_error(tmp_path, arguments, left):
    """As in `flm push --dry-run | head -1`, however early `head` goes."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen([*FLM, *arguments], **pipes, env=ENVIRONMENT, cwd=tmp_path)
    streams = {"stdout": process.stdout, "stderr": process.stderr}
    streams.pop(left).close()
    [other] = streams.values()
    assert other.read() == b"" and process.wait(60) == 141
    other.close()


def test_a_broken_pipe_between_processes_is_an_error(project, tmp_path, monkeypatch, capfd):
    training_raises(BrokenPipeError("a worker died"), monkeypatch)
    with pytest.raises(BrokenPipeError):
        train(project, tmp_path)


def test_a_package_that_hides_one_of_ours_is_named(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "__init__.py").touch()
    given = "evaluate m --output o --scorer s --reference r".split()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([*FLM, *given], env=environment, capture_output=True, text=True, cwd=tmp_path)
    said = f"flm: the package `evaluation` in {tmp_path} hides that of flow-language-models in {ROOT}.\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize("line", ["", "trian", "train", "train x --resme", "generate x y", "generate x --sampler bad"])
def test_a_wrong_command_line_ends_with_status_2(line, capsys):
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert end.value.code == 2 and "usage: flm" in capsys.readouterr().err


MISTAKES = {
    "training.max_stepz=3": "max_stepz",
    "training.ema_decay=2": "ema_decay",
    "training.learning_rate=fast": "training.learning_rate",
    "training.per_device_train_batch_size=many": "training.per_device_train_batch_size",
    "training.sample_num_steps=8": "sample_num_steps",
    "training.eval_strategy=sometimes": "sometimes",
    "training.label_smoothing_factor=0.1": "label_smoothing_factor",
    "model.hidden_sise=32": "hidden_sise",
    "model.hidden_size=33": "hidden_size",
    "model.hidden_size=wide": "hidden_size",
    "model.type=gpt": "model.type",
    "model.attn_implementation=sdpa": "cannot cap attention scores",
    "data.trian=x": "trian",
    "data.train=./missing.txt": "missing.txt",
    "data.text_column=body": "body",
    "tokenizer=./missing": "missing",
    "training.max_steps": "training.max_steps",
    "training.max_steps=10.5": "`training.max_steps` is 10.5, but it must be a whole number",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_in_a_recipe_is_one_line(project, tmp_path, override, capfd):
    assert train(project, tmp_path, override) == 1
    line = one_line(capfd, bars=True)
    assert line.startswith("flm: ") and MISTAKES[override] in line


# What a command reads: a file or a folder; of those in the second table, or something on the Hub.
READ = {
    "evaluate with": "evaluate {model} --output out --scorer {model} --reference ./missing",
    "evaluate for": "evaluate {model} --output out --scorer {model} --reference {text} --training-text ./missing",
    "convert with": "convert {folder} --output out --config ./missing",
    "convert a tokenizer": "convert {folder} --output out --tokenizer ./missing",
    "push": "push ./missing org/name --dry-run",
}
READ_FROM_THE_HUB = {
    "train a tokenizer": "train {recipe} tokenizer=./missing",
    "train data": "train {recipe} data.train=./missing",
    "distill a teacher": "distill {recipe} teacher=./missing",
    "distill a tokenizer": "distill {recipe} tokenizer=./missing",
    "distill data": "distill {recipe} data.train=./missing",
    "generate": "generate ./missing",
    "convert": "convert ./missing --output out",
    "export": "export-official ./missing --output out",
    "evaluate": "evaluate ./missing --output out --scorer {model} --reference {text}",
    "evaluate against": "evaluate {model} --against ./missing --output out --scorer {model} --reference {text}",
    "evaluate by": "evaluate {model} --num-samples 2 --output out --scorer ./missing --reference {text}",
}


@pytest.mark.parametrize("what", READ | READ_FROM_THE_HUB)
def test_what_is_not_there_is_said_in_one_line(project, trained, tmp_path, what, capfd, monkeypatch):
    """A path to nothing; and, offline, the name of what was never downloaded."""
    monkeypatch.chdir(tmp_path)
    places = {"recipe": project / "recipe.yaml", "folder": tmp_path, "model": trained, "text": project / "train.txt"}
    command = (READ | READ_FROM_THE_HUB)[what].format(**places)
    for name, said in (("./missing", "there is no file"), ("org/missing", "offline mode (HF_HUB_OFFLINE)")):
        if name == "./missing" or what in READ_FROM_THE_HUB:
            assert main(command.replace("./missing", name).split()) == 1
            line = one_line(capfd, bars=True)
            assert said in line and "missing" in line


@pytest.mark.parametrize("command", ["convert", "export", "export-official"])
def test_a_model_is_not_written_over(trained, command, capsys):
    before = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    assert main([command, str(trained), "--output", str(trained)]) == 1
    assert "is the model itself: name another folder." in one_line(capsys, bars=True)
    assert {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()} == before


def test_a_model_that_is_none_is_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    for name in ("missing/folder", str(tmp_path / "empty"), str(tmp_path / "file")):
        assert main(["generate", name]) == 1
        assert name in one_line(capsys)


def test_an_unforeseen_error_is_one_line_and_debug_shows_where(project, tmp_path, monkeypatch, capsys):
    training_raises(KeyError("lost\nkey"), monkeypatch)
    assert train(project, tmp_path) == 1
    assert one_line(capsys).startswith("flm: KeyError:")
    with pytest.raises(KeyError):
        main(["--debug", "train", str(project / "recipe.yaml")])


def test_an_interruption_ends_with_status_130(project, tmp_path, monkeypatch, capsys):
    training_raises(KeyboardInterrupt(), monkeypatch)
    assert train(project, tmp_path) == 130
    assert one_line(capsys) == "flm: interrupted"


# -- train ------------------------------------------------------------------------------------------------------------


def test_training_leaves_a_model_checkpoints_and_samples(trained):
    assert {path.name for path in trained.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    model = FLMModel.from_pretrained(trained)
    assert same(weights(model), saved(trained / "checkpoint-4"))
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (0, 1, 2)
    records = [json.loads(line) for line in (trained / "samples.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4]
    assert all(isinstance(text, str) for record in records for text in record["samples"])


def test_resuming_goes_on_to_the_model_of_one_run(project, trained, tmp_path, capsys):
    assert train(project, tmp_path, "training.max_steps=2") == 0
    assert train(project, tmp_path, "--resume", "training.disable_tqdm=true") == 0
    assert f"The model is in {tmp_path}." in capsys.readouterr().out
    assert same(saved(tmp_path), saved(trained))


def test_resuming_a_finished_run_changes_nothing_and_without_a_checkpoint_starts(project, trained, tmp_path):
    before = saved(trained)
    assert train(project, trained, "--resume") == 0
    assert same(saved(trained), before)
    assert train(project, tmp_path, "--resume") == 0
    assert same(saved(tmp_path), before)


def test_no_evaluation_can_be_asked_for(project, tmp_path):
    assert train(project, tmp_path, "training.eval_strategy=no", "training.max_steps=1") == 0
    assert not (tmp_path / "samples.jsonl").exists()


def test_training_anew_where_a_run_left_checkpoints_is_refused(project, trained, capsys):
    assert train(project, trained) == 1
    assert "checkpoint-4 is of an earlier run: resume it (--resume)" in one_line(capsys)


def test_a_streamed_corpus_that_fills_no_row_is_refused(project, tmp_path, capfd):
    (project / "short.txt").write_text("the cat\n")
    assert train(project, tmp_path, "data.streaming=true", "data.train=./short.txt", "training.max_steps=1e3") == 1
    assert "The corpus is too small" in one_line(capfd, bars=True)


def test_a_streamed_corpus_is_read_again_and_again_and_resumed_in_any_pass(project, tmp_path):
    more = ["data.streaming=true", "data.shuffle_buffer=50", "training.max_steps=60", "training.save_steps=40"]
    assert train(project, tmp_path, *more, "training.eval_steps=60") == 0
    whole = saved(tmp_path)
    rmtree(tmp_path / "checkpoint-60")
    assert train(project, tmp_path, *more, "training.eval_steps=60", "--resume") == 0
    assert same(saved(tmp_path), whole)


def test_distilling_a_trained_model_gives_a_map_that_writes_in_one_step(project, trained, tmp_path, capsys):
    assert main(["train", str(project / "distil.yaml")]) == 1
    assert "use `flm distill`" in one_line(capsys)
    assert distill(project, tmp_path) == 0
    model = FMLMModel.from_pretrained(tmp_path)
    assert model.config.hidden_size == 32 and model.generation_config.num_steps == 1
    capsys.readouterr()
    assert main(["generate", str(tmp_path), "--seed", "3"]) == 0
    assert capsys.readouterr().out.strip()


# -- finetune, and distilling on --------------------------------------------------------------------------------------


def finetune(project: Path, model: str | Path, output: Path, *more: str) -> int:
    """Eight steps on other text than the model was trained on, without samples."""
    data = [] if "--data" in more else ["--data", str(project / "other.txt")]
    tiny = [f"training.{entry}" for entry in ("use_cpu=true", "disable_tqdm=true", "num_samples=0", "ema_decay=0.5")]
    steps = ["training.max_steps=8", "training.learning_rate=3e-3", "training.warmup_steps=0"]
    return main(["finetune", str(model), *data, "--output", str(output), *tiny, *steps, *more])


@pytest.fixture(scope="module")
def tuned(project, trained) -> Path:
    output = project / "runs" / "tuned"
    assert finetune(project, trained, output) == 0
    return output


def evaluations(folder: Path) -> list[float]:
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["eval_loss"] for entry in log if "eval_loss" in entry]


def test_fine_tuning_learns_and_leaves_a_whole_repository(tuned, trained):
    before, *_, after = evaluations(tuned)
    assert after < before - 0.1
    assert {*NEEDED} <= to_upload(tuned).keys()
    model = FLMModel.from_pretrained(tuned)
    assert not same(weights(model), saved(trained))
    assert model.config.hidden_size == 32 and model.config.bos_token_id == 0
    card = (tuned / "README.md").read_text()
    assert "* Trained from: finished." in card and "* conditioning rate: 0.1" in card


def test_a_fine_tuning_that_was_interrupted_goes_on_to_the_same_weights(project, trained, tuned, tmp_path):
    assert finetune(project, trained, tmp_path, "training.save_steps=4", "training.save_total_limit=2") == 0
    rmtree(tmp_path / "checkpoint-8")
    (tmp_path / "model.safetensors").unlink()
    assert finetune(project, trained, tmp_path, "training.save_steps=4", "--resume") == 0
    assert same(saved(tmp_path), saved(tuned))


def test_any_kind_of_text_and_a_held_out_file(project, trained, tmp_path):
    texts, losses, ends = Dataset.from_dict({"body": [line.upper() for line in LINES], "other": LINES}), [], []
    for kind, write in (("jsonl", texts.to_json), ("csv", texts.to_csv), ("parquet", texts.to_parquet)):
        write(tmp_path / f"a.{kind}")
    short = ["--text-column", "body", "--validation", str(tmp_path / "a.csv"), "training.max_steps=1"]
    for kind in ("jsonl", "csv", "parquet"):
        assert finetune(project, trained, tmp_path / kind, "--data", str(tmp_path / f"a.{kind}"), *short) == 0
        losses.append(evaluations(tmp_path / kind))
        ends.append(saved(tmp_path / kind))
    assert losses[0] == losses[1] == losses[2] and len(losses[0]) == 2
    assert same(ends[0], ends[1]) and same(ends[0], ends[2])


def test_a_text_file_is_one_document_where_that_is_said(project, trained):
    """Lines of a long text shall not each end in EOS."""
    rows, given = {}, (str(trained), str(project / "other.txt"), "unused", "0")
    for documents in ("lines", "files"):
        recipe = finetuning_recipe(*given, overrides=[f"data.documents={documents}"])
        data = trainers.train.load_data(
            recipe, trainers.train.load_tokenizer(recipe.tokenizer), 16, arguments(project, seed=0)
        )
        assert data["eval_dataset"] is None
        rows[documents] = [token for row in data["train_dataset"]["input_ids"] for token in row[1:-1]]
    assert rows["lines"].count(1) == len(LINES) - 1 and rows["files"].count(1) == 0  # the last EOS fills no row


def test_the_ends_of_the_rows_are_those_of_the_model(project, tmp_path):
    """Also where the tokenizer has none of its own."""
    bare = copytree(project / "tokenizer", tmp_path / "tokenizer") / "tokenizer_config.json"
    bare.write_text(json.dumps({k: v for k, v in json.loads(bare.read_text()).items() if k[:3] not in ("bos", "eos")}))
    ends = [f"training.output_dir={tmp_path}", "data.bos_token='[EOS]'", "data.eos_token='[PAD]'"]
    ends.append(f"tokenizer={tmp_path / 'tokenizer'}")
    trainer = trainers.train.build_trainer(load_recipe(project / "recipe.yaml", ends))
    assert {(row[0], row[-1]) for row in trainer.train_dataset["input_ids"]} == {(1, 2)}
    for config in (trainer.model.config, trainer.processing_class):
        assert (config.bos_token_id, config.eos_token_id) == (1, 2)


def test_a_share_of_the_rows_is_held_out(project, trained):
    recipe = finetuning_recipe(str(trained), str(project / "other.txt"), "unused", "0.25")
    tokenizer = trainers.train.load_tokenizer(recipe.tokenizer)
    data, again = (trainers.train.load_data(recipe, tokenizer, 16, arguments(project, seed=3)) for _ in range(2))
    kept, held = data["train_dataset"]["input_ids"], data["eval_dataset"]["input_ids"]
    assert len(held) == round((len(kept) + len(held)) / 4) and held == again["eval_dataset"]["input_ids"]
    recipe.data.validation_share = None
    whole = trainers.train.load_data(recipe, tokenizer, 16, arguments(project, seed=3))["train_dataset"]["input_ids"]
    assert sorted([*kept, *held]) == sorted(whole)


def test_a_model_of_the_hub_is_the_base_of_the_card(project, trained, tmp_path, monkeypatch):
    snapshot = tmp_path / "cache" / "models--org--flow" / "snapshots" / ("0" * 40)
    copytree(trained, snapshot, ignore=ignore_patterns("checkpoint-*"))
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert finetune(project, "org/flow", tmp_path / "out", "training.max_steps=1", "--validation", "0") == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == "org/flow" and "Trained from: org/flow." in card.text


def test_a_map_is_distilled_on_from_its_own_weights(project, trained, tmp_path, capsys):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    short = ["training.max_steps=1", "training.eval_strategy=no", "training.learning_rate=1e-3"]
    assert distill(project, first, *short) == 0
    still = [*short, "training.learning_rate=0", "training.ema_decay=0"]
    goes_on = [*still, f"model.from={first}"]
    assert distill(project, second, *goes_on) == 0
    begun = saved(first, FMLMModel)
    assert same(begun, saved(second, FMLMModel))
    assert distill(project, third, *still) == 0
    assert not same(begun, saved(third, FMLMModel))  # without `from`: the teacher's
    capsys.readouterr()
    for outcome, said in (
        (lambda: distill(project, third, *goes_on, "training.initialize_from_teacher=true"), "both name the weights"),
        (lambda: distill(project, third, *still, f"model.from={trained}"), "is a flow, no flow map"),
        (lambda: finetune(project, first, third, "--data", str(project / "train.txt")), "fine-tune its flow"),
    ):
        assert outcome() == 1
        assert said in capsys.readouterr().err.splitlines()[-1]


FINETUNING_MISTAKES = {
    "a model that is not there": (["./missing"], {}, "there is no file or folder ./missing."),
    "a model that is on no Hub": (["org/missing"], {}, "there is no file or folder org/missing, and it is not in"),
    "no text": ([], {"--data": "missing.txt"}, "there is no file or folder missing.txt."),
    "no held-out text": ([], {"--validation": "missing.txt"}, "there is no file or folder missing.txt."),
    "a share of more than all": ([], {"--validation": "1.5"}, "`data.validation_share` is 1.5, but it must lie"),
    "a column that is not there": ([], {"--text-column": "body"}, "There is no column `body`"),
    "another width": (["{model}", "model.hidden_size=64"], {}, "entries that `from` settles: hidden_size"),
    "another kind of model": ([str(BASELINES / "ar-english-small")], {}, "is a GPT2Model, not a flow language model"),
    "nothing to hold out": (
        ["{model}"],
        {"--data": "{one_row}"},
        "fills 1 row of 16 tokens: there is nothing to hold",
    ),
    "another tokenizer": (["{model}", "tokenizer={larger}"], {}, "the tokenizer has 79 tokens, but "),
    "an unknown entry": (["{model}", "training.max_stepz=3"], {}, "max_stepz"),
    "an unknown way to read": (["{model}", "data.documents=lots"], {}, "`data.documents` is 'lots', but"),
}


@pytest.mark.parametrize("mistake", FINETUNING_MISTAKES)
def test_a_mistake_in_fine_tuning_is_one_line(project, trained, tmp_path, mistake, capfd):
    given, options, said = FINETUNING_MISTAKES[mistake]
    if "{larger}" in "".join(given):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(trained)
        tokenizer.add_tokens(["one", "two", "three", "four"])
        tokenizer.save_pretrained(tmp_path / "larger")
    given = [word.format(model=trained, larger=tmp_path / "larger") for word in given or ["{model}"]]
    (tmp_path / "one_row.txt").write_text("\n".join(LINES[:2]))
    options = {"--data": str(project / "other.txt"), "--output": str(tmp_path / "out")} | options
    options = {name: value.format(one_row=tmp_path / "one_row.txt") for name, value in options.items()}
    assert main(["finetune", *given, *(word for pair in options.items() for word in pair)]) == 1
    line = one_line(capfd, bars=True)
    assert line.startswith("flm: ") and said in line


# -- generate ---------------------------------------------------------------------------------------------------------


def written(capsys, folder: Path, *more: str) -> list[str]:
    """The texts that `flm generate` prints."""
    assert main(["generate", str(folder), "--num-steps", "4", *more]) == 0
    return capsys.readouterr().out.split("\n\n")[:-1]


def test_generated_text_begins_with_its_prompt(trained, capsys):
    texts = written(capsys, trained, "--prompt", "the old dog", "--num-samples", "3")
    assert len(texts) == 3 and all(text.startswith("the old dog") for text in texts)


def test_a_seed_reproduces_each_sample_by_itself(trained, capsys):
    texts = written(capsys, trained, "--seed", "7", "--num-samples", "3", "--max-length", "12")
    assert texts == written(capsys, trained, "--seed", "7", "--num-samples", "3", "--max-length", "12")
    assert texts[1:2] == written(capsys, trained, "--seed", "8", "--max-length", "12")
    assert len(set(texts)) == 3


def test_the_settings_of_samplers_reach_the_model(trained, capsys):
    bridge = ["--seed", "7", "--sampler", "bridge"]
    for setting in ("--temperature", "--top-p"):
        assert written(capsys, trained, *bridge) != written(capsys, trained, *bridge, setting, "0.3")


def test_a_sudoku_is_printed_as_a_grid(capsys):
    (filled, other) = written(capsys, HUB / "fmlm-shidoku", "--num-samples", "2", "--seed", "0")
    rows = filled.split("\n")
    assert len(rows) == 4 and all(re.fullmatch("[1-4]( [1-4]){3}", row) for row in rows) and filled != other
    (grid,) = written(capsys, HUB / "fmlm-sudoku", "--prompt", "." * 81)
    assert [len(row.split()) for row in grid.split("\n")] == [9] * 9
    assert shown("1234") == "1234" and shown("a" * 81) == "a" * 81


def test_the_blanks_of_a_prompt_are_filled(trained, capsys):
    (text,) = written(capsys, HUB / "fmlm-english-small", "--prompt", "He said<mask> the king.", "--max-length", "8")
    assert re.fullmatch(r"He said(?!<mask>).* the king\..*", text, re.DOTALL)


def test_watching_shows_every_step(trained, capsys):
    plain = written(capsys, trained, "--seed", "7")
    shown = written(capsys, trained, "--seed", "7", "--watch")
    assert [text for text in shown if text.startswith("step ")] == [f"step {n}" for n in (1, 2, 3, 4)]
    assert shown[-1] == plain[0] == shown[-2].strip()


def test_what_is_no_flow_is_named(project, tmp_path, capfd):
    masked, out = BASELINES / "mdlm-tinystories", str(tmp_path / "out")
    assert finetune(project, masked, tmp_path / "tuned") == 1
    assert "is a masked diffusion model, no flow" in one_line(capfd, bars=True)
    for command, said in (
        (["generate", str(masked)], "is a masked diffusion model, no flow"),
        (["generate", str(BASELINES / "ar-tinystories")], "is a GPT2Model, no flow language model"),
        (["export-official", str(BASELINES / "ar-tinystories"), "--output", out], "is a GPT2Model, no flow"),
    ):
        assert main(command) == 1 and said in one_line(capfd, bars=True)


def test_a_page_that_cannot_be_is_refused_before_the_work(trained, tmp_path, capsys):
    page = str(tmp_path / "page.html")
    for options, said in (
        (["--html", str(tmp_path / "nowhere" / "page.html")], "there is no folder"),
        (["--html", page, "--watch"], "--watch shows drafts in the terminal, --html in a page"),
        (["--html", page, "--max-length", "99", "--window-overlap", "4"], "--html shows one window"),
    ):
        assert main(["generate", str(trained), *options]) == 1 and said in one_line(capsys)


@pytest.mark.parametrize(
    "option, value, named",
    [
        ("--num-steps", "0", "num_steps"),
        ("--num-steps", "1,2", "several --num-steps are for --html"),
        ("--max-length", "99", "max_length"),
        ("--sampler", "flow_map", "flow_map"),
        ("--prompt", "the cat " * 30, "prompt"),
        ("--device", "nowhere", "--device nowhere cannot be used here: Expected one of cpu, cuda"),
    ],
)
def test_what_a_model_cannot_write_is_one_line(trained, capsys, option, value, named):
    capsys.readouterr()
    assert main(["generate", str(trained), option, value]) == 1
    assert named in one_line(capsys)
