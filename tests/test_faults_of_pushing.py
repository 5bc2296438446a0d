"""Pushes that are killed at any moment, or that meet a Hub that fails: what is on the Hub is whole, nothing is lost,
pushing again succeeds."""

import json
import pickle
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from children import HELPERS, WITH_HELPERS, run_python
from interrupted_pushes import FAILURES, FOLDER, PUSHES, TRAININGS, names
from local_hub import ARRIVED, BEFORE_THE_ANSWER, HALFWAY, Cut, local_hub

from trainers.pushes import PICKLED

STEPS = (2, 4, 6)

LOAD = """
import sys
from safetensors.torch import load_file
from transformers import AutoModel
revisions = sys.argv[1:]
for revision in revisions:
    name, commit, weights = revision.split("@")
    options = dict(trust_remote_code=True, revision=commit, code_revision=commit)
    model, loading = AutoModel.from_pretrained(name, output_loading_info=True, **options)
    assert not any(loading.values()), loading
    found, wanted = dict(model.named_parameters()), load_file(weights)
    assert found.keys() == wanted.keys() and all(found[name].equal(wanted[name]) for name in wanted), revision
    assert model.generate(num_steps=1).shape == (1, 16)
assert "modeling_flm" not in sys.modules
print(len(revisions), "loaded")
"""


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> tuple[Path, dict, dict]:
    """The folder of the pushes, how each of them ended, and the revisions of each repository: their files. A card
    names its repository; here all are called the same, so that they can be compared."""
    root = tmp_path_factory.mktemp("interrupted")
    run_python(HELPERS / "interrupted_pushes.py", root, cwd=root, PYTHONPATH=WITH_HELPERS)
    repositories = pickle.loads((root / "hub.pickle").read_bytes())
    revisions = {
        name: [{path: unnamed(file) for path, file in files.items()} for _, _, files in of_name]
        for (_, name), of_name in repositories.items()
    }
    return root, json.loads((root / "ends.json").read_text()), revisions


def unnamed(file: bytes) -> bytes:
    return re.sub(rb"[\w.-]+/model\b", b"org/model", file)


@pytest.mark.parametrize("name", names(PUSHES))
def test_a_killed_push_leaves_the_earlier_revision_or_the_new_one(interrupted, name):
    _, ends, revisions = interrupted
    end, whole = ends[name], revisions[f"{name.rsplit('-', 1)[0]}/model"]
    earlier, new = whole[:-1], whole[-1]
    assert (end["signal"], end["message"]) == (9, "")
    after_it = revisions[name][: end["revisions"]]
    committed = "/commit/" in end["request"] and end["moment"] == BEFORE_THE_ANSWER
    if end["request"] == "POST /api/repos/create" and not earlier[1:]:
        assert after_it in ([], earlier)
    else:
        assert after_it == (earlier + [new] if committed else earlier)
    assert revisions[name] == after_it + [new] if after_it else earlier + [new]


def test_the_kills_are_spread_over_the_push(interrupted):
    _, ends, _ = interrupted
    kills = [(ends[name]["request"], ends[name]["moment"]) for name in names(PUSHES)]
    places = [("repos/create", HALFWAY), ("preupload", ARRIVED), ("objects/batch", BEFORE_THE_ANSWER)]
    places += [("PUT", ARRIVED), ("PUT", HALFWAY), ("/commit/", ARRIVED), ("/commit/", BEFORE_THE_ANSWER)]
    for part, moment in places:
        assert any(part in request and now == moment for request, now in kills), (part, moment)


def test_a_killed_push_leaves_the_folder_as_it_was(interrupted):
    root, _, revisions = interrupted
    new = {path.name: path.read_bytes() for path in (root / "new").iterdir()}
    pushed = revisions["flm-push/model"][-1]
    assert new.keys() | {".gitattributes"} == pushed.keys()
    assert all(pushed[name] == file for name, file in new.items() if name != "README.md")
    assert new["README.md"] == (FOLDER / "README.md").read_bytes() + b"\nOf other weights.\n"
    earlier = {path.name: path.read_bytes() for path in (root / "earlier").iterdir()}
    assert earlier == {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}
    assert earlier["model.safetensors"] != new["model.safetensors"]


@pytest.mark.parametrize("name", names(TRAININGS))
def test_a_training_killed_while_it_pushes_goes_on_to_the_same_model(interrupted, name):
    root, ends, revisions = interrupted
    end, whole = ends[name], f"{name.rsplit('-', 1)[0]}/model"
    assert end["signal"] == 9 or end["request"] is None  # what was not pushed in time has no requests
    last = revisions[name][-1]
    for file in ("model.safetensors", "README.md"):
        assert last[file] == revisions[whole][-1][file] == unnamed((root / name / file).read_bytes())
    assert f'from_pretrained("{name}"' in (root / name / "README.md").read_text()
    logs = [_losses(root / each / "checkpoint-6" / "trainer_state.json") for each in (name, whole)]
    assert logs[0] == logs[1] and len(logs[0]) == 8


