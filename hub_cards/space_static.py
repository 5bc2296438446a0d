"""Builds the static Space, a page without a server: the libraries and models that it loads. `make space-static`.

The page itself is in `space-static/`, and loads nothing from elsewhere. What is built goes into two folders there,
which are not committed. `vendor/` has the files that the page needs of the npm packages pinned in `package-lock.json`.
`models/` has the exported models and a manifest with the checksum of every built file: the page checks it before it
runs a model, `flm push` before it uploads one.
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import onnx

from flm_data.paths import checkout, sha256
from hub_cards.export import export
from hub_cards.push import MANIFEST

FOLDER = "hub_cards/space-static"
MODELS = {"text": "fmlm-tinystories", "sudoku": "fmlm-sudoku"}
PUZZLES = "examples/sudoku/9x9/puzzles.txt"  # each with its solution
STEPS = range(1, 9)
EXPORTED = ("model.onnx", "tokenizer.json", "tokenizer_config.json")  # the files of `flm export` that the page needs
# The runtime for WebAssembly, without those for graphics cards, and the tokenizer.
VENDORED = (
    "onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "@huggingface/tokenizers/dist/tokenizers.min.mjs",
    "@huggingface/tokenizers/LICENSE",  # the runtime's licence is at the head of its file
)


def build(folder: Path) -> None:
    """Make `vendor/` and `models/` in the folder of the page, which has its `package-lock.json`. Old ones are replaced
    once the new ones are complete.

    Raises:
        ValueError: if npm is missing or fails.
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
        puzzles = (checkout() / PUZZLES).read_text().splitlines()
        manifest = {"files": files, "models": models, "puzzles": puzzles}
        (made / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for name in ("vendor", "models"):
            shutil.rmtree(folder / name, ignore_errors=True)
            (made / name).rename(folder / name)


def export_model(name: str, into: Path) -> dict[str, Any]:
    """Export a shipped flow map, and put the files that the page needs into `into`.

    Returns:
        what the page must know about the graph. onnxruntime-web itself cannot read it from the file's metadata.
    """
    into.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as place:
        export(checkout() / "hub_cards" / name, Path(place), num_steps=STEPS)
        for part in EXPORTED:
            shutil.copy(Path(place, part), into)
    graph = onnx.load(into / "model.onnx")
    told = {entry.key: entry.value for entry in graph.metadata_props}
    width = {entry.name: entry.type.tensor_type.shape.dim[-1].dim_value for entry in graph.graph.input}
    numbers = {key: int(told[key]) if told[key] else None for key in ("length", "mask_token_id", "bos_token_id")}
    texts = {key: told[key] for key in ("license", "source_sha256", "made_by")}
    widths = {"width": width["state"], "noise_width": width["noise"]}
    tables = {key: json.loads(told[key]) for key in ("steps", "refine_fraction")}
    return {"name": name, **texts, **numbers, **widths, **tables}


def vendor(folder: Path, into: Path) -> None:
    """Copy the files that the page needs from the packages that the lock file in `folder` pins. npm verifies their
    checksums and runs none of their scripts.

    Raises:
        ValueError: if npm is missing or fails. The message has the end of npm's.
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
    page = checkout() / FOLDER
    build(page)
    print(f"{page} is built: `python -m http.server -d {page}` shows it, `flm push` puts it on the Hub.")
