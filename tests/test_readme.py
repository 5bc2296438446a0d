"""README as its reader runs it: every Python block in order, in one namespace; every `flm` command.

Only sizes are changed, by `SMALLER`: fewer steps, smaller batches. Of the commands those that train with text of one's
own are run; the others are parsed, and what they read must be there.
"""

import re
import shlex
from pathlib import Path

import datasets
import pytest
from datasets import load_dataset
from huggingface_hub import ModelCard

from benchmarks.results import CORPUS, ROOT
from command.main import _parser, main
from hub_cards.push import to_upload

README = (ROOT / "README.md").read_text()
BLOCKS = [(match[1], match[2], match.start()) for match in re.finditer(r"```(\w*)\n(.*?)```", README, re.DOTALL)]
SMALLER = {
    r"max_steps=\d+": "max_steps=2",
    r"eval_steps=\d+": "eval_steps=2",
    r"per_device_train_batch_size=\d+": "per_device_train_batch_size=2",
    r"test_size=0.05": "test_size=0.2",
}
SHORT = ["training.max_steps=2", "training.per_device_train_batch_size=2", "training.num_samples=0"]
MADE_BEFORE = {"mine.txt", "book.txt", "last.ckpt", "runs/mine"}  # by the reader, or the commands before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what README names of the checkout, and a text of one's own."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("hub_cards", "benchmarks", "examples", "recipes"):
        (folder / name).symlink_to(ROOT / name)
    texts = load_dataset("parquet", data_files=str(CORPUS / "validation.parquet"), split="train[:60]")["text"]
    (folder / "mine.txt").write_text("\n".join(text.replace("\n", " ") for text in texts))
    (folder / "book.txt").write_text("\n".join(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield folder


def commands() -> list[list[str]]:
    """The words of each `flm` command."""
    shell = "".join(text for language, text, _ in BLOCKS if not language)
    lines = shell.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("flm ")]


def test_the_python_blocks_run_in_order(folder, capsys):
    names: dict = {"__name__": "readme"}
    blocks = [(text, start) for language, text, start in BLOCKS if language == "python"]
    assert len(blocks) >= 5
    for text, start in blocks:
        for pattern, smaller in SMALLER.items():
            text = re.sub(pattern, smaller, text)
        line = README.count("\n", 0, start) + 1
        exec(compile("\n" * line + text, "README.md", "exec"), names)  # errors name README's own line
    shown = capsys.readouterr().out
    assert names["ids"].shape == (4, 128) and len(names["several"].input_ids) == 2
    assert "<bos>In the beginning" in shown and "<bos>He said" in shown and " the king." in shown
    assert "<mask>" not in shown and "Once" in shown
    for made in ("tuned", "fresh", "map"):
        assert to_upload(folder / "runs" / made)  # complete, or refused
    assert (folder / "runs" / "plain" / "tokenizer.json").exists()
    assert ModelCard.load(folder / "runs" / "tuned" / "README.md").data.tags[1] == "flm"


def test_text_of_ones_own_is_learned_and_distilled(folder):
    """By the commands, and the recipe, that README shows."""
    tuning = [words for words in commands() if words[0] == "finetune"]
    assert len(tuning) == 3
    for words in tuning:
        assert main([*words, *SHORT]) == 0
    assert "checkpoint-2" in {path.name for path in (folder / "runs" / "mine").iterdir()}
    [recipe] = [text for language, text, _ in BLOCKS if language == "yaml"]
    (folder / "mine-map.yaml").write_text(recipe)
    assert main(["distill", "mine-map.yaml", *SHORT[:2]]) == 0
    assert to_upload(folder / "runs" / "mine-map")


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_a_command_is_understood_and_what_it_names_is_there(words):
    options, rest = _parser().parse_known_args(words)
    assert not [word for word in rest if "=" not in word]
    read = [getattr(options, name, None) for name in ("recipe", "model", "source", "folder", "data", "reference")]
    read += [*getattr(options, "against", []), *getattr(options, "scorer", [])]
    for name in {*read} - MADE_BEFORE - {None}:
        assert (ROOT / name).exists(), name


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / Path(link)).exists(), link
