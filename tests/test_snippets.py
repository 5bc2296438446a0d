"""README, CONTRIBUTING and docs/ as their readers use them: Python, commands, links, the site.

The Python blocks of a page are run in order, in one namespace. Only sizes are changed, by `SMALLER`: fewer steps,
smaller batches. Of the commands those that train with text of one's own are run; the others are parsed, and what they
read must be there.
"""

import re
import shlex
import subprocess
import sys
from difflib import SequenceMatcher
from importlib.util import find_spec
from pathlib import Path

import datasets
import pytest
from datasets import load_dataset
from huggingface_hub import ModelCard

from benchmarks.picture import PICTURE, picture
from benchmarks.readme import BEGIN_STORIES, END_STORIES, updated, with_stories
from benchmarks.results import CORPUS, ROOT
from command.main import _parser, main
from hub_cards.push import to_upload
from modeling_flm.samplers_flm import SAMPLERS

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
FOLDERS = ("benchmarks", "examples", "hub_cards", "tests")
LINKED = PAGES + sorted(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
COMMAND = r"(?:flm|make|python -m|torchrun) \S"
SMALLER = {
    r"max_steps=\d+": "max_steps=2",
    r"eval_steps=\d+": "eval_steps=2",
    r"per_device_train_batch_size=\d+": "per_device_train_batch_size=2",
    r"test_size=0.05": "test_size=0.2",
    r"org/model": "hub_cards/fmlm-shidoku",
}
SHORT = ["training.max_steps=2", "training.per_device_train_batch_size=2", "training.num_samples=0"]
# What readers, or the commands before, have made.
ON_THE_HUB = re.compile(r"org/\w+|david3684/\S+|gpt2-large|kneser-ney")
MADE_BEFORE = {"mine.txt", "book.txt", "last.ckpt", "samples.txt", "mine-map.yaml", "fmlm-owt", "lm1b-test.parquet"}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[tuple[str, int]]:
    """The code blocks of a language, without what indents them, and the line before the first of each."""
    text = text_of(page)
    found = [match for match in BLOCK.finditer(text) if match[2] == language]
    return [
        (re.sub(f"^{match[1]}", "", match[3], flags=re.M), text.count("\n", 0, match.start()) + 1) for match in found
    ]


def commands(page: Path) -> list[list[str]]:
    """The words of the commands that a page shows in blocks."""
    shell = "".join(text for text, _ in blocks(page, "")).replace("\\\n", " ")
    lines = [line.strip() for line in shell.splitlines() if re.match(f" *{COMMAND}", line)]
    return [shlex.split(line, comments=True) for line in lines if "..." not in line]


def mentioned(page: Path) -> list[list[str]]:
    """The words of the commands, or of parts of them, that a page has within lines."""
    within = re.findall(rf"`({COMMAND}[^`\n]*)`", BLOCK.sub("", text_of(page)))
    return [line.split() for line in within]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the pages name of the checkout, and a text of one's own."""
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


def run(page: Path) -> dict:
    """The names that the Python blocks of a page leave behind; an error names the page's own line."""
    names: dict = {"__name__": page.stem}
    for text, line in blocks(page, "python"):
        for pattern, smaller in SMALLER.items():
            text = re.sub(pattern, smaller, text)
        exec(compile("\n" * line + text, page.name, "exec"), names)
    return names


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_the_python_blocks_of_a_page_run_in_order(page, folder, monkeypatch):
    monkeypatch.setitem(SAMPLERS, "churn", None)  # which CONTRIBUTING adds: gone again afterwards
    names = run(page)
    for test in [name for name in names if name.startswith("test_")]:
        names[test]()
    if page.stem == "training":
        for made in ("tuned", "fresh"):
            assert to_upload(folder / "runs" / made)  # complete, or refused
        assert (folder / "runs" / "plain" / "tokenizer.json").exists()
        assert ModelCard.load(folder / "runs" / "tuned" / "README.md").data.tags[1] == "flm"
    if page.stem == "distilling":
        assert to_upload(folder / "runs" / "map")


def test_text_of_ones_own_is_learned_and_distilled(folder):
    """By the commands, and the recipe, that the pages show."""
    tuning = [words[1:] for words in commands(ROOT / "docs" / "training.md") if words[1] == "finetune"]
    assert len(tuning) == 3
    for words in tuning:
        assert main([*words, *SHORT]) == 0
    assert "checkpoint-2" in {path.name for path in (folder / "runs" / "mine").iterdir()}
    [(recipe, _)] = blocks(ROOT / "docs" / "distilling.md", "yaml")
    (folder / "mine-map.yaml").write_text(recipe)
    assert main(["distill", "mine-map.yaml", *SHORT[:2]]) == 0
    assert to_upload(folder / "runs" / "mine-map")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_command_is_understood_and_what_it_names_is_there(page, capsys):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in [*commands(page), *mentioned(page)]:
        whole = words in commands(page)
        if words[0] == "make":
            assert words[1] in targets, words
        elif words[0] == "flm" or "command.main" in words:
            words = words[words.index("flm" if words[0] == "flm" else "command.main") + 1 :]
            understood(words) if whole else known(words, capsys)
        elif words[0] == "python":
            assert find_spec(words[2]), words


def understood(words: list[str]) -> None:
    """Whether `flm` takes these words, and the files that they name are there."""
    options, rest = _parser().parse_known_args(words)
    assert not [word for word in rest if "=" not in word], words
    read = [getattr(options, name, None) for name in ("recipe", "model", "source", "folder", "data", "reference")]
    read += [*(getattr(options, "against", None) or []), *(getattr(options, "scorer", None) or [])]
    for name in {*read} - MADE_BEFORE - {None}:
        assert ON_THE_HUB.fullmatch(name) or name.startswith("runs/") or (ROOT / name).exists(), (name, words)


def known(words: list[str], capsys) -> None:
    """Whether `flm` has this subcommand, and the subcommand these options."""
    for command in words[0].split("|"):
        with pytest.raises(SystemExit, match="0"):
            _parser().parse_args([command, "--help"])
        said = capsys.readouterr().out
        assert all(re.search(rf"{word}\b", said) for word in words[1:] if word.startswith("--")), words


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", BLOCK.sub("", text_of(page))):
        target = page.parent / link if link else page
        assert target.exists(), link
        if anchor and target.name != "reference.md":  # whose headings come from docstrings: the site checks those
            headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text_of(target)), re.MULTILINE)
            slugs = {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}
            assert anchor in slugs, f"{link}#{anchor}"


