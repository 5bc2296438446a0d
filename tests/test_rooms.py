"""The rooms of the project, and which may import from which: arrows go one way (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each room may import from those named, and from itself. An import within a function counts as any other.
MAY_IMPORT = {
    "modeling_flm": set(),
    "flm_data": set(),
    "trainers": {"modeling_flm", "flm_data"},
    "evaluation": {"modeling_flm", "flm_data"},
    "hub_cards": {"modeling_flm", "flm_data", "trainers", "evaluation"},
    "command": {"modeling_flm", "flm_data", "trainers", "evaluation", "hub_cards"},
    "benchmarks": {"modeling_flm", "flm_data", "trainers", "evaluation", "hub_cards", "command", "examples"},
    "examples": {"modeling_flm", "flm_data", "trainers", "evaluation"},
}


def imported(path: Path) -> set[str]:
    """The first parts of the names of all modules that a file imports, without relative ones."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


LONGEST_FILE, LONGEST_FUNCTION = 450, 60  # lines of a file, and of a function without its docstring


def own_files(room: str) -> list[Path]:
    """The files of a room, without links to those of another."""
    return [path for path in (ROOT / room).rglob("*.py") if not path.is_symlink()]


def lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def lines_of_code(function: ast.FunctionDef) -> int:
    docstring = lines(function.body[0]) if ast.get_docstring(function) else 0
    return lines(function) - docstring


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_files_and_functions_are_short(room):
    for path in own_files(room):
        text = path.read_text()
        assert text.count("\n") <= LONGEST_FILE, path
        functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef))
        assert [f.name for f in functions if lines_of_code(f) > LONGEST_FUNCTION] == [], path


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows_go_one_way(room):
    files = own_files(room)
    assert files
    back = {
        f"{path.relative_to(ROOT)} -> {name}"
        for path in files
        for name in imported(path) & MAY_IMPORT.keys() - MAY_IMPORT[room] - {room}
    }
    assert back == set()
