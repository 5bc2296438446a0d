"""What several subcommands need to read and check their options."""

import importlib.util
from pathlib import Path


def integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def output_folder(name: str, source: str | None = None) -> Path:
    """The folder of --output, which need not be there yet. A `ValueError` if it is a file, or the model `source`."""
    folder = Path(name).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, but --output names the folder to write.")
    if source is not None and folder.exists() and Path(source).exists() and folder.samefile(source):
        raise ValueError(f"--output {name} is the model itself: name another folder.")
    return folder


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
