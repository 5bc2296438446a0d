"""Whether a checkpoint is whole, or a save that was interrupted.

The Trainer writes `trainer_state.json` last. A checkpoint is whole if that file can be read and names the step of its
folder, `checkpoint-500` for example. A save that was cut short, by a kill or a full disk, fails this test. The folder
`last-checkpoint`, which `hub_strategy="checkpoint"` keeps on the Hub, may hold any step.
"""

import json
import shutil
from pathlib import Path

STATE = "trainer_state.json"
RAW_WEIGHTS = "raw_weights.safetensors"  # raw and averaged weights in float32, from which training resumes


def is_whole(checkpoint: Path) -> bool:
    """Whether the folder is a checkpoint that was written to its end."""
    try:
        state = json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError):
        return False
    return checkpoint.name in (f"checkpoint-{state.get('global_step')}", "last-checkpoint")


def last_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """The whole `checkpoint-N` folder with the largest N in `output_dir`, or None."""
    whole = [path for path in Path(output_dir).glob("checkpoint-*") if is_whole(path)]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def discard(checkpoint: Path) -> None:
    """Remove a checkpoint. The state goes first: if the removal is interrupted, what is left is not whole."""
    (checkpoint / STATE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
