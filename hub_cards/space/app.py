"""The Space: text beside an autoregressive model's, and Sudoku, in the browser.

On one's own machine `flm demo --web` starts it with the shipped models. As a Space it stands alone, with the few files
of this repository that `flm push` puts beside it, and takes the models of its own organisation; the environment
variables FLM_TEXT_MODEL, FLM_SUDOKU_MODEL and FLM_AR_MODEL name others, folders or names on the Hub.
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
from datasets import load_dataset
from datasets.utils.logging import disable_progress_bar
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import evaluation.sudoku
from evaluation.sudoku import is_valid
from hub_cards.page import Column, flow_column, page

PUZZLES = "examples/sudoku/9x9/validation.parquet"
ROOT = Path(evaluation.sudoku.__file__).parent.parent  # of the repository, or of the Space
if not (ROOT / PUZZLES).is_file():
    ROOT = Path.cwd()  # of the repository, where the package is installed by itself
MODELS = {
    "FLM_TEXT_MODEL": "hub_cards/fmlm-english-small",
    "FLM_SUDOKU_MODEL": "hub_cards/fmlm-sudoku",
    "FLM_AR_MODEL": "benchmarks/baselines/ar-english-small",
}
BLANK = "___"
MOST_STEPS = 64
CELLS = np.arange(81).reshape(9, 9)
UNITS = {"row": CELLS, "column": CELLS.T, "box": CELLS.reshape(3, 3, 3, 3).swapaxes(1, 2).reshape(9, 9)}
# In the package, which has other weights of these fonts for a few letters only: nothing is fetched from elsewhere.
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
    """A model, its tokenizer, and the last part of its name."""

    model: Any
    tokenizer: Any
    name: str

    @property
    def described(self) -> str:
        return f"`{self.name}` ({self.model.num_parameters() / 1e6:.1f} M parameters)"


def load(name: str, auto=AutoModel) -> Loaded:
    """A model folder, or a name on the Hub, with the code that lies beside the weights."""
    model = auto.from_pretrained(name, trust_remote_code=True).eval()
    return Loaded(model, AutoTokenizer.from_pretrained(name, trust_remote_code=True), name.rstrip("/").split("/")[-1])


def model_name(variable: str) -> str:
    """What the environment names, or the folder shipped with the repository, or the model beside the Space.

    Raises:
        ValueError: there is none of them.
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
    """Ids (1, n) of a prompt that the model of this `context` can take, with its blanks; None of an empty one.

    Raises:
        ValueError: it is too long, or has blanks and the tokenizer none.
    """
    text = text.strip()
    if not text:
        return None
    if BLANK in text:
        if tokenizer.mask_token is None:
            raise ValueError("This model has no blanks: it only goes on from a prompt.")
        # A token holds the space before its word: so does what goes into the blank.
        text = re.sub(rf"\s*{BLANK}", tokenizer.mask_token, text)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if tokenizer.bos_token_id is not None:  # rows of training text begin with it
        ids = [tokenizer.bos_token_id, *ids]
    longest = context if tokenizer.mask_token_id in ids else context - 1
    if len(ids) > longest:
        raise ValueError(f"The text has {len(ids)} tokens, and the model takes {longest} at most: shorten it.")
    return torch.tensor([ids])


def autoregressive_column(gpt2: Loaded, given: Tensor, length: int, seed: int) -> Column:
    """What the page plays of an autoregressive model: `given` (1, n) and what it writes on to `length`, by token."""
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
    """The page that plays how both write, as HTML.

    Raises:
        ValueError: the prompt is too long, or `generate` refuses a setting.
    """
    ids = encode(prompt, flow.tokenizer, flow.model.config.max_position_embeddings)
    settings: dict[str, Any] = {"num_steps": steps, "sampler": sampler, "seed": seed}
    if sampler == "bridge":
        settings["temperature"] = temperature
    before = torch.tensor([[gpt2.tokenizer.bos_token_id]]) if ids is None else ids
    blanks = before[0] == flow.tokenizer.mask_token_id
    if blanks.any():
        settings["max_length"] = before.shape[1]  # the text ends where what is given ends
        # Left to right, blanks cannot be filled in: it goes on from what stands before the first one.
        before = before[:, : int(blanks.int().argmax())]
    column, out = flow_column(flow.model, ids, **settings)
    column["name"] = "Flow map" if flow.model.config.model_type == "fmlm" else "Flow"
    baseline = autoregressive_column(gpt2, before, out.sequences.shape[1], out.seeds[0])
    return page(f"Seed {out.seeds[0]}", [column, baseline], flow.tokenizer)


