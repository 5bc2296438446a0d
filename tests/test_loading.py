"""Saved models load as they were: far from this package, in every way the Auto classes offer, after a failed save."""

import ast
import copy
import json
import math
import os
import pickle
import resource
import sys
from pathlib import Path

import pytest
import torch
import transformers
from children import HELPERS, run_python
from fresh_process import AUTO_CLASSES, examine
from tiny import random_ids, randomise, tiny_config, tiny_model
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, GenerationConfig

import modeling_flm
from modeling_flm import FLMConfig, FLMModel, FlowGenerationConfig, FMLMConfig, FMLMModel
from modeling_flm.clock_flm import Clock

PACKAGE = Path(modeling_flm.__file__).parent
TYPES = ("flm", "fmlm")
CLASSES = {"flm": (FLMConfig, FLMModel), "fmlm": (FMLMConfig, FMLMModel)}


def eight_step_model(model_type: str) -> FLMModel:
    model = tiny_model(model_type, bos_token_id=1, mask_token_id=60)
    model.generation_config.num_steps = 8
    return model


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# -- in a fresh process -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def far_away(tmp_path_factory) -> dict[str, dict]:
    """What `fresh_process.py` found in models saved here."""
    home = tmp_path_factory.mktemp("far_away")
    for name in TYPES:
        eight_step_model(name).save_pretrained(home / "models" / name)
    command = ["-I", HELPERS / "fresh_process.py", home / "models", home / "results", torch.get_num_threads()]
    run_python(*command, cwd=home, HF_HOME=str(home / "hf"))
    return torch.load(home / "results", weights_only=True)


@pytest.mark.parametrize(
    "case", [*AUTO_CLASSES, "device_map=auto", "device_map=cpu", *(f"again {a}" for a in AUTO_CLASSES)]
)
@pytest.mark.parametrize("name", TYPES)
def test_far_from_the_package_a_model_is_the_same(far_away, name, case):
    found, here = far_away[f"{name} {case}"], examine(eight_step_model(name))
    assert found["module"] == "transformers_modules"
    for key, value in here.items():
        same = torch.equal(found[key], value) if isinstance(value, torch.Tensor) else found[key] == value
        assert same, key
    assert here["num_steps"] == 8 and here["can_generate"]


@pytest.mark.parametrize("name", TYPES)
def test_far_from_the_package_bfloat16_is_that_of_the_class(far_away, name, tmp_path):
    eight_step_model(name).save_pretrained(tmp_path)
    model = CLASSES[name][1].from_pretrained(tmp_path, dtype=torch.bfloat16)
    found, here = far_away[f"{name} bfloat16"], examine(model)
    for key in ("token_losses", "times", "samples", "clock"):
        assert torch.equal(found[key], here[key]), key
    assert found["dtype"] == "torch.bfloat16"


def test_far_from_the_package_a_model_is_guided_by_one_of_another_repository(far_away):
    flow, flow_map = (eight_step_model(name) for name in TYPES)
    here = flow_map.generate(sampler="euler", guidance_scale=2.0, guidance_model=flow, seed=5)
    assert torch.equal(far_away["guidance"]["samples"], here)


def test_loading_leaves_no_weight_out_and_none_over(far_away):
    cases = {case: found["loading"] for case, found in far_away.items() if "loading" in found}
    assert len(cases) == 14 and not [case for case, loading in cases.items() if any(loading.values())]


@pytest.mark.parametrize("name", TYPES)
def test_a_config_saved_again_is_the_same(far_away, name):
    found, config = far_away[f"{name} AutoConfig"], eight_step_model(name).config
    assert found["class"] == CLASSES[name][0].__name__
    assert all(found["values"][field] == getattr(config, field) for field in FLMConfig.__annotations__)
    assert set(found["values"]["auto_map"]) == {"AutoConfig", *AUTO_CLASSES}


# -- what travels with a model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.name)
def test_the_code_imports_nothing_that_does_not_travel_with_it(path):
    ours = {file.stem for file in PACKAGE.glob("*.py")}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module in ours, f"line {node.lineno}: write `from .file import name`"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                top = name.split(".")[0]
                assert top in {"torch", "transformers", "numpy"} or top in sys.stdlib_module_names, name


@pytest.mark.parametrize("auto", AUTO_CLASSES)
@pytest.mark.parametrize("name", TYPES)
def test_the_installed_package_needs_no_remote_code(name, auto, tmp_path):
    config_class, model_class = CLASSES[name]
    tiny_model(name).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is config_class
    assert type(AutoConfig.for_model(name)) is config_class
    assert type(getattr(transformers, auto).from_pretrained(tmp_path)) is model_class
    assert type(getattr(transformers, auto).from_config(tiny_config(name))) is model_class