def test_readme_begins_with_the_two_commands():
    first, _ = blocks(ROOT / "README.md", "")[0]
    assert [line.split("  ")[0] for line in first.splitlines()] == ["make demo", "make test"]


def test_the_table_the_stories_and_the_picture_of_readme_are_up_to_date():
    readme = text_of(ROOT / "README.md")
    assert updated(readme) == readme, "python -m benchmarks.readme"
    stories, shown = (text.split(BEGIN_STORIES)[1].split(END_STORIES)[0] for text in (with_stories(readme), readme))
    assert SequenceMatcher(None, stories, shown, autojunk=False).ratio() > 0.9, "python -m benchmarks.readme"
    assert picture() == PICTURE.read_text(encoding="utf-8"), "python -m benchmarks.picture"


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    """What `make docs` does. Formulas are MathML, and names in docstrings links."""
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(build, cwd=ROOT, env={"NO_MKDOCS_2_WARNING": "true"}, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html")}
    assert {page.stem for page in DOCS} <= pages.keys()
    for name, page in pages.items():
        elsewhere = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="?(?:https?:)?//', page)
        assert not elsewhere and "unpkg" not in page, name
    reference, method = pages["reference"], pages["method"]
    assert method.count("<math") > 30 and "arithmatex" not in method and ".interpolate</code>" in method
    assert 'id="modeling_flm.generation_flm.FlowGenerationMixin.generate"' in reference
    assert "[<code>" not in reference and "<code>`" not in reference
    assert "samplers_flm.py" in pages["architecture"]
