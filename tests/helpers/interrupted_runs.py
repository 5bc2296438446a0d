"""What test_faults.py runs: `interrupted_runs.py FOLDER` trains once for each fault, in a child process each."""

import gc
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from children import in_child
from training import fresh_model, make_trainer
from transformers import TrainerCallback, TrainerState, modeling_utils

from trainers import flm_trainer
from trainers.checkpoints import last_whole_checkpoint

OPTIONS = {
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "conditioning_rate": 0.5,
}


def make(folder: Path, model_seed: int = 0, **changes):
    """A trainer of a model with dropout that saves at steps 2, 4 and 6."""
    return make_trainer(folder, fresh_model(model_seed, hidden_dropout=0.1), **OPTIONS | changes)


class At(TrainerCallback):
    """Does something at the end of a step, before it is saved."""

    def __init__(self, step: int, action: Callable[[], object]):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_halfway(module, name: str, position: int, call: int) -> Callable[[], None]:
    """From when this is called: SIGKILL when the file of that call of `module.name` is half written."""
    write, calls = getattr(module, name), []

    def half_write(*args, **kwargs):
        result = write(*args, **kwargs)
        calls.append(args)
        if len(calls) == call:
            path = args[position]
            os.truncate(path, os.path.getsize(path) // 2)
            kill()
        return result

    return lambda: setattr(module, name, half_write)


def kill_while_removing() -> None:
    remove = shutil.rmtree

    def remove_one(folder, *args, **kwargs):
        if Path(folder, "optimizer.pt").exists():
            Path(folder, "optimizer.pt").unlink()
            kill()
        remove(folder, *args, **kwargs)

    shutil.rmtree = remove_one


def kill_before_moving() -> None:
    os.replace = lambda *paths: kill()


# What happens, and when: at step 3 it is arranged for the save at step 4.
KILLS: dict[str, tuple[int, Callable[[], object], dict]] = {
    "before the first checkpoint": (1, kill, {}),
    "between two checkpoints": (3, kill, {}),
    "as a checkpoint begins": (4, kill, {}),
    "in the model's weights": (3, kill_halfway(modeling_utils, "safe_save_file", 1, 1), {}),
    "before the model is in place": (3, kill_before_moving, {}),
    "in the optimiser's state": (3, kill_halfway(torch, "save", 1, 2), {}),
    "in the raw weights": (3, kill_halfway(flm_trainer, "save_file", 1, 1), {}),
    "in the random states": (3, kill_halfway(torch, "save", 1, 4), {}),
    "in the trainer's state": (3, kill_halfway(TrainerState, "save_to_json", 1, 1), {}),
    "while an old checkpoint is removed": (3, kill_while_removing, {"save_total_limit": 1}),
}


RANDOM_KILLS = 20


def count_calls(then: Callable[[int], object]) -> Callable[[], None]:
    """From when this is called: tell `then` the number of each call of a function, in Python or in C, as it begins.
    The number says how far a run has come, whatever the machine's speed."""
    calls = itertools.count()

    def count(frame, event: str, argument) -> None:
        if event in ("call", "c_call"):
            then(next(calls))

    return lambda: sys.setprofile(count)


def count_undisturbed(folder: Path) -> None:
    """Write down how many calls a run makes from the end of its first step, saving after every step."""
    last = [0]
    train_until(folder, 1, count_calls(lambda number: last.__setitem__(0, number)), save_steps=1)
    sys.setprofile(None)
    (folder / "calls").write_text(str(last[0]))


def kill_any_time(seed: int, calls: int) -> Callable[[], None]:
    """From when this is called: SIGKILL at a random call of a run that makes so many from there."""
    fatal = random.Random(seed).randrange(calls)
    return count_calls(lambda number: kill() if number == fatal else None)


def fill_disk(limit: int) -> None:
    """From now on no file can grow beyond `limit` bytes: what a full disk does, EFBIG standing in for ENOSPC."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


# Which writes fail: all, that of modeling_flm.py, that of the weights, that of the optimiser's state.
FULL_DISKS = [100, 10_000, 60_000, 200_000]


def train_until(folder: Path, step: int, action: Callable[[], object], **changes) -> None:
    make(folder, callbacks=[At(step, action)], **changes).train()


def save_over(folder: Path, limit: int) -> None:
    trainer = make(folder, save_strategy="no")
    trainer.train()
    trainer.save_model(folder / "model")
    shutil.copytree(folder / "model", folder / "before")
    trainer.train()
    fill_disk(limit)
    trainer.save_model(folder / "model")


if __name__ == "__main__":
    gc.freeze()  # or each training looks through all that was imported
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    ends = {}
    for name, (step, action, changes) in KILLS.items():
        ends[name] = in_child(lambda: train_until(root / name, step, action, **changes))  # noqa: B023
    in_child(lambda: count_undisturbed(root / "undisturbed"))
    calls = int((root / "undisturbed" / "calls").read_text())
    for seed in range(RANDOM_KILLS):
        folder = root / f"random {seed}"
        arm = kill_any_time(seed, calls)
        end = in_child(lambda: train_until(folder, 1, arm, save_steps=1))  # noqa: B023
        left = last_whole_checkpoint(folder)
        ends[folder.name] = end | {"left": left and left.name}
    for limit in FULL_DISKS:
        folder = root / f"{limit} bytes"
        ends[folder.name] = in_child(lambda: train_until(folder, 3, lambda: fill_disk(limit)))  # noqa: B023
        folder = root / f"over an old model, {limit} bytes"
        ends[folder.name] = in_child(lambda: save_over(folder, limit))  # noqa: B023
    (root / "ends.json").write_text(json.dumps(ends))
