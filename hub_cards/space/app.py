"""The Space, an app in the browser: it generates text beside an autoregressive model, and solves Sudoku.

`flm demo --web` starts it locally, with the shipped models. As a Space it has only the few files of this repository
that `flm push` uploads with it, and loads the models of its own organisation. The environment variables
FLM_TEXT_MODEL, FLM_SUDOKU_MODEL and FLM_AR_MODEL name other models, by folder or by name on the Hub.
"""

import html
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import evaluation.sudoku
from evaluation.sudoku import is_valid
from hub_cards.page import Column, flow_column, page

PUZZLES = "examples/sudoku/9x9/puzzles.txt"  # of 36 clues, each with its solution
ROOT = Path(evaluation.sudoku.__file__).parent.parent  # the root of the repository, or of the Space
if not (ROOT / PUZZLES).is_file():
    ROOT = Path.cwd()  # the package is installed by itself: the checkout is the current folder
MODELS = {
    "FLM_TEXT_MODEL": "hub_cards/fmlm-tinystories",
    "FLM_SUDOKU_MODEL": "hub_cards/fmlm-sudoku",
    "FLM_AR_MODEL": "benchmarks/baselines/ar-tinystories",
}
BLANK = "___"
MOST_STEPS = 64
CLUES = 36  # of the puzzle that is shown at first, the fewest of a new one
CELLS = np.arange(81).reshape(9, 9)
UNITS = {"row": CELLS, "column": CELLS.T, "box": CELLS.reshape(3, 3, 3, 3).swapaxes(1, 2).reshape(9, 9)}
# gradio brings these weights of the fonts (others only for a few letters), so none is fetched from elsewhere.
THEME = gr.themes.Default(
    font=[gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "sans-serif"],
    font_mono=[gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "monospace"],
)
CSS = "#puzzle textarea { font-family: var(--font-mono); }"
GRID = """
table { border-collapse: collapse; font: 1.3rem var(--font-mono); }
td { width: min(2.3rem, 9vw); height: 2.3rem; text-align: center; border: 1px solid var(--border-color-primary); }
td:nth-child(3n) { border-right: 2px solid var(--body-text-color); }
td:first-child { border-left: 2px solid var(--body-text-color); }
tr:nth-child(3n) td { border-bottom: 2px solid var(--body-text-color); }
tr:first-child td { border-top: 2px solid var(--body-text-color); }
td { color: var(--link-text-color); }
td.given { color: var(--body-text-color); background: var(--background-fill-secondary); font-weight: bold; }
"""


@dataclass
class Loaded:
    """A model with its tokenizer and the last part of its name."""

    model: Any
    tokenizer: Any
    name: str

    @property
    def described(self) -> str:
        return f"`{self.name}` ({self.model.num_parameters() / 1e6:.1f} M parameters)"


def load(name: str, auto=AutoModel) -> Loaded:
    """Load a model and its tokenizer, from a folder or the Hub, with the code that lies beside the weights."""
    model = auto.from_pretrained(name, trust_remote_code=True).eval()
    return Loaded(model, AutoTokenizer.from_pretrained(name, trust_remote_code=True), name.rstrip("/").split("/")[-1])


def model_name(variable: str) -> str:
    """The model that the environment variable names, else the shipped folder, else that of the Space's organisation.

    Raises:
        ValueError: if there is none of them.
    """
    folder = ROOT / MODELS[variable]
    if variable in os.environ:
        return os.environ[variable]
    if folder.exists():
        return str(folder)
    if "SPACE_ID" in os.environ:  # organisation/name, set on the Hub
        return f"{os.environ['SPACE_ID'].split('/')[0]}/{folder.name}"
    raise ValueError(f"{folder} is not there: let {variable} name a model folder, or a model on the Hub.")


# -- text -------------------------------------------------------------------------------------------------------------


def encode(text: str, tokenizer, context: int) -> Tensor | None:
    """Tokenise a prompt to ids (1, n), with mask tokens for its blanks. An empty prompt gives None.

    Raises:
        ValueError: if it is too long for a `context` of so many tokens, or has blanks and the tokenizer no mask token.
    """
    text = text.strip()
    if not text:
        return None
    if BLANK in text:
        if tokenizer.mask_token is None:
            raise ValueError("This model has no blanks: it only goes on from a prompt.")
        # A token includes the space before its word, so the one for a blank replaces that space, too.
        text = re.sub(rf"\s*{BLANK}", tokenizer.mask_token, text)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if tokenizer.bos_token_id not in (None, *ids[:1]):  # rows of training text begin with it
        ids = [tokenizer.bos_token_id, *ids]
    longest = context if tokenizer.mask_token_id in ids else context - 1
    if len(ids) > longest:
        raise ValueError(f"The text has {len(ids)} tokens, and the model takes {longest} at most: shorten it.")
    return torch.tensor([ids])


