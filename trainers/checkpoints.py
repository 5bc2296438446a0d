"""Whether a checkpoint is whole, or a save that was interrupted.

The Trainer writes `trainer_state.json` last. A checkpoint is whole if that file can be read. A save that was cut
short, by a kill or a full disk, fails this test.
"""

import json
import shutil
from pathlib import Path

STATE = "trainer_state.json"
RAW_WEIGHTS = "raw_weights.safetensors"  # raw and averaged weights in float32, from which training resumes
AUXILIARY = "auxiliary.safetensors"  # the auxiliary network of distribution matching and its optimiser


def is_whole(checkpoint: Path) -> bool:
    """Whether the folder is a checkpoint that was written to its end."""
    return _step(checkpoint) is not None


def last_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """The whole `checkpoint-N` folder with the largest N in `output_dir`, or None."""
    steps = ((_step(path), path) for path in Path(output_dir).glob("checkpoint-*"))
    whole = {step: path for step, path in steps if step is not None and path.name == f"checkpoint-{step}"}
    return whole[max(whole)] if whole else None


def _step(checkpoint: Path) -> int | None:
    """The step of a whole checkpoint; None if it is not whole."""
    try:
        return json.loads((checkpoint / STATE).read_text())["global_step"]
    except (OSError, ValueError, KeyError):
        return None


def discard(checkpoint: Path) -> None:
    """Remove a checkpoint. The state goes first: if the removal is interrupted, what is left is not whole."""
    (checkpoint / STATE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
