"""The Space: what its functions give, what the Hub gets of it, and what its users see in a browser.

`SCREENSHOTS=docs/images python -m pytest tests/test_space.py -k browser` takes the pictures of the documentation.
"""

import copy
import dataclasses
import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from functools import cache
from pathlib import Path
from urllib.request import urlopen

import gradio as gr
import numpy as np
import pytest
import torch
import yaml
from children import run_python
from local_hub import local_hub
from playwright.sync_api import Page, sync_playwright
from transformers import AutoModelForCausalLM

from benchmarks.results import BASELINES, HUB, ROOT
from command.main import main
from evaluation.sudoku import is_valid
from hub_cards.page import texts_of_tokens
from hub_cards.push import to_upload
from hub_cards.space import app

SPACE = HUB / "space"
SOLUTION = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
PUZZLE = SOLUTION.replace("5", ".").replace("1", "0")  # 63 clues, and both signs of an empty cell


@pytest.fixture(scope="module")
def flow():
    return app.load(str(HUB / "fmlm-tinystories"))


@pytest.fixture(scope="module")
def gpt2():
    return app.load(str(BASELINES / "ar-tinystories"), AutoModelForCausalLM)


@pytest.fixture(scope="module")
def sudoku():
    return app.load(str(HUB / "fmlm-sudoku"))


# -- text -------------------------------------------------------------------------------------------------------------


def columns_of(page: str) -> list[dict]:
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1]
    return json.loads(data)["columns"]


def test_the_page_plays_what_both_models_write(flow, gpt2):
    left, right = columns_of(app.write(flow, gpt2, " Once upon a time\n", 3, "flow_map", 1.0, 7))
    decode = cache(lambda ids: flow.tokenizer.decode(list(ids)))
    ids = flow.tokenizer("Once upon a time", return_tensors="pt").input_ids
    out = flow.model.generate(ids, num_steps=3, seed=7, output_trajectory=True)
    assert (left["name"], left["steps"]) == ("Flow map", 3) and left["seconds"] > 0
    assert left["samples"][0]["texts"] == [texts_of_tokens(ids, decode) for ids in out.trajectory[:, 0].tolist()]

    given = ids.shape[1]
    torch.manual_seed(7)
    written = gpt2.model.generate(ids, attention_mask=torch.ones_like(ids))[0].tolist()
    assert (right["name"], right["steps"]) == ("Autoregressive", 128 - given) and right["seconds"] > 0
    (sample,) = right["samples"]
    drafts = [written[:n] + [None] * (128 - n) for n in range(given + 1, 129)]
    assert sample["texts"] == [texts_of_tokens(draft, decode) for draft in drafts]
    assert sample["given"] == [True] * given + [False] * (128 - given)
    for place in (given, 100, 127):  # the probability of a token, from a forward pass over what stands before it
        with torch.no_grad():
            logits = gpt2.model(torch.tensor([written[:place]])).logits[0, -1]
        sure = logits.softmax(0)[written[place]].item()
        assert sample["confidence"][-1][place] == pytest.approx(sure, abs=6e-4)
        assert sample["confidence"][place - given][place + 1 :] == [0] * (127 - place)


def test_blanks_are_filled_in_and_the_rest_is_kept(flow, gpt2):
    left, right = columns_of(app.write(flow, gpt2, "He said ___ ___ ___ the dog.", 2, "euler", 1.0, 0))
    said, dog = (flow.tokenizer(text, add_special_tokens=False).input_ids for text in ("He said", " the dog."))
    (sample,) = left["samples"]
    assert len(sample["given"]) == 1 + len(said) + 3 + len(dog)
    assert sample["given"] == [True] * (1 + len(said)) + [False] * 3 + [True] * len(dog)
    for draft in sample["texts"]:
        assert "".join(draft[1 : 1 + len(said)]) == "He said" and "".join(draft[-len(dog) :]) == " the dog."
    assert right["samples"][0]["given"] == [True] * (1 + len(said)) + [False] * (3 + len(dog))


