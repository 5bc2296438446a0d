"""What test_faults_of_pushing.py runs: `interrupted_pushes.py FOLDER` has a Hub on loopback and, in a child process
for each seed, pushes to it or trains and pushes; the Hub kills the child at a random moment of one of its requests, or
fails. Then it is done again, undisturbed. FOLDER gets `hub.pickle`, each repository's revisions, and `ends.json`.

Each seed has an organisation of its own, and in it a repository `model`: what is in it does not depend on the seed.
"""

import contextlib
import gc
import io
import json
import logging
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
from types import SimpleNamespace

from children import in_child
from local_hub import ARRIVED, BEFORE_THE_ANSWER, HALFWAY, Cut, Hub, local_hub

MOMENTS = (ARRIVED, HALFWAY, BEFORE_THE_ANSWER)
PUSHES = {"flm-push": 8, "flm-push-the-first": 5, "model.push_to_hub": 7}  # seeds of each: 20 in all
TRAININGS = {"every_save": 3, "checkpoint": 4}  # seeds of each `hub_strategy`
FAILURES = {  # which request the Hub fails, and how
    "refused": ("POST /api/repos/create", 401),
    "broken": ("PUT /large/", 500),
    "cut off": ("PUT /large/", Cut),
    "slow behind a gateway": ("/preupload/", 504),
    "silent at the end": ("/commit/", Cut),
}
FOLDER = Path(__file__).parents[2] / "hub_cards" / "fmlm-shidoku"


def names(seeds: dict[str, int]) -> list[str]:
    return [f"{way}-{seed}/model" for way in seeds for seed in range(seeds[way])]


