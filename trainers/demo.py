"""What `flm demo` shows: the shipped models, loaded as any user would load them, at work."""

import statistics
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import load_dataset
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, GPT2LMHeadModel
from transformers.utils import logging

ROOT = Path(__file__).parent.parent
STEPS = (1, 2, 4)
GIVEN = 50  # cells of the Sudoku
CANDIDATES = 16  # grids drawn at once for it


def run_demo(seed: int = 0) -> None:
    """Print English in one, two and four evaluations beside an autoregressive model's, and fill a Sudoku.

    Raises:
        ValueError: the shipped models are not there.
    """
    logging.disable_progress_bar()
    for folder in ("hub_cards/fmlm-english-small", "hub_cards/fmlm-sudoku"):
        if not (ROOT / folder / "model.safetensors").exists():
            raise ValueError(f"the demo needs the shipped models, but there is no model in {folder}.")
    _english(seed)
    _sudoku(seed)
    print("\nWrite more:  flm generate hub_cards/fmlm-english-small --num-steps 4 --num-samples 4")


def load(folder: str):
    """A shipped model and its tokenizer, with the code that lies beside the weights."""
    path = ROOT / folder
    model = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
    return model, AutoTokenizer.from_pretrained(path)


def _english(seed: int) -> None:
    model, tokenizer = load("hub_cards/fmlm-english-small")
    length, size = model.config.max_position_embeddings, model.num_parameters() / 1e6
    print(f"English, {length} tokens, from a flow map of {size:.1f} M parameters and a GPT-2 of the same size (CPU).")
    times = []
    for steps in STEPS:
        ids, seconds = _timed(lambda steps=steps: model.generate(num_steps=steps, seed=seed))
        _show(f"flow map, {steps} evaluation{'s' * (steps > 1)}", tokenizer.decode(ids[0]), seconds)
        times.append(seconds)
    gpt2 = GPT2LMHeadModel.from_pretrained(ROOT / "benchmarks" / "baselines" / "ar-english-small").eval()
    start = torch.tensor([[tokenizer.bos_token_id]])

    def autoregressive() -> Tensor:
        torch.manual_seed(seed)
        new = length - 1
        return gpt2.generate(
            start, do_sample=True, top_k=0, max_new_tokens=new, min_new_tokens=new, eos_token_id=-1, pad_token_id=0
        )

    ids, seconds = _timed(autoregressive)
    _show(f"GPT-2 with its cache, {length - 1} evaluations", tokenizer.decode(ids[0]), seconds)
    print(f"\nOne evaluation took 1/{seconds / times[0]:.0f} of the time of the autoregressive text.")


def _show(what: str, text: str, seconds: float) -> None:
    for token in ("<bos>", "<eos>"):
        text = text.replace(token, " ")
    print(f"\n[{what}, {1000 * seconds:.0f} ms]")
    print(textwrap.fill(" ".join(text.split()), 110, initial_indent="  ", subsequent_indent="  "))


def _timed(write: Callable[[], Tensor], repeats: int = 3) -> tuple[Tensor, float]:
    """The ids and the median wall time in seconds, after a first call that does not count."""
    ids, times = write(), []
    for _ in range(repeats):
        before = time.perf_counter()
        write()
        times.append(time.perf_counter() - before)
    return ids, statistics.median(times)


def _sudoku(seed: int) -> None:
    model, tokenizer = load("hub_cards/fmlm-sudoku")
    held_out = ROOT / "examples" / "sudoku" / "9x9" / "validation.parquet"
    solution = load_dataset("parquet", data_files=str(held_out), split="train")[seed]["text"]
    ids = torch.tensor([tokenizer(solution).input_ids])
    hidden = torch.randperm(81, generator=torch.Generator().manual_seed(seed))[GIVEN:]
    puzzle = ids.clone()
    puzzle[0, hidden] = tokenizer.mask_token_id

    for steps in STEPS:
        filled, seconds = _timed(
            lambda steps=steps: model.generate(puzzle, num_steps=steps, num_return_sequences=CANDIDATES, seed=seed)
        )
        valid = [row for row in filled if _is_valid(row)]
        if valid or steps == STEPS[-1]:
            break
    found = f"{len(valid)} of {CANDIDATES} candidates are valid"
    print(f"\nSudoku, {GIVEN} cells given: {steps} evaluation{'s' * (steps > 1)}, {1000 * seconds:.0f} ms; {found}.")
    answer = valid[0] if valid else filled[0]
    for r in range(0, 81, 9):
        print("  " + " ".join(map(_cell, puzzle[0, r : r + 9])) + "     " + " ".join(map(_cell, answer[r : r + 9])))


def _cell(token: Tensor) -> str:
    return str(int(token)) if token > 0 else "."


def _is_valid(grid: Tensor) -> bool:
    rows = grid.view(9, 9)
    boxes = rows.view(3, 3, 3, 3).transpose(1, 2).reshape(9, 9)
    units = torch.cat([rows, rows.T, boxes])
    return bool((units.sort(dim=1).values == torch.arange(1, 10)).all())