def test_an_fmlm_that_starts_from_the_files_of_an_flm_is_an_fmlm(tmp_path):
    flm, given = tiny_model(), {"input_ids": random_ids(2, 12), "timesteps": torch.tensor([0.1, 0.6])}
    flm.save_pretrained(tmp_path / "flm")
    fmlm, loading = FMLMModel.from_pretrained(tmp_path / "flm", output_loading_info=True)
    assert all(key.startswith("target_time_embedding.") for key in loading["missing_keys"])
    assert not loading["unexpected_keys"]
    assert torch.equal(fmlm(**given, target_timesteps=torch.tensor([0.9, 0.7])).logits, flm(**given).logits)
    asked = dict(num_steps=1, num_return_sequences=8, seed=0)
    assert torch.equal(fmlm.generate(**asked), fmlm.generate(**asked, sampler="flow_map"))
    assert (fmlm.generation_config.sampler, fmlm.generation_config.num_steps) == ("flow_map", 1)

    fmlm.save_pretrained(tmp_path / "fmlm")
    config = AutoConfig.from_pretrained(tmp_path / "fmlm")
    assert type(config) is FMLMConfig and config.model_type == "fmlm"
    assert {config.auto_map[auto] for auto in AUTO_CLASSES} == {"modeling_flm.FMLMModel"}


@pytest.mark.parametrize("entry", ["org/code--modeling_flm.FLMModel", "modeling_mine.MyModel"])
def test_an_auto_map_that_points_elsewhere_is_kept(entry):
    config = tiny_config(auto_map={"AutoModel": entry})
    assert config.auto_map["AutoModel"] == entry
    assert config.auto_map["AutoModelForCausalLM"] == "modeling_flm.FLMModel"


@pytest.mark.parametrize("name", TYPES)
def test_no_model_says_that_it_predicts_masked_tokens(name, tmp_path):
    """Earlier versions did; what they saved still loads, and no longer says so."""
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"]["AutoModelForMaskedLM"] = config["auto_map"]["AutoModel"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(again.generate(num_steps=2, seed=0), model.generate(num_steps=2, seed=0))
    again.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert set(saved["auto_map"]) == {"AutoConfig", *AUTO_CLASSES}
    with pytest.raises(ValueError, match="for this kind of AutoModel: AutoModelForMaskedLM"):
        AutoModelForMaskedLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert tiny_config(auto_map={"AutoModelForMaskedLM": "own.Mine"}).auto_map["AutoModelForMaskedLM"] == "own.Mine"


# -- generation_config.json -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, num_steps, sampler", [("flm", 64, "euler"), ("fmlm", 1, "flow_map")])
def test_without_generation_config_the_type_decides(name, num_steps, sampler, tmp_path):
    eight_step_model(name).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = AutoModel.from_pretrained(tmp_path).generation_config
    assert (config.num_steps, config.sampler) == (num_steps, sampler)


def test_a_generation_config_loads_by_itself_and_another_can_be_given_on_loading(tmp_path):
    eight_step_model("fmlm").save_pretrained(tmp_path)
    config = FlowGenerationConfig.from_pretrained(tmp_path)
    assert (config.num_steps, config.sampler, config.bos_token_id) == (8, "flow_map", 1)
    for given in (GenerationConfig(max_length=7), FlowGenerationConfig(max_length=7)):
        model = AutoModel.from_pretrained(tmp_path, generation_config=given)
        assert isinstance(model.generation_config, FlowGenerationConfig)
        output = model.generate(return_dict_in_generate=True)
        assert output.sequences.shape == (1, 7) and output.num_function_evaluations == 1


def test_a_damaged_generation_config_is_an_error(tmp_path):
    eight_step_model("fmlm").save_pretrained(tmp_path)
    whole = (tmp_path / "generation_config.json").read_bytes()
    for damaged in (whole[:-5], b"\xff" + whole):
        (tmp_path / "generation_config.json").write_bytes(damaged)
        with pytest.raises(ValueError, match="generation_config.json of .* is damaged"):
            AutoModel.from_pretrained(tmp_path)


def test_a_bad_generation_config_is_not_saved(tmp_path):
    model = tiny_model()
    model.generation_config.num_steps = 0
    with pytest.raises(ValueError, match="num_steps"):
        model.save_pretrained(tmp_path)
    assert not files(tmp_path)
    model.generation_config = FlowGenerationConfig(pad_after_eos=True)  # whose ids are those of the tokenizer
    model.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).generation_config.pad_after_eos


def test_a_save_of_many_processes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`distributed_checkpoint` is not supported"):
        tiny_model().save_pretrained(tmp_path, distributed_checkpoint=True)


# -- saving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [20_000, 60_000], ids=["in the code", "in the weights"])
def test_a_save_that_runs_out_of_space_leaves_the_old_model(limit, tmp_path):
    """A limit on the size of a file stands for a full disk: writing fails half-way, and Python sees an error."""
    old, new = tiny_model(), tiny_model(weights_seed=1, rope_theta=5.0)
    old.save_pretrained(tmp_path)
    before = files(tmp_path)
    assert len(before["modeling_flm.py"]) > 20_000 and len(before["model.safetensors"]) > 60_000
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    try:
        with pytest.raises(Exception, match="File too large"):
            new.save_pretrained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert files(tmp_path) == before and not [path for path in tmp_path.iterdir() if path.is_dir()]
    new.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).rope_theta == 5.0