def autoregressive_column(gpt2: Loaded, given: Tensor, length: int, seed: int) -> Column:
    """Generate from `given` (1, n) up to `length` tokens, as a column for [`page`] with one draft per token."""
    torch.manual_seed(seed)
    before = time.perf_counter()
    ids = gpt2.model.generate(given, attention_mask=torch.ones_like(given), max_length=length)
    seconds = time.perf_counter() - before
    with torch.no_grad():
        probabilities = gpt2.model(ids).logits[0, :-1].softmax(-1)
    sure = probabilities.gather(1, ids[0, 1:, None]).squeeze(1).tolist()
    start, end = given.shape[1], ids.shape[1]
    confidence = [1.0] * start + [round(value, 3) for value in sure[start - 1 :]]
    drafts = range(start + 1, end + 1)
    sample = {
        "ids": [ids[0, :n].tolist() + [None] * (end - n) for n in drafts],
        "confidence": [confidence[:n] + [0.0] * (end - n) for n in drafts],
        "given": [place < start for place in range(end)],
    }
    return {"name": "Autoregressive", "steps": end - start, "seconds": seconds, "samples": [sample]}


def write(
    flow: Loaded, gpt2: Loaded, prompt: str, steps: int, sampler: str, temperature: float, seed: int | None
) -> str:
    """Generate with both models. Returns the HTML of a page that plays them side by side.

    Raises:
        ValueError: if the prompt is too long, or `generate` refuses a setting.
    """
    ids = encode(prompt, flow.tokenizer, flow.model.config.max_position_embeddings)
    settings: dict[str, Any] = {"num_steps": steps, "sampler": sampler, "seed": seed}
    if sampler == "bridge":
        settings["temperature"] = temperature
    if ids is None and gpt2.tokenizer.bos_token_id is None:
        raise ValueError("the models' tokenizer has no BOS, with which GPT-2 would begin: set `bos_token`.")
    before = torch.tensor([[gpt2.tokenizer.bos_token_id]]) if ids is None else ids
    mask = flow.tokenizer.mask_token_id
    blanks = before[0] == (-1 if mask is None else mask)
    if blanks.any():
        settings["max_length"] = before.shape[1]  # a text with blanks ends where the prompt ends
        # An autoregressive model cannot fill in blanks: it continues what stands before the first one.
        before = before[:, : int(blanks.int().argmax())]
    column, out = flow_column(flow.model, ids, **settings)
    column["name"] = "Flow map" if flow.model.config.two_times else "Flow"
    baseline = autoregressive_column(gpt2, before, out.sequences.shape[1], out.seeds[0])
    return page(f"Seed {out.seeds[0]}", [column, baseline], flow.tokenizer)


def framed(document: str) -> str:
    """Embed a page in another by an iframe: its scripts run, and its style stays its own."""
    style = (
        "width: 100%; height: 30rem; border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg)"
    )
    return f'<iframe title="How the texts come about" style="{style}" srcdoc="{html.escape(document)}"></iframe>'