def test_the_temperature_is_that_of_the_bridge(flow, gpt2):
    def samples(sampler: str, temperature: float) -> list[dict]:
        return columns_of(app.write(flow, gpt2, "___" * 20, 2, sampler, temperature, 0))[0]["samples"]

    assert samples("bridge", 0.0) != samples("bridge", 1.5)
    assert samples("euler", 0.0) == samples("euler", 1.5)


@pytest.mark.parametrize("name, samplers", [("fmlm", 4), ("flm", 3)])
def test_the_samplers_are_those_of_the_model(name, samplers, flow, gpt2):
    model = flow if name == "fmlm" else app.load(str(HUB / "flm-tinystories"))
    with gr.Blocks(analytics_enabled=False) as blocks:
        app.text_tab(model, gpt2, 0)
    (radio,) = (block for block in blocks.blocks.values() if isinstance(block, gr.Radio))
    names = [value for _, value in radio.choices]
    assert len(names) == samplers and ("flow_map" in names) == (name == "fmlm") and radio.value in names
    (temperature,) = (block for block in blocks.blocks.values() if getattr(block, "label", "") == "Temperature")
    assert not temperature.visible
    for sampler in names:
        app.write(model, gpt2, "___ ___", 1, sampler, 1.0, 0)


@pytest.mark.parametrize(
    "prompt, steps, message",
    [
        ("dog " * 200, 1, "The text has 202 tokens, and the model takes 127 at most: shorten it."),
        ("___" * 128, 1, "The text has 129 tokens, and the model takes 128 at most: shorten it."),
        ("", 0, "`num_steps` must be an integer >= 1, but is 0."),
    ],
)
def test_what_the_user_is_told(prompt, steps, message, flow, gpt2):
    with pytest.raises(ValueError) as refusal:
        app.write(flow, gpt2, prompt, steps, "euler", 1.0, 0)
    assert str(refusal.value) == message
    with pytest.raises(gr.Error) as told:
        app._told(app.write)(flow, gpt2, prompt, steps, "euler", 1.0, 0)
    assert html.unescape(told.value.message) == message and not told.value.print_exception


def test_a_model_without_blanks_says_so(gpt2):
    tokenizer = app.AutoTokenizer.from_pretrained(HUB / "fmlm-tinystories")
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="This model has no blanks"):
        app.encode("one ___ two", tokenizer, 128)


def test_a_prompt_begins_once():
    tokenizer = app.AutoTokenizer.from_pretrained(HUB / "fmlm-tinystories")
    ids = app.encode(f"{tokenizer.bos_token}Once upon", tokenizer, 128)
    assert torch.equal(ids, app.encode("Once upon", tokenizer, 128)) and ids[0, 0] == tokenizer.bos_token_id


def test_models_without_blanks_write_and_without_a_beginning_say_so(flow, gpt2):
    bare = [copy.deepcopy(loaded.tokenizer) for loaded in (flow, gpt2)]
    for tokenizer in bare:
        tokenizer.mask_token = None
    flow, gpt2 = (dataclasses.replace(of, tokenizer=own) for of, own in zip((flow, gpt2), bare, strict=True))
    assert len(columns_of(app.write(flow, gpt2, "Once upon a time", 1, "flow_map", 1.0, 7))) == 2
    gpt2.tokenizer.bos_token = None
    with pytest.raises(ValueError, match="has no BOS, with which GPT-2 would begin: set `bos_token`"):
        app.write(flow, gpt2, "", 1, "flow_map", 1.0, 7)


# -- Sudoku -----------------------------------------------------------------------------------------------------------


def cells_of(table: str) -> tuple[list[str], list[bool]]:
    """The texts of a grid's cells, and which of them were given."""
    cells = re.findall(r"<td( class=\"given\")?>(.?)</td>", table)
    return [text for _, text in cells], [bool(given) for given, _ in cells]


def test_a_puzzle_in_any_layout():
    puzzle = app.read_puzzle(PUZZLE)
    spread = app.as_text(puzzle)
    assert spread.startswith(". 3 4 6 7 8 9 . 2\n") and np.array_equal(app.read_puzzle(spread), puzzle)
    assert app.show_grid(puzzle, puzzle).count("<td></td>") == 18


