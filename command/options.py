"""What several subcommands need to read and check their options."""

import importlib.util
from pathlib import Path


def integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
        raise ValueError(f"--device {name} cannot be used here: {error}") from error


def check_evaluation() -> None:
    """Other projects have a package `evaluation`, too: one that Python finds first would be taken for this one."""
    here, spec = Path(__file__).parent.parent, importlib.util.find_spec("evaluation")
    found = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    if found and here / "evaluation" not in found:
        raise ValueError(
            f"the package `evaluation` in {found[0].parent} hides that of flow-language-models in {here}."
        )