def text_tab(flow: Loaded, gpt2: Loaded, seed: int) -> None:
    """Add the controls and the output for text to the surrounding Blocks."""
    is_map = flow.model.config.two_times
    samplers = (["flow_map"] if is_map else []) + ["euler", "multistep", "bridge"]
    gr.Markdown(
        f"A flow {'map ' * is_map}writes all of its text at once and mends it with every evaluation of the network: "
        f"{flow.described}. Beside it an autoregressive model of the same tokens writes one after the other: "
        f"{gpt2.described}. Both plays take six seconds; the headings tell how long the writing took."
    )
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            prompt = gr.Textbox(
                label="Text to go on from",
                info="Empty: from nothing. Three underscores are a blank of one token to fill in; a text with blanks "
                "ends where it ends.",
                placeholder=f"He said {BLANK} the dog.",
                lines=3,
            )
            steps = gr.Slider(1, MOST_STEPS, value=8, step=1, label="Evaluations of the network")
            sampler = gr.Radio(samplers, value=flow.model.generation_config.sampler, label="Sampler")
            temperature = gr.Slider(0, 2, value=1, step=0.05, label="Temperature", visible=sampler.value == "bridge")
            number = gr.Number(seed, precision=0, label="Seed", info="Empty: any.")
            button = gr.Button("Write", variant="primary")
        with gr.Column(scale=3):
            played = gr.HTML(elem_id="text")
    gr.Examples([["Once upon a time"], [f"He said {BLANK} {BLANK} {BLANK} the dog."]], prompt)
    sampler.change(lambda name: gr.Slider(visible=name == "bridge"), sampler, temperature, api_visibility="private")
    answer = _told(lambda *controls: framed(write(flow, gpt2, *controls)))
    gr.on(
        [button.click, prompt.submit], answer, [prompt, steps, sampler, temperature, number], played, api_name="write"
    )


# -- Sudoku -----------------------------------------------------------------------------------------------------------


def read_puzzle(text: str) -> np.ndarray:
    """Read a puzzle in any layout. Returns its digits (81,), with 0 for an empty cell.

    Raises:
        ValueError: if it is not a puzzle. The message says where.
    """
    cells = "".join(text.split())
    for character in cells:
        if character not in ".0123456789":
            raise ValueError(
                f"A puzzle has the digits 1 to 9 and . (or 0) for an empty cell, but here is {character!r}."
            )
    if len(cells) != 81:
        raise ValueError(f"A puzzle has 81 cells, nine rows of nine, but here are {len(cells)}.")
    puzzle = np.array([int(cell) for cell in cells.replace(".", "0")])
    if puzzle.all():
        raise ValueError("There is no empty cell to fill in.")
    for kind, units in UNITS.items():
        for number, unit in enumerate(units, 1):
            for digit in range(1, 10):
                if (puzzle[unit] == digit).sum() > 1:
                    raise ValueError(f"No solution is possible: {kind} {number} has {digit} twice.")
    return puzzle


def as_text(puzzle: np.ndarray) -> str:
    """Write a puzzle (81,) as nine lines, which [`read_puzzle`] can read."""
    return "\n".join(" ".join(str(digit or ".") for digit in row) for row in puzzle.reshape(9, 9))


def new_puzzle(puzzles: list[str], clues: int, rng: np.random.Generator) -> np.ndarray:
    """One of the puzzles (81,), lines of a puzzle and its solution, with cells filled in until there are `clues`."""
    line = rng.choice(puzzles).replace(".", "0")
    puzzle, solution = (np.array([int(cell) for cell in grid]) for grid in line.split())
    blanks = rng.permutation(np.flatnonzero(puzzle == 0))[: max(0, clues - np.count_nonzero(puzzle))]
    puzzle[blanks] = solution[blanks]
    return puzzle


def fill_in(sudoku: Loaded, text: str, steps: int, attempts: int, seed: int | None) -> tuple[str, str]:
    """Solve a puzzle. Returns a message in Markdown, and the first right attempt (else the first) as an HTML table.

    After the first evaluation all others are refinements, which settle the surest cells first.

    Raises:
        ValueError: if the text is not a puzzle, or `generate` refuses a setting.
    """
    puzzle = read_puzzle(text)
    ids = sudoku.tokenizer(
        ["".join(str(digit or sudoku.tokenizer.mask_token) for digit in puzzle)], return_tensors="pt"
    )
    before = time.perf_counter()
    settings = {"num_steps": 1, "refine_steps": steps - 1, "num_return_sequences": attempts}
    filled = sudoku.model.generate(ids.input_ids, **settings, seed=seed)
    seconds = time.perf_counter() - before
    right = is_valid(filled.numpy())  # the id of a digit is the digit
    cost = f"in {steps} evaluation{'s' * (steps > 1)} of the network, {1000 * seconds:.0f} ms in all"
    shown = "One of these:" if right.any() else "More evaluations, attempts or clues may help. The first attempt:"
    message = f"**{right.sum() or 'None'} of {attempts} attempts right**, {cost}. {shown}"
    return message, show_grid(puzzle, filled[int(right.argmax())].tolist())