@pytest.mark.parametrize(
    "text, message",
    [
        ("12x", "but here is 'x'"),
        ("123", "nine rows of nine, but here are 3"),
        (SOLUTION, "no empty cell"),
        ("5...5" + "." * 76, "row 1 has 5 twice"),
        (".." + "7" + "." * 33 + "..7" + "." * 42, "column 3 has 7 twice"),
        ("." * 60 + "9" + "." * 10 + "9" + "." * 9, "box 9 has 9 twice"),
    ],
)
def test_a_malformed_puzzle_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        app.read_puzzle(text)


def test_right_attempts_are_counted_and_one_is_shown(sudoku):
    message, table = app.fill_in(sudoku, PUZZLE, 4, 16, 0)
    ids = torch.tensor([[int(digit) for digit in PUZZLE.replace(".", "0")]])
    filled = sudoku.model.generate(ids, num_steps=1, refine_steps=3, num_return_sequences=16, seed=0).numpy()
    right = is_valid(filled)
    assert right.any() and message.startswith(f"**{right.sum()} of 16 attempts right**, in 4 evaluations of the")
    texts, given = cells_of(table)
    assert [int(text) for text in texts] == filled[right.argmax()].tolist()
    assert given == [digit not in ".0" for digit in PUZZLE]


def test_no_right_attempt_is_told(sudoku):
    message, table = app.fill_in(sudoku, "1" + "." * 80, 2, 2, 0)
    assert message.startswith("**None of 2 attempts right**, in 2 evaluations of the")
    assert "The first attempt:" in message and not is_valid(np.array([[int(text) for text in cells_of(table)[0]]]))[0]


def test_a_new_puzzle_keeps_its_clues_and_gets_more():
    line = f"{SOLUTION[:20]}{'.' * 61} {SOLUTION}"
    puzzle = app.new_puzzle([line], 30, np.random.default_rng(3))
    given = puzzle > 0
    assert given[:20].all() and given.sum() == 30
    assert np.array_equal(puzzle[given], np.array([int(c) for c in SOLUTION])[given])
    assert np.count_nonzero(app.new_puzzle([line], 10, np.random.default_rng(3))) == 20


# -- the whole --------------------------------------------------------------------------------------------------------


def test_which_models_are_taken(monkeypatch, tmp_path):
    monkeypatch.delenv("FLM_TEXT_MODEL", raising=False)
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert app.model_name("FLM_TEXT_MODEL") == str(HUB / "fmlm-tinystories")
    monkeypatch.setattr(app, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="fmlm-tinystories is not there: let FLM_TEXT_MODEL name a model folder"):
        app.model_name("FLM_TEXT_MODEL")
    monkeypatch.setenv("SPACE_ID", "org/a-space")
    assert app.model_name("FLM_TEXT_MODEL") == "org/fmlm-tinystories"
    monkeypatch.setenv("FLM_TEXT_MODEL", "other/model")
    assert app.model_name("FLM_TEXT_MODEL") == "other/model"


def test_models_of_different_tokens_are_not_shown_side_by_side():
    text, other = str(HUB / "fmlm-tinystories"), str(HUB / "fmlm-sudoku")
    with pytest.raises(ValueError, match="fmlm-sudoku writes other tokens than .*fmlm-tinystories"):
        app.build(text, other, ar_model=other)


def test_the_command_line(monkeypatch, capsys):
    assert main(["demo", "--port", "7999"]) == 1
    assert capsys.readouterr().err == "flm: --port is that of the page: give --web, too.\n"
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--web"]) == 1
    assert capsys.readouterr().err == 'flm: the page needs gradio: pip install "flow-language-models[space]"\n'


