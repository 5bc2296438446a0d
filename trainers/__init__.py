"""Training of flow language models: trainers, their arguments and recipes.

The names are imported on first use, so that `flm --help` does not wait for torch.
"""

from importlib import import_module

_HOMES = {
    "FLMTrainer": "flm_trainer",
    "FLMTrainingArguments": "flm_arguments",
    "FMLMTrainer": "fmlm_trainer",
    "FMLMTrainingArguments": "fmlm_arguments",
    "MatchingTrainer": "matching_trainer",
    "MatchingTrainingArguments": "matching_arguments",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