@pytest.mark.parametrize("first, second", [("50GB", "40KB"), ("40KB", "50GB"), ("40KB", "60KB")])
def test_a_save_replaces_the_weights_whatever_the_shards(first, second, tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size=first)
    new = tiny_model(weights_seed=1)
    new.save_pretrained(tmp_path, max_shard_size=second)
    loaded = AutoModel.from_pretrained(tmp_path).state_dict()
    for name, weight in new.state_dict().items():
        assert torch.equal(loaded[name], weight), name
    new.save_pretrained(tmp_path / "alone", max_shard_size=second)
    assert {path.name for path in tmp_path.iterdir()} == {"alone", *files(tmp_path / "alone")}


def test_a_variant_is_saved_beside_the_weights(tmp_path):
    plain, variant = tiny_model(), tiny_model(weights_seed=1)
    plain.save_pretrained(tmp_path)
    variant.save_pretrained(tmp_path, variant="raw")
    for model, options in ((plain, {}), (variant, {"variant": "raw"})):
        loaded = AutoModel.from_pretrained(tmp_path, **options)
        assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_loss_weighting_is_saved(tmp_path):
    model = tiny_model()
    model.add_loss_weighting()
    randomise(model).save_pretrained(tmp_path)
    loaded, loading = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    tau = torch.linspace(0, 1, 5)
    assert torch.equal(loaded.loss_weighting(tau), model.loss_weighting(tau)) and loaded.loss_weighting(tau).std() > 0


# -- the clock --------------------------------------------------------------------------------------------------------


def from_meta(model: FLMModel, _) -> FLMModel:
    with torch.device("meta"):
        empty = FLMModel(model.config)
    empty.to_empty(device="cpu").init_weights()
    assert empty(labels=random_ids(1, 12)).loss.item() == pytest.approx(math.log(61), rel=1e-6)
    return empty


def reloaded(model: FLMModel, directory: Path, **options) -> FLMModel:
    model.save_pretrained(directory)
    return AutoModel.from_pretrained(directory, **options)


TRANSFERS = {
    "from_pretrained": reloaded,
    "dtype=bfloat16": lambda model, directory: reloaded(model, directory, dtype=torch.bfloat16),
    "to(bfloat16)": lambda model, _: model.to(torch.bfloat16),
    "half()": lambda model, _: model.half(),
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "meta": from_meta,
}


def read(clock: Clock, times: torch.Tensor) -> torch.Tensor:
    return torch.stack([clock.t(times), clock.tau(times), clock.dtau_dt(times)])


@pytest.mark.parametrize("transfer", TRANSFERS.values(), ids=TRANSFERS)
def test_no_transfer_of_a_model_touches_its_clock(transfer, tmp_path):
    moved, times = transfer(tiny_model(), tmp_path), torch.linspace(0, 1, 1001)
    assert torch.equal(read(moved.clock, times), read(Clock(61), times))


def test_the_clock_compiles_into_one_graph():
    model, times = tiny_model(), torch.linspace(0, 1, 101)
    compiled = torch.compile(lambda tau: read(model.clock, tau), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(times), read(model.clock, times), rtol=0, atol=1e-7)


def truncated(folder):
    os.truncate(folder / "model.safetensors", 1000)


def pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.bias": torch.zeros(61)}, folder / "pytorch_model.bin")


def mistyped(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))


@pytest.mark.parametrize(
    "damage, kind, message",
    [
        (truncated, ValueError, "the weights of .*m are damaged .*: download or write them again"),
        (pickled, OSError, "model.safetensors"),
        (mistyped, ValueError, "`hidden_size` is 'wide', but it must be an integer >= 1"),
    ],
)
def test_what_was_tampered_with_is_refused(damage, kind, message, tmp_path):
    tiny_model().save_pretrained(tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(kind, match=message):
        AutoModel.from_pretrained(tmp_path / "m")


def test_neither_pickled_weights_nor_a_flow_map_is_loaded_as_a_flow(tmp_path):
    with pytest.raises(ValueError, match="pickled weights are not read"):
        AutoModel.from_pretrained(tmp_path, config=tiny_model().config, use_safetensors=False)
    tiny_model("fmlm").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a flow map .FMLM., and FLMModel is no class for it: use AutoModel"):
        FLMModel.from_pretrained(tmp_path)
    model, info = FMLMModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, FMLMModel) and not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.parametrize("room", ["modeling_flm", "flm_data", "trainers", "evaluation", "hub_cards", "command"])
def test_nothing_runs_what_it_reads(room):
    """No pickle, eval or exec; torch.load, where a checkpoint of others is converted, of plain data alone."""
    for path in PACKAGE.with_name(room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None)]
                assert not {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"} & set(names), path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile", "torch.save"), f"{path}: {called}"
                safe = any(key.arg == "weights_only" and ast.unparse(key.value) == "True" for key in node.keywords)
                assert called != "torch.load" or safe, path
