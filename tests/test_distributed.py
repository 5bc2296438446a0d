"""Two processes train as one does, with whole parameters (DDP) and with sharded ones (FSDP2)."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.utils import FullyShardedDataParallelPlugin, TorchDynamoPlugin
from children import HELPERS, TORCHRUN, WITH_HELPERS, run_python
from safetensors.torch import load_file
from several_processes import CASES, COMPILED, GLOBAL_BATCH_SIZE, RESUMED_FROM, run, run_all
from training import distance, fresh_model, weights
from transformers import AutoModel

from modeling_flm import FLMModel, FMLMModel
from trainers.checkpoints import RAW_WEIGHTS
from trainers.sharding import sharded_by_blocks

LAYOUTS = ("whole", "sharded")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: tmp_path_factory.mktemp(name) for name in ("one", *LAYOUTS)}


@pytest.fixture(scope="module")
def one(folders) -> dict:
    return run_all(folders["one"], GLOBAL_BATCH_SIZE)


def run_several(processes: int, folder: Path, *arguments: str) -> dict:
    """What that many processes logged."""
    program = [HELPERS / "several_processes.py", folder, *arguments]
    run_python(*TORCHRUN, processes, *program, cwd=folder, PYTHONPATH=WITH_HELPERS, OMP_NUM_THREADS="1")
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def two(folders) -> dict[str, dict]:
    """By layout, what two processes logged."""
    return {layout: run_several(2, folders[layout], layout) for layout in LAYOUTS}


@pytest.mark.parametrize(
    "case, layout",
    [(case, layout) for case in CASES for layout in LAYOUTS if case not in COMPILED or layout == "whole"],
)
def test_two_processes_equal_one(folders, one, two, case, layout):
    single, double = one[case], two[layout][case]
    assert (single["processes"], double["processes"]) == (1, 2)
    assert double["sharded"] == (layout == "sharded")
    assert single["steps"] == double["steps"] == 4
    assert single["eval_loss"].keys() == ({"1", "2", "3", "4"} if "between" in case else {"2", "4"})
    assert bool(single["loss_diagonal"]) == ("objective" in CASES[case])
    for name in ("loss", "loss_diagonal", "loss_off_diagonal", "eval_loss", "eval_loss_tau_0.0_0.2"):
        assert double[name] == pytest.approx(single[name], rel=1e-5)
    assert double["grad_norm"] == pytest.approx(single["grad_norm"], rel=1e-4)
    a, b = (folders[name] / case for name in ("one", layout))
    assert sorted(path.name for path in a.iterdir()) == sorted(path.name for path in b.iterdir())
    assert (a / "config.json").read_text() == (b / "config.json").read_text()
    assert distance(*(weights(AutoModel.from_pretrained(folder)) for folder in (a, b))) < 1e-5
    assert distance(*(load_file(folder / f"checkpoint-{RESUMED_FROM}" / RAW_WEIGHTS) for folder in (a, b))) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_go_on_from_their_checkpoint(two, layout):
    assert two[layout]["resumed"] == two[layout]["plain"]


@pytest.mark.parametrize("layout, processes", [("whole", 1), ("sharded", 4)])
def test_another_number_of_processes_goes_on_from_a_checkpoint_of_two(folders, one, two, tmp_path, layout, processes):
    checkpoint = folders[layout] / "plain" / f"checkpoint-{RESUMED_FROM}"
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
    if processes == 1:
        resumed = json.loads(json.dumps(run(tmp_path, "plain", GLOBAL_BATCH_SIZE, str(checkpoint))))
    else:
        resumed = run_several(processes, tmp_path, layout, str(checkpoint))
    assert resumed["processes"] == processes and resumed["sharded"] == (layout == "sharded")
    assert resumed["loss"] == pytest.approx(one["plain"]["loss"], rel=1e-5)
    assert distance(*(weights(FLMModel.from_pretrained(f / "plain")) for f in (tmp_path, folders["one"]))) < 1e-5


def test_sharded_parameters_have_the_mixed_precision_of_whole_ones(folders, two):
    a, b = (two[layout]["bf16"] for layout in LAYOUTS)
    assert b["sharded"] and not a["sharded"]
    for name in ("loss", "eval_loss"):
        assert b[name] == pytest.approx(a[name], rel=1e-7)
        assert b[name] != two["sharded"]["averaged targets"][name]
    saved = (weights(FMLMModel.from_pretrained(folders[layout] / "bf16" / "averaged targets")) for layout in LAYOUTS)
    assert distance(*saved) < 1e-7


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_are_drawn_once(folders, one, two, layout):
    one_file, two_file = ((folders[name] / "plain" / "samples.jsonl").read_text() for name in ("one", layout))
    assert len(two_file.splitlines()) == 2
    assert one_file == two_file


@pytest.mark.parametrize(
    ("options", "backend", "message"),
    [
        ({"fsdp_version": 1}, "no", "`fsdp_version` is 1"),
        (
            {"fsdp_version": 2, "state_dict_type": "SHARDED_STATE_DICT"},
            "no",
            "`state_dict_type` is SHARDED_STATE_DICT",
        ),
        ({"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT"}, "aot_eager", "`torch_compile` is set"),
    ],
)
def test_parameters_are_not_sharded_otherwise(options, backend, message):
    plugins = {"fsdp_plugin": FullyShardedDataParallelPlugin(**options)}
    plugins["dynamo_plugin"] = TorchDynamoPlugin(backend=backend)
    accelerator = SimpleNamespace(state=SimpleNamespace(**plugins))
    with pytest.raises(ValueError, match=message), sharded_by_blocks(fresh_model(), accelerator):
        pass
