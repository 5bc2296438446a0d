"""What test_faults_of_pushing.py runs: `interrupted_pushes.py FOLDER` has a Hub on loopback and, in a child process for
each seed, pushes to it, by one of three ways or in training; the Hub kills the child at a random moment of one of its
requests. Then it is done again, undisturbed. FOLDER gets `hub.pickle`, all revisions of all repositories, and `ends.json`.

Each seed has an organisation of its own: its repositories are named alike, and differ in nothing else.
"""

import json
import os
import pickle
import queue
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path

from local_hub import ARRIVED, BEFORE_THE_ANSWER, HALFWAY, Cut, Hub, local_hub

MOMENTS = (ARRIVED, HALFWAY, BEFORE_THE_ANSWER)
SEEDS = {"flm push": 8, "flm push, the first": 5, "model.push_to_hub": 7}  # 20 in all
TRAINING_SEEDS = {"every_save": 4, "checkpoint": 4}
FOLDER = Path(__file__).parent.parent / "hub_cards" / "fmlm-shidoku"


def make_revisions(root: Path) -> None:
    """`root/earlier` and `root/new`: a shipped model, and one with other weights, another card, other settings."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(FOLDER, root / "earlier")
    new = Path(shutil.copytree(FOLDER, root / "new"))
    tensors = load_file(new / "model.safetensors")
    save_file({name: 1 + tensor for name, tensor in tensors.items()}, new / "model.safetensors", {"format": "pt"})
    with open(new / "README.md", "a") as card:
        card.write("\nOf other weights.\n")
    settings = json.loads((new / "generation_config.json").read_text())
    (new / "generation_config.json").write_text(json.dumps(settings | {"num_steps": 3}))


def push(way: str, folder: Path, name: str) -> None:
    from hub_cards import push
    from modeling_flm import FMLMModel

    if way == "model.push_to_hub":
        FMLMModel.from_pretrained(folder).push_to_hub(name, max_shard_size="1MB")
    else:
        push.push(folder, name)


def train(folder: Path, name: str, strategy: str, resume_from: Path | None = None, **changes) -> None:
    """Train six steps, saved after 2, 4 and 6, from the last checkpoint if there is one; push, in between, too."""
    from interrupted_runs import make

    from trainers.checkpoints import last_whole_checkpoint

    resume_from = resume_from or last_whole_checkpoint(folder)
    changes |= dict(push_to_hub=True, hub_model_id=name, hub_strategy=strategy)
    trainer = make(folder, model_seed=0 if resume_from is None else 1, **changes)
    trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
    trainer.push_to_hub()


def train_until_it_is_pushed(folder: Path, name: str) -> None:
    """Train five steps, and die where nothing remains to be pushed but what comes after them."""
    from interrupted_runs import At, kill, make

    changes = dict(push_to_hub=True, hub_model_id=name, hub_strategy="checkpoint")
    trainer = make(folder, callbacks=[At(5, lambda: (trainer._finish_current_push(), kill()))], **changes)
    trainer.train()


def go_on_elsewhere(folder: Path, name: str) -> None:
    """The run's own folder is lost: train on from what the Hub has."""
    from huggingface_hub import snapshot_download

    found = snapshot_download(name, allow_patterns="last-checkpoint/*", local_dir=folder.with_name("downloaded"))
    train(folder, name, "checkpoint", Path(found) / "last-checkpoint")


def child(action: Callable[[], object], pids: queue.Queue) -> dict:
    """How a child process ends that does `action`: see `interrupted_runs.in_child`; its id goes to `pids` first."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        message = ""
        try:
            action()
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
        os.write(write, message.encode())
        os._exit(0)
    pids.put(pid)
    os.close(write)
    with os.fdopen(read) as pipe:
        message = pipe.read()
    return {"signal": os.WTERMSIG(os.waitpid(pid, 0)[1]), "message": message}


class Pushes:
    """Children that push to the Hub, and what became of them."""

    def __init__(self, hub: Hub):
        self.hub, self.ends = hub, {}

    def undisturbed(self, action: Callable[[], object]) -> list[str]:
        """Its requests, in the order of their arrival."""
        requests: list[str] = []
        self.hub.watch = lambda moment, request: requests.append(request) if moment == ARRIVED else None
        end = child(action, queue.Queue())
        assert end == {"signal": 0, "message": ""}, end
        self.hub.watch = lambda moment, request: None
        return requests

    def killed(self, action: Callable[[], object], number: int, moment: str) -> dict:
        """How it ends if the Hub kills it at that moment of that request."""
        arrivals, served, pids, seen = count(), threading.local(), queue.Queue(), []

        def watch(now: str, request: str) -> None:
            if now == ARRIVED:
                served.number = next(arrivals)
            if (served.number, now) == (number, moment):
                os.kill(pids.get(), signal.SIGKILL)
                seen.append(request)
                raise Cut

        self.hub.watch = watch
        end = child(action, pids)
        self.hub.watch = lambda moment, request: None
        return end | {"request": seen[0] if seen else None, "moment": moment}

    def every_seed(self, way: str, seeds: int, requests: int, before, action) -> None:
        """Kill it at random moments, spread over all of its requests; each time do it again, undisturbed."""
        for seed in range(seeds):
            name = f"{way.replace(', ', '-').replace(' ', '-')}-{seed}/model"
            before(name)
            place = int((seed + random.Random(seed).random()) / seeds * requests * len(MOMENTS))
            number, moment = divmod(place, len(MOMENTS))
            end = self.killed(lambda: action(name), number, MOMENTS[moment])  # noqa: B023
            end["revisions"] = len(self.hub.repositories.get(("models", name), []))
            self.undisturbed(lambda: action(name))  # noqa: B023
            self.ends[name] = end | {"way": way}


def main(root: Path, hub: Hub) -> None:
    import torch

    import modeling_flm.modeling_flm
    import trainers  # noqa: F401  all of it is imported once, here
    from hub_cards import push as _  # noqa: F401

    torch.set_num_threads(1)
    make_revisions(root)
    pushes = Pushes(hub)
    for way, seeds in SEEDS.items():
        reference = f"reference-{list(SEEDS).index(way)}/model"

        def earlier(name: str, way: str = way) -> None:
            if way != "flm push, the first":
                pushes.undisturbed(lambda: push(way, root / "earlier", name))

        def new(name: str, way: str = way) -> None:
            push(way, root / "new", name)

        earlier(reference)
        requests = pushes.undisturbed(lambda: new(reference))  # noqa: B023
        pushes.every_seed(way, seeds, len(requests), earlier, new)
    for strategy, seeds in TRAINING_SEEDS.items():

        def run(name: str, strategy: str = strategy) -> None:
            train(root / name, name, strategy)

        requests = pushes.undisturbed(lambda: run(f"reference-{strategy}/model"))  # noqa: B023
        pushes.every_seed(strategy, seeds, len(requests), lambda name: None, run)
    lost = "lost/model"
    assert child(lambda: train_until_it_is_pushed(root / lost, lost), queue.Queue())["signal"] == signal.SIGKILL
    pushes.undisturbed(lambda: go_on_elsewhere(root / "elsewhere" / "model", lost))
    (root / "hub.pickle").write_bytes(pickle.dumps(hub.repositories))
    (root / "ends.json").write_text(json.dumps(pushes.ends))


if __name__ == "__main__":
    with local_hub() as (address, hub):
        os.environ |= dict(HF_ENDPOINT=address, HF_HOME=str(Path(sys.argv[1], "home")), HF_HUB_OFFLINE="0")
        os.environ |= dict(HF_TOKEN="any", HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
        main(Path(sys.argv[1]), hub)
