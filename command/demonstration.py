"""What `flm demo` shows: the shipped models, loaded as any user would load them, at work."""

import statistics
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, GPT2LMHeadModel
from transformers.utils import logging

from evaluation.sudoku import is_valid
from flm_data.paths import check_links, checkout
from hub_cards.folder import size

STEPS = (1, 2, 4)
GRIDS = 8
SUDOKU_STEPS, SUDOKU_DRAFTS = 8, (1, 2, 4, 8)
ATTEMPTS = 16


def run_demo(seed: int = 0) -> None:
    """Print a story in one, two and four evaluations beside an autoregressive model's, a Sudoku solved in eight,
    and small grids in one.

    Raises:
        ValueError: the shipped models are not there, see [`checkout`].
    """
    logging.disable_progress_bar()
    root = checkout()
    shipped = [name for name in PARTS if (root / "hub_cards" / name / "model.safetensors").exists()]
    if not shipped:
        raise ValueError(f"the demo needs shipped models, but there is none in {root / 'hub_cards'}.")
    for name in shipped:
        check_links(root / "hub_cards" / name)
        PARTS[name](root, seed)
    print("\nWrite more:  flm generate hub_cards/fmlm-tinystories --num-steps 4 --num-samples 4")


def load(folder: Path):
    """A shipped model and its tokenizer, with the code that lies beside the weights."""
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def _stories(root: Path, seed: int) -> None:
    model, tokenizer = load(root / "hub_cards" / "fmlm-tinystories")
    of_baseline = root / "benchmarks" / "baselines" / "ar-tinystories"
    of_map, of_gpt2 = f"{model.num_parameters() / 1e6:.1f} M", f"{size(of_baseline) / 1e6:.1f} M"
    length = model.config.max_position_embeddings
    print(f"A story of {length} tokens, from a flow map of {of_map} parameters and a GPT-2 of {of_gpt2} (CPU).")
    times = []
    for steps in STEPS:
        ids, seconds = _timed(partial(model.generate, num_steps=steps, seed=seed))
        _show(f"flow map, {steps} evaluation{'s' * (steps > 1)}", tokenizer.decode(ids[0]), seconds)
        times.append(seconds)
    gpt2 = GPT2LMHeadModel.from_pretrained(of_baseline).eval()
    start = torch.tensor([[tokenizer.bos_token_id]])

    def autoregressive() -> Tensor:
        torch.manual_seed(seed)
        return gpt2.generate(start)

    ids, seconds = _timed(autoregressive, repeats=1)
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


def _sudoku(root: Path, seed: int) -> None:
    """A puzzle with one solution and the drafts on the way to it."""
    model, tokenizer = load(root / "hub_cards" / "fmlm-sudoku")
    puzzles = (root / "examples" / "sudoku" / "9x9" / "puzzles.txt").read_text().splitlines()
    puzzle, _ = puzzles[seed % len(puzzles)].split()
    ids = tokenizer([puzzle], return_tensors="pt").input_ids
    solve = partial(model.generate, ids, num_steps=1, refine_steps=SUDOKU_STEPS - 1, seed=seed)
    seconds = _timed(solve)[1]
    attempts = solve(num_return_sequences=ATTEMPTS, output_trajectory=True)
    good = is_valid(attempts.sequences.numpy())
    drafts = [tokenizer.decode(draft[int(good.argmax())]) for draft in attempts.trajectory]
    clues = 81 - puzzle.count(tokenizer.mask_token)
    size = f"flow map of {model.num_parameters() / 1e6:.1f} M parameters"
    print(
        f"\n[{size}, a Sudoku of {clues} clues in {SUDOKU_STEPS} evaluations, {1000 * seconds:.0f} ms for one attempt]"
    )
    shown = {"puzzle": puzzle} | {f"draft {step}": drafts[step - 1] for step in SUDOKU_DRAFTS}
    print("  " + "    ".join(f"{name:<17}" for name in shown))
    for row in range(0, 81, 9):
        print("  " + "    ".join(" ".join(grid[row : row + 9]) for grid in shown.values()))
    wrong = [sum(map(str.__ne__, draft, drafts[-1])) for draft in drafts[:-1]]
    print(f"{good.sum()} of {ATTEMPTS} attempts are right" + ("; this is the first of them." if good.any() else "."))
    print(f"Cells of drafts 1 to {len(wrong)} that are not those of the last: {', '.join(map(str, wrong))}.")


def _grids(root: Path, seed: int) -> None:
    model, _ = load(root / "hub_cards" / "fmlm-shidoku")
    grids, seconds = _timed(lambda: model.generate(num_steps=1, num_return_sequences=GRIDS, seed=seed))
    valid = is_valid(grids.numpy())
    what = f"{GRIDS} grids of 4x4 Sudoku from nothing, 1 evaluation, {1000 * seconds:.0f} ms: {valid.sum()} are valid"
    print(f"\n[flow map of {model.num_parameters() / 1e6:.1f} M parameters, {what}]")
    for row in range(4):
        print("  " + "    ".join(" ".join(map(str, grid[4 * row : 4 * row + 4].tolist())) for grid in grids))
    print("  " + "    ".join("valid  " if good else "wrong  " for good in valid))


PARTS = {"fmlm-tinystories": _stories, "fmlm-sudoku": _sudoku, "fmlm-shidoku": _grids}
