"""Builds the static Space: what its page loads, libraries and models, beside it. `make space-static`.

The page itself is in `space-static/`. It has no server and loads from nowhere else, so that all it needs lies in two
folders there, which are made here and not committed: `vendor/`, the files it takes of the npm packages that
`package-lock.json` pins, and `models/`, the exported models with a manifest: the sum of every file made here, which the
page checks before it runs a model, and `flm push` before it uploads one.
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from datasets import load_dataset

from flm_data.paths import checkout
from hub_cards.push import MANIFEST, sha256

FOLDER = "hub_cards/space-static"
MODELS = {"text": "fmlm-english-small", "sudoku": "fmlm-sudoku"}
PUZZLES = "examples/sudoku/9x9/validation.parquet"
SOLUTIONS = 200  # of it, for puzzles to begin with
# The runtime for WebAssembly alone, without the ones for graphics cards, and the tokenizer.
VENDORED = (
    "onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "@huggingface/tokenizers/dist/tokenizers.min.mjs",
)


def build(folder: Path) -> None:
    """Make `vendor/` and `models/` in a folder with the page and its `package-lock.json`; what was there goes once
    the new ones are complete.

    Raises:
        ValueError: npm is not there or fails.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as place:
        made = Path(place)
        vendor(folder, made / "vendor")
        models = {task: export_model(name, made / "models" / name) for task, name in MODELS.items()}
        files = {
            path.relative_to(made).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(made.rglob("*"))
            if path.is_file()
        }
        grids = load_dataset("parquet", data_files=str(checkout() / PUZZLES), split=f"train[:{SOLUTIONS}]")
        manifest = {"files": files, "models": models, "solutions": list(grids["text"])}
        (made / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for name in ("vendor", "models"):
            shutil.rmtree(folder / name, ignore_errors=True)
            (made / name).rename(folder / name)


def vendor(folder: Path, into: Path) -> None:
    """Copy what the page takes of the packages that the lock file in `folder` pins. npm checks their sums; none of
    their scripts is run.

    Raises:
        ValueError: npm is not there or fails; the message has its last words.
    """
    into.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as place:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(folder / name, place)
        command = ["npm", "ci", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund"]
        try:
            done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise ValueError("npm is needed to build the static Space: install Node.js 20 or later.") from error
        if done.returncode:
            raise ValueError(f"npm ci failed: {' '.join(done.stderr.split())[-500:]}")
        for path in VENDORED:
            shutil.copy(Path(place) / "node_modules" / path, into)


if __name__ == "__main__":
    build(checkout() / FOLDER)