def show_grid(puzzle: np.ndarray, grid: Sequence[int] | np.ndarray) -> str:
    """The 81 digits of `grid` as an HTML table, 0 as an empty cell. Cells given by `puzzle` have a class `given`."""
    kinds = [' class="given"' if given else "" for given in puzzle]
    cells = [f"<td{kind}>{digit or ''}</td>" for kind, digit in zip(kinds, grid, strict=True)]
    return "<table>" + "".join(f"<tr>{''.join(cells[row : row + 9])}</tr>" for row in range(0, 81, 9)) + "</table>"


def sudoku_tab(sudoku: Loaded, seed: int) -> None:
    """Add the controls and the output for Sudoku to the surrounding Blocks."""
    rng = np.random.default_rng(seed)
    puzzles = (ROOT / PUZZLES).read_text().splitlines()
    first = new_puzzle(puzzles, CLUES, rng)
    gr.Markdown(
        f"{sudoku.described} fills in all empty cells at once. It has learned from grids and puzzles alone; "
        "nobody told it the rules. The puzzles have one solution, a grid that is held out; or type in your own."
    )
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            puzzle = gr.Textbox(
                as_text(first),
                label="Puzzle",
                info="Nine rows of nine; . is an empty cell.",
                lines=9,
                elem_id="puzzle",
            )
            clues = gr.Slider(CLUES, 80, value=CLUES, step=1, label="Clues of a new puzzle")
            another = gr.Button("New puzzle")
        with gr.Column(scale=1, min_width=280):
            steps = gr.Slider(1, MOST_STEPS, value=8, step=1, label="Evaluations of the network")
            attempts = gr.Slider(1, 64, value=16, step=1, label="Attempts", info="All side by side, as one batch.")
            number = gr.Number(seed, precision=0, label="Seed", info="Empty: any.")
            button = gr.Button("Fill in", variant="primary")
        with gr.Column(scale=2, min_width=280):
            message = gr.Markdown()
            grid = gr.HTML(show_grid(first, first), css_template=GRID, elem_id="grid")

    def change(clues: int) -> tuple[str, str, str]:
        new = new_puzzle(puzzles, clues, rng)
        return as_text(new), "", show_grid(new, new)

    another.click(change, clues, [puzzle, message, grid], api_visibility="private")
    answer = _told(partial(fill_in, sudoku))
    button.click(answer, [puzzle, steps, attempts, number], [message, grid], api_name="fill_in", show_progress_on=grid)


# -- both -------------------------------------------------------------------------------------------------------------


def _told(answer: Callable) -> Callable:
    """Wrap `answer`, so that the page shows a `ValueError` of it to the user."""

    def answer_or_tell(*controls):
        try:
            return answer(*controls)
        except ValueError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    return answer_or_tell


def build(text_model: str, sudoku_model: str, ar_model: str, seed: int = 0) -> gr.Blocks:
    """Load the models and build the app.

    Args:
        text_model (`str`), sudoku_model (`str`): flow language models, by folder or by name on the Hub.
        ar_model (`str`): an autoregressive model with the vocabulary of `text_model`.
        seed (`int`): the seed that the controls start with.

    Raises:
        ValueError: if `ar_model` has another vocabulary than `text_model`.
        OSError: if one of the models cannot be found.
    """
    flow, gpt2, sudoku = load(text_model), load(ar_model, AutoModelForCausalLM), load(sudoku_model)
    if flow.tokenizer.get_vocab() != gpt2.tokenizer.get_vocab():
        raise ValueError(f"{ar_model} writes other tokens than {text_model}: they cannot be shown side by side.")
    write(flow, gpt2, "", 1, "euler", 1, seed)  # warm up: the first call takes longer, and is not shown
    with gr.Blocks(title="Flow language models", analytics_enabled=False) as app:
        gr.Markdown("# Flow language models\nText in a few evaluations of a network, down to one.")
        with gr.Tab("Text"):
            text_tab(flow, gpt2, seed)
        with gr.Tab("Sudoku"):
            sudoku_tab(sudoku, seed)
    return app


def serve(port: int | None = None, seed: int = 0) -> None:
    """Serve the app until it is interrupted, at `port` or at the first free port from 7860."""
    logging.disable_progress_bar()
    text, sudoku, ar = map(model_name, MODELS)
    app = build(text, sudoku, ar, seed)
    app.launch(server_port=port, theme=THEME, css=CSS, ssr_mode=False, footer_links=["gradio", "settings"])


if __name__ == "__main__":
    serve()