def _losses(state: Path) -> dict:
    log = json.loads(state.read_text())["log_history"]
    return {(e["step"], name): e[name] for e in log for name in ("loss", "eval_loss") if name in e}


@pytest.mark.parametrize("name", [*names(TRAININGS), "lost/model", "every_save/model", "checkpoint/model"])
def test_all_that_a_training_pushes_is_whole(interrupted, name):
    root, _, revisions = interrupted
    saved = {step: root / "every_save" / "model" / f"checkpoint-{step}" for step in STEPS}
    empty, *pushed = revisions[name]
    assert empty.keys() == {".gitattributes"} and pushed
    for files in pushed:
        assert {path.name for path in FOLDER.glob("*.py")} <= files.keys()
        pickled = {path for path in files if any(fnmatch(path, pattern) for pattern in PICKLED)}
        assert pickled <= {f"last-checkpoint/{state}" for state in ("optimizer.pt", "scheduler.pt", "rng_state.pth")}
        step = int(re.search(rb"steps taken: (\d)", files["README.md"])[1])
        assert files["model.safetensors"] == (saved[step] / "model.safetensors").read_bytes()
        if "last-checkpoint/trainer_state.json" in files:
            step = json.loads(files["last-checkpoint/trainer_state.json"])["global_step"]
            for file in ("model.safetensors", "raw_weights.safetensors"):
                assert files[f"last-checkpoint/{file}"] == (saved[step] / file).read_bytes()


def test_the_hub_alone_is_enough_to_go_on_from(interrupted):
    root, _, revisions = interrupted
    step = json.loads((root / "downloaded" / "last-checkpoint" / "trainer_state.json").read_text())["global_step"]
    assert step in (2, 4) and not (root / "lost" / "model" / "checkpoint-2").exists()
    assert revisions["lost/model"][-1]["model.safetensors"] == revisions["checkpoint/model"][-1]["model.safetensors"]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_hub_that_fails_is_an_error_that_says_what_holds(interrupted, failure):
    _, ends, revisions = interrupted
    name = f"{failure.replace(' ', '-')}/model"
    said, whole = ends[name]["message"], revisions["flm-push-the-first/model"]
    assert f"flm: the push to {name} failed: " in said and "Push again once the reason is gone." in said
    reasons = {
        401: "401 Unauthorized",
        500: "500 Internal Server Error",
        504: "504 Gateway Timeout",
        Cut: "Server disc",
    }
    part, how = FAILURES[failure]
    assert reasons[how] in said and ("model.safetensors" in said) == part.startswith("PUT")
    assert revisions[name][: ends[name]["revisions"]] == ([] if part.endswith("create") else whole[:1])
    assert revisions[name] == whole


def test_a_training_outlives_a_hub_that_fails_and_warns(interrupted):
    root, ends, revisions = interrupted
    assert "Error while uploading 'model.safetensors'" in ends["stubborn/model"]["message"]  # of the last push
    warnings = (root / "warnings.txt").read_text().splitlines()
    assert warnings and all("a push to stubborn/model failed, and training goes on: " in line for line in warnings)
    assert "500 Internal Server Error" in warnings[0] and "`trainer.push_to_hub()`" in warnings[0]
    last = revisions["stubborn/model"][-1]
    assert not [file for file in last if ".saving" in file], "what a killed save had left behind was pushed"
    for file in ("model.safetensors", "README.md"):
        assert last[file] == revisions["checkpoint/model"][-1][file]


def test_what_was_pushed_loads_from_the_hub(interrupted, tmp_path):
    """Every revision that was found on the Hub above, by its files, is one of these."""
    root, _, _ = interrupted
    repositories = pickle.loads((root / "hub.pickle").read_bytes())
    wanted = []
    for name in ("flm-push/model", "model.push_to_hub/model"):
        for (commit, _, _), folder in zip(repositories["models", name][1:], ("earlier", "new"), strict=True):
            wanted.append(f"{name}@{commit}@{root / folder / 'model.safetensors'}")
    for commit, _, files in repositories["models", "checkpoint/model"][1:]:
        weights = tmp_path / f"{commit}.safetensors"
        weights.write_bytes(files["model.safetensors"])
        wanted.append(f"checkpoint/model@{commit}@{weights}")
    with local_hub(tmp_path / "home") as (environment, hub):
        hub.repositories = repositories
        done = run_python("-P", "-c", LOAD, *wanted, cwd=tmp_path, **environment)
    assert done.stdout.strip() == f"{len(wanted)} loaded" and len(wanted) >= 6