def framed(document: str) -> str:
    """A page within the page: its scripts run, its style stays its own."""
    style = (
        "width: 100%; height: 30rem; border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg)"
    )
    return f'<iframe title="How the texts come about" style="{style}" srcdoc="{html.escape(document)}"></iframe>'


def text_tab(flow: Loaded, gpt2: Loaded, seed: int) -> None:
    """Put the controls and what comes of them into the Blocks around."""
    is_map = flow.model.config.model_type == "fmlm"
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
                placeholder=f"He said {BLANK} the king.",
                lines=3,
            )
            steps = gr.Slider(1, MOST_STEPS, value=8, step=1, label="Evaluations of the network")
            sampler = gr.Radio(samplers, value=flow.model.generation_config.sampler, label="Sampler")
            temperature = gr.Slider(0, 2, value=1, step=0.05, label="Temperature", visible=sampler.value == "bridge")
            number = gr.Number(seed, precision=0, label="Seed", info="Empty: any.")
            button = gr.Button("Write", variant="primary")
        with gr.Column(scale=3):
            played = gr.HTML(elem_id="text")
    gr.Examples([["In the beginning"], [f"He said {BLANK} {BLANK} {BLANK} the king."]], prompt)
    sampler.change(lambda name: gr.Slider(visible=name == "bridge"), sampler, temperature, api_visibility="private")
    answer = _told(lambda *controls: framed(write(flow, gpt2, *controls)))
    gr.on(
        [button.click, prompt.submit], answer, [prompt, steps, sampler, temperature, number], played, api_name="write"
    )


# -- Sudoku -----------------------------------------------------------------------------------------------------------