def test_the_space_asks_for_what_is_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    gradio = re.search(r"^gradio==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    wanted = (SPACE / "requirements.txt").read_text().split()
    assert f"gradio=={gradio}" in wanted
    assert {line for line in wanted if not line.startswith("gradio")} <= set(project["dependencies"])
    imported = set(re.findall(r"^(?:from|import) (\w+)", (SPACE / "app.py").read_text(), re.MULTILINE))
    needed = imported - set(sys.stdlib_module_names) - {"evaluation", "hub_cards"}
    assert needed == {re.split("[=>]", line)[0] for line in wanted}
    head = yaml.safe_load((SPACE / "README.md").read_text().split("---\n")[1])
    assert head["sdk"] == "gradio" and head["sdk_version"] == gradio and (SPACE / head["app_file"]).exists()
    assert f">={head['python_version']}" == project["requires-python"] and len(head["short_description"]) <= 60
    assert head["models"] == [Path(folder).name for folder in app.MODELS.values()]


# -- on the Hub -------------------------------------------------------------------------------------------------------

PUSH = """
import sys
from huggingface_hub import snapshot_download
from command.main import main
space, folder = sys.argv[1:]
assert main(["push", space, "org/play", "--dry-run"]) == 0
assert main(["push", space, "org/play"]) == 0
snapshot_download("org/play", repo_type="space", local_dir=folder)
"""
RUN = """
import sys
from pathlib import Path
folder = Path.cwd()
sys.path.insert(0, str(folder))
import app
import evaluation.sudoku, hub_cards.page
assert app.ROOT == folder and "modeling_flm" not in sys.modules
assert all(Path(module.__file__).is_relative_to(folder) for module in (app, evaluation.sudoku, hub_cards.page))
blocks = app.build(*map(app.model_name, app.MODELS))
written, filled = (
    next(function for function in blocks.fns.values() if function.api_name == name) for name in ("write", "fill_in")
)
assert "iframe" in written.fn("Once upon a time", 2, "flow_map", 1.0, 0)
puzzle = next(block.value for block in blocks.blocks.values() if getattr(block, "elem_id", None) == "puzzle")
print(filled.fn(puzzle, 8, 16, 0)[0])
"""


def test_a_pushed_space_runs_alone(tmp_path):
    command = ["-P", "-c", PUSH, SPACE, tmp_path / "space"]
    with local_hub(tmp_path / "home") as (environment, hub):
        shown = run_python(*command, cwd=tmp_path, **environment, PYTHONPATH=str(ROOT)).stdout
        assert "puzzles.txt" in shown and "/spaces/org/play/commit/" in shown
        (key,) = hub.repositories
        _, files = hub.head(key)
    sources = to_upload(SPACE)
    assert key == ("spaces", "org/play") and files.keys() == sources.keys() | {".gitattributes"}
    assert all(files[name] == sources[name].read_bytes() for name in sources if name != "README.md")
    _, head, text = files["README.md"].decode().split("---\n")
    _, own_head, own_text = (SPACE / "README.md").read_text().split("---\n")
    models = ["org/fmlm-tinystories", "org/fmlm-sudoku", "org/ar-tinystories"]
    assert yaml.safe_load(head) == yaml.safe_load(own_head) | {"models": models} and text.strip() == own_text.strip()
    folders = {variable: str(ROOT / folder) for variable, folder in app.MODELS.items()}
    shown = run_python("-P", "-c", RUN, cwd=tmp_path / "space", **folders).stdout
    assert re.match(r"\*\*\d+ of 16 attempts right", shown)


def test_a_space_that_is_not_whole_is_refused(tmp_path):
    folder = shutil.copytree(SPACE, tmp_path / "space")
    (folder / "requirements.txt").unlink()
    with pytest.raises(ValueError, match="has no requirements.txt, which a Space needs"):
        to_upload(folder)


# -- in a browser -----------------------------------------------------------------------------------------------------

BROWSER = shutil.which("chromium")


@pytest.fixture
def served(tmp_path):
    """The address of `flm demo --web`, a process of its own that an interruption ends in peace."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "command.main", "demo", "--web", "--port", str(port)]
    with open(tmp_path / "log", "w+") as log:
        # A shell's background jobs, and what they start, ignore SIGINT: the app shall not.
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, preexec_fn=take_interrupts
        )
        try:
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 900
            while True:
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                try:
                    urlopen(address, timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.3)
            yield address
            process.send_signal(signal.SIGINT)
            assert process.wait(600) == 0 and "Traceback" not in (tmp_path / "log").read_text()
        finally:
            process.kill()
            process.wait()


def take_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(BROWSER is None, reason="needs chromium, as the system's package (apt install chromium)")
def test_in_a_browser(served, tmp_path):
    pictures, elsewhere = Path(os.environ.get("SCREENSHOTS", tmp_path)).resolve(), []
    with sync_playwright() as play, play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"]) as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(600_000)
        page.on("request", lambda request: elsewhere.append(request.url) if "://" in request.url else None)
        page.goto(served)
        text_is_written(page, pictures)
        page.goto(served)
        grids_are_filled_in(page, pictures)
    assert [url for url in elsewhere if not url.startswith(served)] == []


def text_is_written(page: Page, pictures: Path) -> None:
    page.get_by_label("Text to go on from").fill("Once upon a time")
    steps = page.get_by_label("range slider for Evaluations of the network")
    for _ in range(4):
        steps.press("ArrowLeft")  # from 8
    page.get_by_role("button", name="Write").click()
    frame = page.frame_locator("#text iframe")
    moment, (flow, gpt2) = frame.get_by_label("time"), (frame.locator("section").nth(i) for i in (0, 1))
    drafts = []
    for time_of_play in (0.3, 0.6, 0.8, 1):
        moment.fill(str(time_of_play))
        drafts.append((flow.locator("p").inner_text(), gpt2.locator("p").inner_text()))
        if time_of_play == 0.6:
            moment.blur()
            page.screenshot(path=pictures / "space-text.png")
    assert all(draft.startswith("<bos>Once upon a time") for both in drafts for draft in both)
    assert len({left for left, _ in drafts}) == 4 and len({right for _, right in drafts}) == 4
    assert "·" in drafts[2][1] and "·" not in drafts[3][1]
    assert re.fullmatch(r"Flow map: 4 of 4 evaluations \(\d+ ms in all\)", flow.locator("h2").inner_text())
    assert re.fullmatch(r"Autoregressive: 123 of 123 evaluations \(\d+ ms in all\)", gpt2.locator("h2").inner_text())

    temperature = page.get_by_label("range slider for Temperature")
    assert not temperature.is_visible()
    page.get_by_label("bridge").check()
    temperature.wait_for()
    page.get_by_text("He said ___").click()
    page.get_by_role("button", name="Write").click()
    flow.get_by_text("<bos>He said").wait_for()
    assert re.fullmatch(r"<bos>He said.* the dog\.", flow.locator("p").inner_text(), re.DOTALL)

    page.get_by_label("Text to go on from").fill("dog " * 200)
    page.get_by_role("button", name="Write").click()
    page.get_by_text("The text has 202 tokens").wait_for()


def grids_are_filled_in(page: Page, pictures: Path) -> None:
    page.get_by_role("tab", name="Sudoku").click()
    puzzle = page.locator("#puzzle textarea")
    page.get_by_role("button", name="Fill in").click()
    page.get_by_text(re.compile(r"\d+ of 16 attempts right")).wait_for()
    page.screenshot(path=pictures / "space-sudoku.png")
    grid = [int(cell.inner_text()) for cell in page.locator("#grid td").all()]
    assert is_valid(np.array([grid]))[0]
    given = [int(cell.inner_text()) for cell in page.locator("#grid td.given").all()]
    assert given == [int(cell) for cell in puzzle.input_value() if cell.isdigit()] and len(given) == 36

    page.get_by_role("button", name="New puzzle").click()
    page.locator("#grid td", has_text=re.compile("^$")).first.wait_for()
    another = app.read_puzzle(puzzle.input_value())
    assert (another > 0).sum() == 36 and another[another > 0].tolist() != given

    puzzle.fill("5 5")
    page.get_by_role("button", name="Fill in").click()
    page.get_by_text("A puzzle has 81 cells, nine rows of nine, but here are 2.").wait_for()
