"""The static Space: what its page writes in a browser, what it tells where something is amiss, its way to the Hub.

`SCREENSHOTS=docs/images python -m pytest tests/test_space_static.py -k picture` takes that of the documentation.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlencode, urlparse

import numpy as np
import pytest
import torch
import yaml
from children import run_python
from local_hub import local_hub
from playwright.sync_api import Page, expect, sync_playwright
from transformers import AutoModel, AutoTokenizer

import modeling_flm  # noqa: F401  registers the model types
from benchmarks.results import HUB, ROOT
from command.main import main
from evaluation.sudoku import is_valid
from flm_data.paths import sha256
from hub_cards.push import MANIFEST, to_upload
from hub_cards.space_static import build
from modeling_flm.noise_flm import step_seeds, white_noise

SPACE = HUB / "space-static"
NODE, BROWSER = shutil.which("node"), shutil.which("chromium")
# No site is asked, no profile is kept, no update looked for.
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
QUIET += ["--disable-component-update", "--disable-sync"]
OFFLINE = re.compile("ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|ENOTCACHED")
SOLUTION = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
PUZZLE = SOLUTION.replace("5", ".").replace("1", ".")
NOISE = ("stepSeed", "whiteNoise")
WAIT = 60_000  # milliseconds: the machine may be busy


def sources(folder: Path) -> Path:
    """The page alone, as it is committed, copied to a folder."""
    return shutil.copytree(SPACE, folder, ignore=shutil.ignore_patterns("vendor", "models", ".*"))


# -- its parts, in node -----------------------------------------------------------------------------------------------


def node(script: str, *imported: str):
    """What an expression of JavaScript gives, which may use what modules of the page export."""
    if NODE is None:
        pytest.skip("needs node")
    names = [f'import {{ {name} }} from "{SPACE}/{file}";' for file, name in (part.split(":") for part in imported)]
    code = "\n".join([*names, f"console.log(JSON.stringify({script}));"])
    done = subprocess.run([NODE, "--input-type=module", "-e", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_noise_is_that_of_torch():
    cases = [(0, 16), (7, 128 * 192), (2**32 - 1, 81 * 10), (2**40 + 5, 17), (1, 31)]
    drawn = node(f"{json.dumps(cases)}.map(([seed, count]) => Array.from(normal(seed, count)))", "noise.js:normal")
    for (seed, count), ours in zip(cases, drawn, strict=True):
        theirs = torch.empty(count).normal_(generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(torch.tensor(ours), theirs, atol=2e-6, rtol=0)
    ours = node("Array.from(whiteNoise([3, 4], 5, 10, 81))", "noise.js:whiteNoise")
    theirs, _ = white_noise([3, 4], 5, 10, torch.device("cpu"), 81)
    torch.testing.assert_close(torch.tensor(ours), theirs.flatten(), atol=2e-6, rtol=0)


def test_the_noise_of_a_later_step_is_that_of_generate():
    seeds = [0, 5, 2**32 - 1]
    ours = node(f"{seeds}.map(seed => [0, 1, 7].map(step => stepSeed(seed, step)))", "noise.js:stepSeed")
    assert ours == [[step_seeds([seed], step)[0] % 2**32 for step in (0, 1, 7)] for seed in seeds]
    drawn = node("Array.from(whiteNoise([stepSeed(3, 2)], 5, 10, 81, true))", *(f"noise.js:{name}" for name in NOISE))
    theirs, _ = white_noise(step_seeds([3], 2), 5, 11, torch.device("cpu"), 81)
    torch.testing.assert_close(torch.tensor(drawn), theirs[..., :10].flatten(), atol=2e-6, rtol=0)


def test_a_character_of_several_tokens_is_shown_whole():
    text = "a\u00e9\u20ac\U0001f600b"
    decode = "(ids) => new TextDecoder().decode(Uint8Array.from(ids))"
    shown = node(f"textsOfTokens({list(text.encode())}, {decode})", "flow.js:textsOfTokens")
    assert shown == ["a", "", "\u00e9", "", "", "\u20ac", "", "", "", "\U0001f600", "b"]


def test_the_rules_of_sudoku():
    grids = [[int(digit) for digit in SOLUTION] for _ in range(3)]
    grids[1][0], grids[1][1] = grids[1][1], grids[1][0]
    grids[2][80] = 0
    assert node(f"{json.dumps(grids)}.map(isValid)", "sudoku.js:isValid") == is_valid(np.array(grids)).tolist()
    twice = [0] * 81
    twice[2] = twice[38] = 7
    found = node(f"(({{ cells, first }}) => [[...cells].sort(), first])(conflicts({twice}))", "sudoku.js:conflicts")
    assert found == [[2, 38], "column 3 has 7 twice"]
    line = f"{SOLUTION[:20]}{'.' * 61} {SOLUTION}"
    puzzle = node(f'newPuzzle(["{line}"], 30)', "sudoku.js:newPuzzle")
    assert all(puzzle[:20]) and sum(digit > 0 for digit in puzzle) == 30
    assert all(digit in (0, int(whole)) for digit, whole in zip(puzzle, SOLUTION, strict=True))
    cells = [int(cell) for cell in PUZZLE.replace(".", "0")]
    assert node(f'[fromText("{PUZZLE}"), fromText("12x")]', "sudoku.js:fromText") == [cells, None]


# -- the built Space, served on loopback ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The folder of the built Space: `make space-static` in a copy."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    folder = sources(tmp_path_factory.mktemp("space") / "built")
    try:
        build(folder)
    except ValueError as error:
        if not OFFLINE.search(str(error)):
            raise
        pytest.skip(f"needs npm's registry or its cache: {error}")
    return folder


CUT_OFF = b"the beginning"


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, but for paths that its server has other contents for: None is a missing file, CUT_OFF one whose
    connection ends before it is whole."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}
    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, format: str, *args) -> None:
        pass

    def do_GET(self) -> None:
        path = urlparse(self.path).path.lstrip("/")
        if path not in self.server.instead:
            super().do_GET()
        elif self.server.instead[path] is None:
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Type", self.guess_type(path))
            self.send_header("Content-Length", str(len(self.server.instead[path]) + 9 * self.server.is_cut_off(path)))
            self.end_headers()
            self.wfile.write(self.server.instead[path])
            self.close_connection = self.server.is_cut_off(path)

    def end_headers(self) -> None:
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        super().end_headers()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.instead: dict[str, bytes | None] = {}
        self.headers: dict[str, str] = {}
        self.address = f"http://127.0.0.1:{self.server_address[1]}/"

    def is_cut_off(self, path: str) -> bool:
        return self.instead[path] is CUT_OFF


@pytest.fixture(scope="module")
def served(space):
    with Server(space) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server(served):
    yield served
    served.instead, served.headers = {}, {}


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("needs chromium")
    with sync_playwright() as play, play.chromium.launch(executable_path=BROWSER, args=QUIET) as chromium:
        yield chromium


class Watched:
    """A page of the Space, what it has said in the console and what it has asked for."""

    def __init__(self, browser, server: Server):
        self.server, self.said, self.asked = server, [], []
        self.page = browser.new_context(reduced_motion="reduce").new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def go(self, **settings) -> Page:
        """The page at an address with these settings, where it has begun to do what they say."""
        self.page.goto(f"{self.server.address}#{urlencode(settings)}")
        self.page.wait_for_url(lambda url: "#task=" in url)  # which the page puts first
        return self.page


@contextmanager
def watching(browser, server: Server):
    """A page of which nothing is asked of any other place."""
    watched = Watched(browser, server)
    yield watched
    own = (server.address, "data:", "blob:")
    assert watched.asked and all(url.startswith(own) for url in watched.asked)
    watched.page.context.close()


@pytest.fixture
def fresh(browser, server):
    """A page that is not loaded yet, for what changes the server or must begin anew."""
    with watching(browser, server) as watched:
        yield watched


@pytest.fixture(scope="module")
def loaded(browser, served):
    with watching(browser, served) as watched:
        yield watched


@pytest.fixture
def go(loaded):
    """`go` of a page that earlier tests may have loaded. It says nothing in the console."""
    yield loaded.go
    assert loaded.said == []


def figures(page: Page) -> str:
    """What the page says of the result that it shows, once it is there."""
    said = page.locator("form:not([hidden]) .figures")
    expect(said).not_to_be_empty(timeout=WAIT)
    return said.inner_text()


def written(page: Page) -> list[int]:
    """The ids of the text that is shown."""
    figures(page)
    return [int(token.get_attribute("data-id")) for token in page.locator("#written span").all()]


def grid(page: Page) -> list[int]:
    """The digits that are shown, 0 for an empty cell."""
    figures(page)
    return [int(cell.input_value() or 0) for cell in page.locator("#grid input").all()]


@pytest.fixture(scope="module")
def text():
    return AutoModel.from_pretrained(HUB / "fmlm-tinystories").eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(HUB / "fmlm-tinystories")


@pytest.fixture(scope="module")
def sudoku():
    return AutoModel.from_pretrained(HUB / "fmlm-sudoku").eval()


# -- what it writes ---------------------------------------------------------------------------------------------------


def test_a_text_is_that_of_generate(go, text, tokenizer):
    page = go(seed=7)
    assert written(page) == text.generate(seed=7, num_steps=1)[0].tolist()
    assert re.fullmatch(r"128 tokens: 1 evaluation of the network, [\d,]+ ms, [\d,]+ tokens a second\.", figures(page))
    assert not page.get_by_role("button", name="Play").is_visible()

    prompt = "In the beginning"
    page = go(seed=2**32 - 1, steps=4, prompt=prompt)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = text.generate(ids, seed=2**32 - 1, num_steps=4, output_trajectory=True)
    assert written(page) == out.sequences[0].tolist() and page.locator("#written .given").count() == ids.shape[1]
    # Its drafts, by the slider; what is shaded was not in the draft before.
    for draft in (1, 3, 4):
        page.locator("#text").get_by_label("Draft").fill(str(draft))
        assert written(page) == out.trajectory[draft - 1, 0].tolist()
    assert page.locator("#written .changed").count() == (out.trajectory[3, 0] != out.trajectory[2, 0]).sum()
    # To who hears the page, the text is told with its figures, without special tokens.
    said = page.get_by_role("status").inner_text()
    assert said.startswith("In the beginning") and "<bos>" not in said and said.endswith("tokens a second.")


def test_blanks_are_filled_in(go, text, tokenizer):
    page = go(seed=1, steps=2, prompt="He said ___ ___ ___ the king.")
    ids = tokenizer("He said<mask><mask><mask> the king.", return_tensors="pt").input_ids
    assert written(page) == text.generate(ids, seed=1, num_steps=2, max_length=ids.shape[1])[0].tolist()
    assert figures(page).startswith("3 tokens: 2 evaluations")
    page.get_by_label("Text to go on from").fill("king " * 200)
    page.get_by_role("button", name="Write another").click()
    message = "The text has 201 tokens, and the model takes 127 at most: shorten it."
    expect(page.locator(".figures").first).to_have_text(message)
    expect(page.get_by_role("status")).to_have_text(message)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_grid_is_that_of_generate(go, sudoku, steps):
    page = go(puzzle=PUZZLE, seed=5, steps=steps, attempts=3, task="sudoku")
    ids = torch.tensor([[int(cell) for cell in PUZZLE.replace(".", "0")]])
    filled = sudoku.generate(ids, seed=5, num_steps=1, refine_steps=steps - 1, num_return_sequences=3).numpy()
    right = is_valid(filled)
    assert grid(page) == filled[right.argmax()].tolist()
    shown = f"{right.sum() or 'None'} of 3 attempts right, number {right.argmax() + 1} is shown: {steps} evaluation"
    assert figures(page).startswith(shown)
    assert page.locator("#grid .given").count() == 81 - PUZZLE.count(".")


def test_drafts_are_played(go):
    page = go(seed=3, steps=4)
    figures(page)
    places = """new Promise(done => {
        const shown = document.querySelector("#text .player .value"), places = [];
        new MutationObserver(() => {
            places.push(shown.textContent);
            if (places.length === 4) done(places);
        }).observe(shown, { childList: true });
        document.querySelector("#text .player button").click();
    })"""
    assert page.evaluate(places) == [f"{place} of 4" for place in (1, 2, 3, 4)]
    page.emulate_media(reduced_motion="no-preference")
    page.locator("#text-seed").fill("4")
    page.keyboard.press("Tab")
    expect(page.locator("#text .player .value")).to_have_text("1 of 4", timeout=WAIT)
    expect(page.locator("#text .player .value")).to_have_text("4 of 4")
    page.emulate_media(reduced_motion="reduce")


def test_an_isolated_page_computes_in_threads(fresh, server, text):
    server.headers = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
    page = fresh.go(seed=7)
    assert written(page) == text.generate(seed=7, num_steps=1)[0].tolist()
    assert page.evaluate("crossOriginIsolated") and fresh.said == []


# -- how it is used ---------------------------------------------------------------------------------------------------


def test_the_keyboard_is_enough(go):
    page = go(seed=7)
    before = written(page)
    page.locator("#to-text").focus()
    focused = []
    for _ in range(5):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id"))
    assert focused == ["to-sudoku", "prompt", "write", "text-steps", "text-seed"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"

    page.locator("#write").focus()
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: not url.endswith("seed=7"))
    expect(page.locator("#written")).not_to_have_text("")
    page.evaluate("document.activeElement.blur()")
    another = page.url
    page.keyboard.press("Enter")  # wherever the focus is not in a control
    page.wait_for_url(lambda url: url != another)

    page.locator("#text-seed").fill("7")
    page.keyboard.press("Tab")
    page.wait_for_url(lambda url: url.endswith("seed=7"))
    expect(page.locator("#written span").nth(1)).to_have_attribute("data-id", str(before[1]))
    page.locator("#text-steps").focus()
    for _ in range(4):  # asked for before the last is done
        page.keyboard.press("ArrowRight")
    expect(page.locator(".figures").first).to_contain_text("5 evaluations", timeout=WAIT)
    assert page.url.endswith("steps=5&seed=7")
    page.locator("#prompt").fill("Lily saw")
    page.keyboard.press("Enter")
    expect(page.locator("#written .given")).to_have_count(3, timeout=WAIT)
    assert "prompt=Lily+saw" in page.url


def test_clues_are_typed_into_the_grid(go):
    page = go(puzzle=PUZZLE, seed=5, task="sudoku")
    figures(page)
    assert page.locator("#grid input[tabindex='0']").count() == 1
    cells = page.locator("#grid input")
    cells.nth(0).focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "row 2, column 1, a clue"
    page.keyboard.press("Backspace")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("5")
    wanted = "5" + PUZZLE[1:9] + "." + PUZZLE[10:]
    expect(page).to_have_url(re.compile(re.escape(f"puzzle={wanted}")))
    assert page.locator("#sudoku .figures").inner_text() == ""
    page.keyboard.press("Enter")  # in a form's field: as its button
    figures(page)
    assert grid(page)[0] == 5 and page.locator("#grid .given").count() == sum(cell != "." for cell in wanted)

    cells.nth(1).focus()
    page.keyboard.press("5")
    page.get_by_role("button", name="Fill in").click()
    expect(page.locator("#sudoku .figures")).to_have_text("No solution is possible: row 1 has 5 twice.")
    page.get_by_label("Clues of a new puzzle").fill("60")
    page.get_by_role("button", name="New puzzle").click()
    expect(page.locator("#grid .given")).to_have_count(60)
    assert figures(page).startswith(("None", *"12345678"))
    page.locator("#sudoku-seed").fill("1.5")  # with which nothing runs
    page.get_by_role("button", name="New puzzle").click()
    expect(page.locator("#sudoku .figures")).to_be_empty()
    assert page.get_by_role("alert").is_hidden()


def test_every_control_has_a_name(go):
    page = go(seed=7, steps=2)
    for task in ("Text", "Sudoku"):
        page.get_by_role("link", name=task, exact=True).click()
        expect(page.locator("[aria-current=page]")).to_have_text(task)
        figures(page)
        controls = page.locator("form:not([hidden]) :is(input, textarea, button):visible").all()
        assert len(controls) > 5
        for control in controls:
            named = control.evaluate("one => one.getAttribute('aria-label') ?? one.labels[0]?.innerText ?? ''")
            assert (named or control.inner_text()).strip()
    assert page.locator("html").get_attribute("lang") == "en" and page.locator("h1").count() == 1


def test_a_phone_and_the_dark(go):
    for task in ("sudoku", "text"):
        page = go(seed=7, steps=2, task=task)
        page.set_viewport_size({"width": 360, "height": 740})
        figures(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        wide = "[...document.querySelectorAll('body *')].filter(one => one.getBoundingClientRect().right > 360).length"
        assert page.evaluate(wide) == 0
    colours = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        style = "(({ color, backgroundColor }) => [color, backgroundColor])(getComputedStyle(document.body))"
        colours[scheme] = [sum(map(int, re.findall(r"\d+", colour))) for colour in page.evaluate(style)]
    assert colours["light"][0] < 200 < 700 < colours["light"][1]
    assert colours["dark"][1] < 200 < 600 < colours["dark"][0]


@pytest.mark.skipif("SCREENSHOTS" not in os.environ, reason="takes a picture where SCREENSHOTS names a folder")
def test_picture(fresh):
    fresh.page.set_viewport_size({"width": 1040, "height": 640})
    page = fresh.go(seed=11, steps=4, prompt="Once upon a time")
    figures(page)
    page.screenshot(path=Path(os.environ["SCREENSHOTS"], "space-static.png"))


# -- what may be amiss ------------------------------------------------------------------------------------------------

GRAPH = "models/fmlm-tinystories/model.onnx"
RUNTIME = "vendor/ort-wasm-simd-threaded.wasm"


@pytest.mark.parametrize(
    "path, content, message",
    [
        (GRAPH, b"not a graph", f"{GRAPH} is damaged: it is not the file that this page was built with."),
        (GRAPH, None, f"{GRAPH} is missing (status 404)."),
        (GRAPH, CUT_OFF, f"{GRAPH} did not come whole: the network is gone."),
        (RUNTIME, b"\0asm", f"{RUNTIME} is damaged"),
        ("vendor/tokenizers.min.mjs", None, "./vendor/tokenizers.min.mjs is missing or damaged"),
        (MANIFEST, None, f"{MANIFEST} is missing"),
    ],
)
def test_what_is_damaged_or_missing_is_told(fresh, server, path, content, message):
    server.instead[path] = content
    page = fresh.page
    page.goto(f"{server.address}#seed=7")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(message, timeout=WAIT)
    expect(alert).to_contain_text("make space-static")
    assert page.locator("#loading").is_hidden() and page.locator("h1").is_visible()
    if path == GRAPH:  # the other task does not need it
        page.get_by_role("link", name="Sudoku").click()
        assert "attempts right" in figures(page) and alert.is_hidden()


def test_a_new_build_is_seen_where_the_browser_has_kept_an_old_one(fresh, server, space):
    server.headers = {"Cache-Control": "max-age=1000"}
    figures(fresh.go(seed=7))
    manifest = json.loads((space / MANIFEST).read_text())
    server.instead[GRAPH] = b"a graph of a later time"
    manifest["files"][GRAPH] = {"bytes": 23, "sha256": hashlib.sha256(server.instead[GRAPH]).hexdigest()}
    server.instead[MANIFEST] = json.dumps(manifest).encode()
    fresh.page.reload()
    expect(fresh.page.get_by_role("alert")).to_contain_text("This browser cannot run fmlm-tinystories", timeout=WAIT)


def test_nothing_but_its_own_files_may_run(fresh):
    page = fresh.go(seed=7)
    figures(page)
    assert fresh.said == []
    tried = """async () => {
        const inline = document.createElement("script");
        inline.textContent = "window.ran = 'inline'";
        document.body.append(inline);
        setTimeout("window.ran = 'evaluated'");
        const asked = await fetch("http://localhost:9/").then(() => "came", (error) => error.name);
        await new Promise((done) => setTimeout(done, 50));
        return [window.ran ?? "nothing ran", asked];
    }"""
    assert page.evaluate(tried) == ["nothing ran", "TypeError"]
    assert sum("Content Security Policy" in said for said in fresh.said) >= 3
    fresh.asked = [url for url in fresh.asked if url != "http://localhost:9/"]
    html = (SPACE / "index.html").read_text()
    assert re.findall(r"<script(?![^>]* src=)[^>]*>|<style| style=| on\w+=", html) == []
    assert "default-src 'none'" in html and "unsafe-inline" not in html and "'unsafe-eval'" not in html


# -- on the Hub -------------------------------------------------------------------------------------------------------


def pretend_to_build(folder: Path) -> None:
    """Files of a few bytes in place of those that `make space-static` makes."""
    names = ("models/a-map/model.onnx", "vendor/library.mjs")
    for name in names:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(name)
    files = {name: {"bytes": len(name), "sha256": sha256(folder / name)} for name in names}
    (folder / MANIFEST).write_text(json.dumps({"files": files, "models": {}}))


def test_it_is_pushed_as_a_static_space(tmp_path):
    folder = sources(tmp_path / "space")
    pretend_to_build(folder)
    with local_hub(tmp_path / "home") as (environment, hub):
        for arguments in (["--dry-run"], []):
            assert hub.repositories == {}
            command = ["-m", "command.main", "push", folder, "org/play", *arguments]
            done = run_python(*command, cwd=ROOT, **environment)
            assert done.stderr == ""
            assert "models/a-map/model.onnx" in done.stdout and "sdk: static" in done.stdout
        (key,) = hub.repositories
        _, files = hub.head(key)
    pushed = to_upload(folder)
    assert key == ("spaces", "org/play") and files.keys() == pushed.keys() | {".gitattributes"}
    assert {"index.html", "flow.js", MANIFEST, "vendor/library.mjs"} <= files.keys()
    assert all(files[name] == path.read_bytes() for name, path in pushed.items() if name != "README.md")
    head = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert head["sdk"] == "static" and head["models"] == ["org/fmlm-tinystories", "org/fmlm-sudoku"]
    assert len(head["short_description"]) <= 60 and head["app_file"] in files


def test_what_is_not_built_or_not_as_built_is_not_pushed(tmp_path, capsys):
    folder = sources(tmp_path / "space")
    assert main(["push", str(folder), "org/play", "--dry-run"]) == 1
    said = f"{folder} has not been built: `make space-static` makes its models and libraries."
    assert capsys.readouterr().err == f"flm: {said}\n"
    pretend_to_build(folder)
    (folder / "vendor/library.mjs").write_text("another")
    assert main(["push", str(folder), "org/play", "--dry-run"]) == 1
    said = f"{folder}/vendor/library.mjs is not as it was built: `make space-static` makes it anew."
    assert capsys.readouterr().err == f"flm: {said}\n"
    (tmp_path / "a-map").mkdir()
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["models"]["text"] = {"name": "a-map", "source_sha256": "of other weights"}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert main(["push", str(folder), "org/play", "--dry-run"]) == 1
    said = f"{folder} was built of other weights than {tmp_path}/a-map has: `make space-static` makes it anew."
    assert capsys.readouterr().err == f"flm: {said}\n"


def test_a_build_that_fails_leaves_the_last_one(tmp_path, monkeypatch):
    folder = sources(tmp_path / "space")
    pretend_to_build(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="npm is needed to build the static Space: install Node.js 20 or later"):
        build(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_is_built_is_pinned():
    lock = json.loads((SPACE / "package-lock.json").read_text())["packages"]
    wanted = json.loads((SPACE / "package.json").read_text())["dependencies"]
    assert wanted == lock[""]["dependencies"]
    for name, version in wanted.items():
        assert re.fullmatch(r"[\d.]+", version) and lock[f"node_modules/{name}"]["version"] == version
    assert all("integrity" in package for name, package in lock.items() if name)
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {f"/hub_cards/space-static/{folder}/" for folder in ("vendor", "models")} <= set(ignored)