def make_revisions(root: Path) -> None:
    """`root/earlier` and `root/new`: a shipped model, and one with other weights, another card, other settings."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(FOLDER, root / "earlier")
    new = Path(shutil.copytree(FOLDER, root / "new"))
    tensors = load_file(new / "model.safetensors")
    save_file({name: 1.05 * tensor for name, tensor in tensors.items()}, new / "model.safetensors", {"format": "pt"})
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


def train(root: Path, name: str, strategy: str, resume_from: Path | None = None) -> None:
    """Train six steps in `root/name`, saved and pushed after 2, 4 and 6, from the last checkpoint if there is one."""
    from interrupted_runs import make

    from trainers.checkpoints import last_whole_checkpoint

    resume_from = resume_from or last_whole_checkpoint(root / name)
    hub = dict(push_to_hub=True, hub_model_id=name, hub_strategy=strategy)
    trainer = make(root / name, model_seed=0 if resume_from is None else 1, **hub)
    trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
    trainer.push_to_hub()


def train_until_it_is_pushed(root: Path, name: str) -> None:
    """Train five steps, wait until the Hub has what was to be pushed, and die."""
    from interrupted_runs import At, kill, make

    hub = dict(push_to_hub=True, hub_model_id=name, hub_strategy="checkpoint")
    trainer = make(root / name, callbacks=[At(5, lambda: (trainer._finish_current_push(), kill()))], **hub)
    trainer.train()


def go_on_elsewhere(root: Path, name: str) -> None:
    """The folder of the run is lost: train on from what the Hub has."""
    from huggingface_hub import snapshot_download

    shutil.rmtree(root / name)
    found = snapshot_download(name, allow_patterns="last-checkpoint/*", local_dir=root / "downloaded")
    train(root, name, "checkpoint", Path(found, "last-checkpoint"))


def waiting_for_nothing() -> None:
    """From now on huggingface_hub does not wait before it tries again."""
    from huggingface_hub.utils import _http

    _http.time = SimpleNamespace(sleep=lambda seconds: None)


def push_by_command(folder: Path, name: str) -> None:
    """`flm push`; what it says of an error becomes an error."""
    from command.main import main

    with contextlib.redirect_stderr(io.StringIO()) as said:
        if main(["push", str(folder), name]):
            raise RuntimeError(said.getvalue().strip().splitlines()[-1])


def brings(request: str) -> bool:
    """Whether it brings something to the Hub; what else a push asks for depends on what is cached."""
    return request.startswith(("POST", "PUT"))


class Pushes:
    """Children that push to the Hub, and what became of them."""

    def __init__(self, hub: Hub):
        self.hub, self.ends = hub, {}

    def undisturbed(self, action: Callable[[], object]) -> list[str]:
        """The requests with which it brought something, in the order of their arrival."""
        requests: list[str] = []

        def watch(moment: str, request: str) -> None:
            if moment == ARRIVED and brings(request):
                requests.append(request)

        self.hub.watch = watch
        end = in_child(action)
        assert end == {"signal": 0, "message": ""}, end
        self.hub.watch = lambda moment, request: None
        return requests

    def killed(self, action: Callable[[], object], number: int, moment: str) -> dict:
        """How it ends if the Hub, which has none of its large files, kills it at that moment of that request."""
        self.hub.large.clear()
        arrivals, served, pids, seen = count(), threading.local(), queue.Queue(), []

        def watch(now: str, request: str) -> None:
            if not brings(request):
                return
            if now == ARRIVED:
                served.number = next(arrivals)
            if (served.number, now) == (number, moment):
                os.kill(pids.get(), signal.SIGKILL)
                seen.append(request)
                raise Cut

        self.hub.watch = watch
        end = in_child(action, pids.put)
        self.hub.watch = lambda moment, request: None
        return end | {"request": seen[0] if seen else None, "moment": moment}

    def failing(self, action: Callable[[], object], part: str, how: int | type[Cut]) -> dict:
        """How it ends if the Hub fails all requests like `part`: with a status, or half-way through."""
        self.hub.large.clear()

        def watch(moment: str, request: str) -> int | None:
            if part not in request:
                return None
            if how is Cut and moment == HALFWAY:
                raise Cut
            return None if how is Cut or moment != ARRIVED else how

        self.hub.watch = watch
        return in_child(lambda: (waiting_for_nothing(), action()))

    def every_seed(self, way: str, seeds: int, requests: int, action: Callable[[str], object], before=()) -> None:
        """Kill `action` at random moments, spread over its requests, where the repository has the revisions `before`;
        each time do it again, undisturbed."""
        for seed, name in enumerate(names({way: seeds})):
            if before:
                self.hub.repositories["models", name] = list(before)
            place = int((seed + random.Random(seed).random()) / seeds * requests * len(MOMENTS))
            number, moment = divmod(place, len(MOMENTS))
            end = self.killed(lambda: action(name), number, MOMENTS[moment])  # noqa: B023
            end["revisions"] = len(self.hub.repositories.get(("models", name), []))
            self.undisturbed(lambda: action(name))  # noqa: B023
            self.ends[name] = end


def main(root: Path, hub: Hub) -> None:
    import interrupted_runs  # noqa: F401  what the children need is imported once, here
    import torch

    import hub_cards.push  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()  # or each child would walk through, and so copy, all that was imported
    make_revisions(root)
    pushes = Pushes(hub)
    for way, seeds in PUSHES.items():
        reference, before = f"{way}/model", []
        if way != "flm-push-the-first":
            pushes.undisturbed(lambda: push(way, root / "earlier", reference))  # noqa: B023
            before = list(hub.repositories["models", reference])
        hub.large.clear()
        requests = pushes.undisturbed(lambda: push(way, root / "new", reference))  # noqa: B023
        pushes.every_seed(way, seeds, len(requests), lambda name: push(way, root / "new", name), before)  # noqa: B023
    for strategy, seeds in TRAININGS.items():
        hub.large.clear()
        requests = pushes.undisturbed(lambda: train(root, f"{strategy}/model", strategy))  # noqa: B023
        pushes.every_seed(strategy, seeds, len(requests), lambda name: train(root, name, strategy))  # noqa: B023
    for failure, (part, how) in FAILURES.items():
        name = f"{failure.replace(' ', '-')}/model"
        end = pushes.failing(lambda: push_by_command(root / "new", name), part, how)  # noqa: B023
        end["revisions"] = len(hub.repositories.get(("models", name), []))
        pushes.undisturbed(lambda: push_by_command(root / "new", name))  # noqa: B023
        pushes.ends[name] = end
    logging.getLogger("trainers").addHandler(logging.FileHandler(root / "warnings.txt"))
    pushes.ends["stubborn/model"] = pushes.failing(lambda: train(root, "stubborn/model", "checkpoint"), "PUT /", 500)
    (root / "stubborn" / "model" / ".saving-left").mkdir()
    (root / "stubborn" / "model" / ".saving-left" / "model.safetensors").write_text("cut off")
    pushes.undisturbed(lambda: train(root, "stubborn/model", "checkpoint"))
    end = in_child(lambda: train_until_it_is_pushed(root, "lost/model"))
    assert end == {"signal": signal.SIGKILL, "message": ""}, end
    pushes.undisturbed(lambda: go_on_elsewhere(root, "lost/model"))
    (root / "hub.pickle").write_bytes(pickle.dumps(hub.repositories))
    (root / "ends.json").write_text(json.dumps(pushes.ends))


if __name__ == "__main__":
    with local_hub(Path(sys.argv[1], "home")) as (environment, hub):
        os.environ |= environment | dict(HF_HUB_DISABLE_PROGRESS_BARS="1")
        main(Path(sys.argv[1]), hub)
