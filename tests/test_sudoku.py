"""The Sudoku data, and rows of which each document is one."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from command import demonstration
from evaluation.sudoku import is_valid
from examples.sudoku import puzzles
from examples.sudoku.make_grids import all_4x4, image, random_9x9, tokenizer
from examples.sudoku.make_puzzles import CLUES, IMAGES, images
from flm_data import one_row_each
from modeling_flm.attention_flm import SOFTCAP_ATTENTION
from trainers.recipe import load_recipe
from trainers.train import build_distiller, build_trainer

ROOT = Path(__file__).parent.parent
SUDOKU = ROOT / "examples" / "sudoku"

GRID = np.array([int(c) for c in "534678912672195348198342567859761423426853791713924856961537284287419635345286179"])


def test_the_288_grids():
    grids = all_4x4()
    assert is_valid(grids).all() and len(np.unique(grids, axis=0)) == 288


def test_random_grids_are_valid_and_differ():
    rng = np.random.default_rng(0)
    grids = np.array([image(random_9x9(rng), rng) for _ in range(30)])
    assert is_valid(grids).all() and len(np.unique(grids, axis=0)) == 30
    assert is_valid(np.array([image(GRID, rng) for _ in range(100)])).all()


def test_what_is_not_valid():
    twice, swapped = GRID.copy(), GRID.copy()
    twice[0] = twice[1]
    swapped[[0, 9]] = swapped[[9, 0]]  # the column stays right, two rows do not
    columns = np.tile(np.arange(1, 10), 9)
    boxes_only_wrong = np.array([[(r + c) % 9 + 1 for c in range(9)] for r in range(9)]).ravel()
    assert is_valid(np.array([GRID, twice, swapped, columns, boxes_only_wrong])).tolist() == [True] + 4 * [False]


@pytest.mark.parametrize("size", [4, 9])
def test_ids_are_digits_and_the_blank_is_the_mask(size, tmp_path):
    made = tokenizer(size)
    shipped = AutoTokenizer.from_pretrained(SUDOKU / f"{size}x{size}" / "tokenizer")
    for one in (made, shipped):
        assert one("12.4").input_ids == [1, 2, 0, 4] and one.decode([1, 2, 0, 4]) == "12.4"
        assert one.mask_token_id == 0 and len(one) == size + 1


def test_one_row_each():
    digits = tokenizer(4)
    documents = Dataset.from_dict({"text": ["1234", "43.1"], "more": [1, 2]})
    for source in (documents, documents.to_iterable_dataset()):
        assert list(one_row_each(source, digits, 4)) == [{"input_ids": [1, 2, 3, 4]}, {"input_ids": [4, 3, 0, 1]}]
    with pytest.raises(ValueError, match="'1234' has 4 tokens, but the model's rows have 5"):
        one_row_each(documents, digits, 5)
    with pytest.raises(ValueError, match="There is no column `grid`"):
        one_row_each(documents, digits, 4, text_column="grid")


def test_rows_with_given_tokens():
    digits = tokenizer(4)
    documents = Dataset.from_dict({"text": ["1234", "4321"], "given": ["1..4", "...."]})
    for source in (documents, documents.to_iterable_dataset()):
        rows = list(one_row_each(source, digits, 4, given_column="given"))
        assert rows[0] == {"input_ids": [1, 2, 3, 4], "conditioning_mask": [1, 0, 0, 1]}
        assert rows[1] == {"input_ids": [4, 3, 2, 1], "conditioning_mask": [0, 0, 0, 0]}
    wrong = Dataset.from_dict({"text": ["1234"], "given": ["2..4"]})
    with pytest.raises(ValueError, match=r"given tokens must be those of the document, but those of '2\.\.4' are not"):
        one_row_each(wrong, digits, 4, given_column="given")
    digits_alone = tokenizer(4)
    digits_alone.mask_token = None
    with pytest.raises(ValueError, match="`given_column` needs a tokenizer with a mask token"):
        one_row_each(documents, digits_alone, 4, given_column="given")
    with pytest.raises(ValueError, match="There is no column `clues`"):
        one_row_each(documents, digits, 4, given_column="clues")


def test_the_puzzles_of_training():
    rng = np.random.default_rng(0)
    rows = [row for _ in range(3) for row in images(GRID, rng)]
    assert is_valid(np.array([grid for grid, _ in rows])).all()
    assert len({tuple(grid) for grid, _ in rows}) == len(rows) == 3 * IMAGES
    assert len({np.count_nonzero(puzzle) for _, puzzle in rows}) > 10
    for grid, puzzle in rows:
        assert np.count_nonzero(puzzle) >= CLUES[0]
        assert [solution.tolist() for solution in puzzles.solutions(puzzle)] == [grid.tolist()]


def test_the_recipe_of_4x4(tmp_path):
    recipe = load_recipe(ROOT / "recipes" / "shidoku.yaml", [f"training.output_dir={tmp_path}"])
    trainer = build_trainer(recipe)
    assert trainer.model.config.vocab_size == 5 and trainer.model.config.mask_token_id == 0
    assert len(trainer.train_dataset) == 28_800 and is_valid(np.array(trainer.train_dataset[:288]["input_ids"])).all()


def test_a_recipe_names_the_attention_of_model_and_teacher(tmp_path):
    overrides = [f"teacher={ROOT}/hub_cards/flm-shidoku", f"training.output_dir={tmp_path}"]
    for attention in ("eager", None):
        named = [] if attention is None else [f"model.attn_implementation={attention}"]
        trainer = build_distiller(load_recipe(ROOT / "recipes" / "shidoku-fmlm.yaml", overrides + named))
        used = {model.config._attn_implementation for model in (trainer.model, trainer.teacher)}
        assert used == {attention or SOFTCAP_ATTENTION}
        assert "attn_implementation" not in trainer.model.config.to_json_string()


# -- puzzles ----------------------------------------------------------------------------------------------------------


def exact_cover(puzzle: np.ndarray) -> list[list[int]]:
    """All solutions, by Knuth's algorithm X: a solver of another kind than that of the examples."""
    rows = {
        (cell, digit): [
            ("cell", cell),
            ("row", cell // 9, digit),
            ("column", cell % 9, digit),
            ("box", cell // 27 * 3 + cell % 9 // 3, digit),
        ]
        for cell in range(81)
        for digit in range(1, 10)
    }
    columns: dict[tuple, set] = {}
    for row, met in rows.items():
        for constraint in met:
            columns.setdefault(constraint, set()).add(row)

    def select(row) -> list[set]:
        taken = []
        for constraint in rows[row]:
            for other in columns[constraint]:
                for more in rows[other]:
                    if more != constraint:
                        columns[more].remove(other)
            taken.append(columns.pop(constraint))
        return taken

    def deselect(row, taken) -> None:
        for constraint in reversed(rows[row]):
            columns[constraint] = taken.pop()
            for other in columns[constraint]:
                for more in rows[other]:
                    if more != constraint:
                        columns[more].add(other)

    def search(chosen: list):
        if not columns:
            yield [digit for _, digit in sorted(chosen)]
            return
        constraint = min(columns, key=lambda name: len(columns[name]))
        for row in sorted(columns[constraint]):
            taken = select(row)
            yield from search([*chosen, row])
            deselect(row, taken)

    given = [(cell, int(digit)) for cell, digit in enumerate(puzzle) if digit]
    for row in given:
        select(row)
    return list(search(given))


@pytest.mark.parametrize("clues", [40, 30, 25])
def test_puzzles_have_one_solution(clues):
    rng = np.random.default_rng(clues)
    for grid in puzzles.held_out_grids(3):
        puzzle = puzzles.dig(grid, clues, rng)
        given = puzzle != 0
        assert given.sum() == clues and (puzzle == grid)[given].all()
        assert exact_cover(puzzle) == [grid.tolist()]


def test_solutions_are_counted():
    grid = puzzles.held_out_grids(1)[0]
    several = np.where(np.arange(81) < 45, 0, grid)  # the last four rows alone
    assert len(puzzles.solutions(several, most=5)) == 5
    assert all(is_valid(np.array(puzzles.solutions(several, most=5))))
    wrong = grid.copy()
    wrong[0] = wrong[1]
    assert puzzles.solutions(wrong) == []


def test_puzzles_that_cannot_be_had():
    grid, rng = puzzles.held_out_grids(1)[0], np.random.default_rng(0)
    with pytest.raises(ValueError, match="`clues` is 16, but a puzzle with one solution has 17 to 81"):
        puzzles.dig(grid, 16, rng)
    with pytest.raises(ValueError, match="no puzzle of 17 clues was found on this grid in 1 attempts, but of 2"):
        puzzles.dig(grid, 17, rng, attempts=1)


def test_the_puzzles_of_the_demo():
    lines = (SUDOKU / "9x9" / "puzzles.txt").read_text().splitlines()
    rng = np.random.default_rng(0)
    for line, grid in zip(lines[:3], rng.permutation(puzzles.held_out_grids()), strict=False):
        puzzle, solution = (np.array([int(digit) for digit in part.replace(".", "0")]) for part in line.split())
        assert (puzzle > 0).sum() == 36 and (puzzle == puzzles.dig(grid, 36, rng)).all() and (solution == grid).all()


def test_the_demo_solves_one(capsys):
    demonstration.PARTS["fmlm-sudoku"](ROOT, seed=0)
    shown = capsys.readouterr().out
    assert "a Sudoku of 36 clues in 8 evaluations" in shown
    rows = [line.split("    ") for line in shown.splitlines() if line.count("    ") == 4][-9:]
    solution = np.array([[int(digit) for digit in row[-1].split()] for row in rows]).reshape(1, 81)
    assert is_valid(solution) and "attempts are right; this is the first" in shown
