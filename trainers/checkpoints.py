"""Which checkpoints of a training run are whole.

The Trainer writes `trainer_state.json` after everything else. A checkpoint is whole when that file can be read and
names the step of its folder: a run that was killed, or that met a full disk, in the middle of a save is found out that
way. On the Hub the newest one is called `last-checkpoint` (`hub_strategy="checkpoint"`), whatever its step.
"""

import json
import shutil
from pathlib import Path

STATE = "trainer_state.json"
RAW_WEIGHTS = "raw_weights.safetensors"  # raw and averaged, in float32: what training resumes from


def is_whole(checkpoint: Path) -> bool:
    try:
        state = json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError):
        return False
    return checkpoint.name in (f"checkpoint-{state.get('global_step')}", "last-checkpoint")


def last_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest whole `checkpoint-N` folder of a run, None if there is none."""
    whole = [path for path in Path(output_dir).glob("checkpoint-*") if is_whole(path)]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def discard(checkpoint: Path) -> None:
    """Remove a checkpoint that is to be written anew; one that is half removed is not whole."""
    (checkpoint / STATE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