def read_puzzle(text: str) -> np.ndarray:
    """The (81,) digits of a puzzle in any layout, 0 for an empty cell.

    Raises:
        ValueError: it is none; the message says where.
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
    """A puzzle (81,) as nine lines, as [`read_puzzle`] takes it."""
    return "\n".join(" ".join(str(digit or ".") for digit in row) for row in puzzle.reshape(9, 9))


def new_puzzle(solutions: list[str], clues: int, rng: np.random.Generator) -> np.ndarray:
    """A puzzle (81,) from one of the `solutions`, with so many of its cells."""
    puzzle = np.array([int(digit) for digit in rng.choice(solutions)])
    puzzle[rng.choice(81, 81 - clues, replace=False)] = 0
    return puzzle


def fill_in(sudoku: Loaded, text: str, steps: int, attempts: int, seed: int | None) -> tuple[str, str]:
    """What came of it, in Markdown, and a grid, in HTML: of the first right attempt, or else of the first.

    Raises:
        ValueError: the puzzle is none, or `generate` refuses a setting.
    """
    puzzle = read_puzzle(text)
    ids = sudoku.tokenizer(
        ["".join(str(digit or sudoku.tokenizer.mask_token) for digit in puzzle)], return_tensors="pt"
    )
    before = time.perf_counter()
    filled = sudoku.model.generate(ids.input_ids, num_steps=steps, num_return_sequences=attempts, seed=seed)
    seconds = time.perf_counter() - before
    right = is_valid(filled.numpy())  # an id is its digit
    cost = f"in {steps} evaluation{'s' * (steps > 1)} of the network, {1000 * seconds:.0f} ms in all"
    shown = "One of these:" if right.any() else "More evaluations, attempts or clues may help. The first attempt:"
    message = f"**{right.sum() or 'None'} of {attempts} attempts right**, {cost}. {shown}"
    return message, show_grid(puzzle, filled[int(right.argmax())].tolist())


def show_grid(puzzle: np.ndarray, grid: Sequence[int] | np.ndarray) -> str:
    """The 81 digits of `grid` as an HTML table, 0 as an empty cell; those that the `puzzle` gives have a class."""
    kinds = [' class="given"' if given else "" for given in puzzle]
    cells = [f"<td{kind}>{digit or ''}</td>" for kind, digit in zip(kinds, grid, strict=True)]
    return "<table>" + "".join(f"<tr>{''.join(cells[row : row + 9])}</tr>" for row in range(0, 81, 9)) + "</table>"


def sudoku_tab(sudoku: Loaded, seed: int) -> None:
    """Put the controls and what comes of them into the Blocks around."""
    rng = np.random.default_rng(seed)
    solutions = list(load_dataset("parquet", data_files=str(ROOT / PUZZLES), split="train")["text"])
    first = new_puzzle(solutions, 50, rng)
    gr.Markdown(
        f"{sudoku.described} fills in all empty cells at once. It has learned from grids alone; nobody told it the "
        "rules. The puzzles are from grids that are held out; or type in your own."
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
            clues = gr.Slider(17, 80, value=50, step=1, label="Clues of a new puzzle")
            another = gr.Button("New puzzle")
        with gr.Column(scale=1, min_width=280):
            steps = gr.Slider(1, MOST_STEPS, value=1, step=1, label="Evaluations of the network")
            attempts = gr.Slider(1, 64, value=16, step=1, label="Attempts", info="All side by side, as one batch.")
            number = gr.Number(seed, precision=0, label="Seed", info="Empty: any.")
            button = gr.Button("Fill in", variant="primary")
        with gr.Column(scale=2, min_width=280):
            message = gr.Markdown()
            grid = gr.HTML(show_grid(first, first), css_template=GRID, elem_id="grid")

    def change(clues: int) -> tuple[str, str, str]:
        new = new_puzzle(solutions, clues, rng)
        return as_text(new), "", show_grid(new, new)

    another.click(change, clues, [puzzle, message, grid], api_visibility="private")
    answer = _told(partial(fill_in, sudoku))
    button.click(answer, [puzzle, steps, attempts, number], [message, grid], api_name="fill_in", show_progress_on=grid)


# -- both -------------------------------------------------------------------------------------------------------------


def _told(answer: Callable) -> Callable:
    """`answer`, whose refusals the page tells the user."""

    def answer_or_tell(*controls):
        try:
            return answer(*controls)
        except ValueError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    return answer_or_tell


def build(text_model: str, sudoku_model: str, ar_model: str, seed: int = 0) -> gr.Blocks:
    """The app.

    Args:
        text_model (`str`), sudoku_model (`str`): flow language models, folders or names on the Hub.
        ar_model (`str`): an autoregressive model with the tokens of `text_model`.
        seed (`int`): that the page starts with.

    Raises:
        ValueError: the tokens of the two are not the same.
        OSError: one of the models is not there.
    """
    flow, gpt2, sudoku = load(text_model), load(ar_model, AutoModelForCausalLM), load(sudoku_model)
    if flow.tokenizer.get_vocab() != gpt2.tokenizer.get_vocab():
        raise ValueError(f"{ar_model} writes other tokens than {text_model}: they cannot be shown side by side.")
    write(flow, gpt2, "", 1, "euler", 1, seed)  # the first call of a network takes longer: no user shall time it
    with gr.Blocks(title="Flow language models", analytics_enabled=False) as app:
        gr.Markdown("# Flow language models\nText in a few evaluations of a network, down to one.")
        with gr.Tab("Text"):
            text_tab(flow, gpt2, seed)
        with gr.Tab("Sudoku"):
            sudoku_tab(sudoku, seed)
    return app


def serve(port: int | None = None, seed: int = 0) -> None:
    """Show the app at this port, or at the first free one from 7860, until interrupted."""
    logging.disable_progress_bar()
    disable_progress_bar()
    text, sudoku, ar = map(model_name, MODELS)
    app = build(text, sudoku, ar, seed)
    app.launch(server_port=port, theme=THEME, css=CSS, ssr_mode=False, footer_links=["gradio", "settings"])


if __name__ == "__main__":
    serve()
