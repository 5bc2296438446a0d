"""Text to train and evaluate on: where it is, how it is read, and how it becomes rows of tokens.

Names are imported on first use, so that a command that only checks a path does not wait for `datasets` to load.
"""

from importlib import import_module

_HOMES = {
    "DataSource": "sources",
    "load_text": "sources",
    "load_tokenizer": "packing",
    "one_row_each": "packing",
    "pack": "packing",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
