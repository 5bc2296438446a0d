"""`flm convert` and `flm export-official`: both forms of an official checkpoint, and every damage to one."""

import json
import shutil
import sys
from collections import OrderedDict
from types import ModuleType

import pytest
import torch
from huggingface_hub import ModelCard
from official import PARITY, about, official_model, record
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModel, PreTrainedTokenizerFast

from benchmarks.convert import converted
from benchmarks.timing import in_its_own_process
from command.main import main
from hub_cards.convert import convert, export_official, read_source
from hub_cards.official import convert_state_dict
from hub_cards.push import to_upload

NAMES = ["dit_flm", "dit_fmlm"]


def export(folder, name: str = "dit_flm"):
    """An official Hub export with the recorded weights."""
    folder.mkdir()
    shutil.copy(PARITY / f"{name}.safetensors", folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(about(name)["config"]))
    return folder


def parameters(name: str) -> dict[str, torch.Tensor]:
    """The recorded weights in the order in which the official network has them."""
    first = ("vocab_embed", "sigma_map.", "sigma_map_prime", "rotary_emb", "blocks", "output_layer", "learnable")
    weights = record(name)
    return {key: weights[key] for start in first for key in weights if key.startswith(start)}


def lightning(path, name: str = "dit_flm", **changes):
    """A Lightning checkpoint with the recorded weights as its moving average, and other raw ones."""
    weights = parameters(name)
    average = [tensor for key, tensor in weights.items() if key != "rotary_emb.inv_freq"]
    raw = OrderedDict(
        (f"backbone._orig_mod.{key}", tensor if "rotary" in key else tensor + 1) for key, tensor in weights.items()
    )
    raw["teacher_model.blocks.0.norm1.weight"] = torch.ones(64)
    checkpoint = {
        "state_dict": raw,
        "ema": {"decay": 0.9999, "num_updates": 10, "shadow_params": average},
        "hyper_parameters": {"config": about(name)["config"]},
        "global_step": 10,
    }
    torch.save(checkpoint | changes, path)
    return path


def logits_agree(model, name: str) -> None:
    io, exact = record(f"{name}_io"), official_model(name, 30.0)
    times = (io["in.tau"],) if name == "dit_flm" else (io["in.tau_s"], io["in.tau_t"])
    with torch.no_grad():
        found, expected = (m(None, m.embed_state(io["in.dense.x"]), None, *times).logits for m in (model, exact))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_hub_export(name, tmp_path, capsys):
    source = export(tmp_path / "official", name)
    assert main(["convert", str(source), "--output", str(tmp_path / "ours")]) == 0
    assert "loaded again and compared" in capsys.readouterr().out
    model = AutoModel.from_pretrained(tmp_path / "ours").eval()
    assert model.config.model_type == name.removeprefix("dit_") and model.config.final_logit_softcapping == 30
    logits_agree(model, name)
    # And back: the same tensors, and the same sizes.
    assert main(["export-official", str(tmp_path / "ours"), "--output", str(tmp_path / "back")]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "back"))
    assert before.keys() == after.keys()
    for key in before:
        torch.testing.assert_close(after[key], before[key], atol=1e-7 if "rotary" in key else 0, rtol=0)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "back"))
    assert new["vocab_size"] == old["vocab_size"]
    assert {key: old["model"][key] for key in new["model"]} == new["model"] | {"scale_by_sigma": True}


@pytest.mark.parametrize("name", NAMES)
def test_a_lightning_checkpoint(name, tmp_path):
    path = lightning(tmp_path / "last.ckpt", name)
    source = read_source(path)
    assert source.dropped == ["teacher_model.blocks.0.norm1.weight"]
    logits_agree(convert(source, tmp_path / "ours"), name)
    raw = read_source(path, averaged=False).weights
    assert all(torch.equal(raw[key], tensor + 1) for key, tensor in record(name).items() if "rotary" not in key)


def test_at_the_largest_published_size():
    """170 M parameters; the other sizes: `python -m benchmarks.convert`."""
    measured = in_its_own_process(converted, "FMLM-B-OWT")
    assert measured["millions of parameters"] == pytest.approx(169.7, abs=0.1)
    assert float(measured["largest difference of logits"]) < 1e-4
    assert measured["peak GiB"] < 2.8


def test_a_conversion_is_pushed_with_its_card(tmp_path, monkeypatch, capsys):
    """With the tokenizer that fits: the parity models have 37 tokens."""
    (tmp_path / "official").mkdir()
    export(tmp_path / "official" / "flm")
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({str(i): i for i in range(36)})), cls_token="9"
    )
    words.save_pretrained(tmp_path / "words")
    pushed = []
    monkeypatch.setattr(
        "hub_cards.push.push", lambda folder, name: pushed.append((to_upload(folder), name)) or "there"
    )
    command = ["convert", str(tmp_path / "official" / "flm"), "--output", str(tmp_path / "ours")]
    assert main([*command, "--push-to-hub", "org/flm"]) == 1
    assert "--push-to-hub goes with --tokenizer" in capsys.readouterr().err
    assert main([*command, "--push-to-hub", "org/flm", "--tokenizer", str(tmp_path / "words")]) == 0
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["bos_token_id"] == config["eos_token_id"] == 9  # the tokenizer, like BERT's, names neither
    ((files, name),) = pushed
    assert name == "org/flm" and {"README.md", "tokenizer.json", "pipeline_flm.py"} <= files.keys()
    card = ModelCard.load(tmp_path / "ours" / "README.md")
    assert "official checkpoint `flm`" in card.text and "logits at 30" in card.text
    assert card.data.base_model is None and "of the official equations on the official weights, within" in card.text


def test_a_source_on_the_hub_is_the_base_of_its_conversion(tmp_path):
    source = read_source(export(tmp_path / "official"))
    source.name = "david3684/FLM-B-LM1B"
    convert(source, tmp_path / "ours")
    assert ModelCard.load(tmp_path / "ours" / "README.md").data.base_model == "david3684/FLM-B-LM1B"


def test_logits_that_differ_are_noticed(tmp_path, monkeypatch):
    """As they would if two weights of one shape had changed places."""
    source = read_source(export(tmp_path / "official"))
    names = ("blocks.0.attn_out.weight", "blocks.1.attn_out.weight")
    taken = dict(zip(names, reversed([source.weights[name] for name in names]), strict=True))
    wrong = convert_state_dict(source.weights | taken)
    monkeypatch.setattr("hub_cards.convert.convert_state_dict", lambda weights: wrong)
    with pytest.raises(ValueError, match="has other logits than the source, by up to"):
        convert(source, tmp_path / "ours")


def test_the_first_published_version_has_no_cap(tmp_path):
    source = str(export(tmp_path / "official"))
    assert main(["convert", source, "--output", str(tmp_path / "v1"), "--final-logit-softcapping", "none"]) == 0
    assert AutoModel.from_pretrained(tmp_path / "v1").config.final_logit_softcapping is None


def test_a_configuration_object_is_read_without_its_code(tmp_path, monkeypatch):
    """As omegaconf pickles it: modules of that name exist when it is written, and not when it is read."""
    package, module = ModuleType("omegaconf"), ModuleType("omegaconf.dictconfig")

    class DictConfig:
        def __init__(self, content):
            self._content = content

    DictConfig.__module__, DictConfig.__qualname__ = "omegaconf.dictconfig", "DictConfig"
    module.DictConfig = DictConfig
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "omegaconf", package)
        patch.setitem(sys.modules, "omegaconf.dictconfig", module)
        config = about("dit_flm")["config"]
        held = DictConfig(config | {"model": DictConfig(config["model"])})
        path = lightning(tmp_path / "last.ckpt", hyper_parameters={"config": held})
    assert read_source(path).config["model"] == config["model"]


# -- damage -----------------------------------------------------------------------------------------------------------


class Attack:
    def __reduce__(self):
        return print, ("code has run",)


def damaged_weights(change):
    def damage(folder):
        path = export(folder) / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path)
        return folder

    return damage


def damaged_config(change):
    def damage(folder):
        path = export(folder) / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))
        return folder

    return damage


def truncated(folder):
    path = export(folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return folder


def no_json(folder):
    (export(folder) / "config.json").write_text('{"algo": ')
    return folder


def without_weights(folder):
    (export(folder) / "model.safetensors").unlink()
    return folder


def checkpoint(**changes):
    return lambda folder: lightning(folder.with_suffix(".ckpt"), **changes)


SHORT = {"shadow_params": [torch.zeros(1)]}
SWAPPED = {"shadow_params": [t for k, t in parameters("dit_flm").items() if "rotary" not in k][::-1]}
HALF_A_MAP = {k: v for k, v in record("dit_fmlm").items() if k.startswith("sigma_map_prime.mlp.0")}
DAMAGED = {
    "missing key": (damaged_weights(lambda w: w.pop("blocks.1.mlp.0.bias")), "blocks.1.mlp.0.bias is missing"),
    "missing table": (damaged_weights(lambda w: w.pop("vocab_embed.embedding")), "vocab_embed.embedding is missing"),
    "extra key": (damaged_weights(lambda w: w.update(more=torch.ones(1))), "'more' is not a weight of the official"),
    "extra block": (
        damaged_weights(lambda w: w.update({"blocks.7.norm1.weight": torch.ones(64)})),
        "blocks.7.norm1.weight is \\(64,\\), but .* none of that name",
    ),
    "half a flow map": (damaged_weights(lambda w: w.update(HALF_A_MAP)), "sigma_map_prime.mlp.2.bias is missing"),
    "wrong shape": (
        damaged_weights(lambda w: w.update({"blocks.0.norm1.weight": torch.ones(63)})),
        "blocks.0.norm1.weight is \\(63,\\), but .* \\(64,\\)",
    ),
    "not finite": (
        damaged_weights(lambda w: w["output_layer.linear.weight"].fill_(torch.nan)),
        "output_layer.linear.weight has entries that are not finite",
    ),
    "truncated": (truncated, "model.safetensors is damaged"),
    "configuration cut off": (no_json, "config.json is no JSON"),
    "no weights": (without_weights, "has no model.safetensors"),
    "wrong vocabulary": (damaged_config(lambda c: c.update(vocab_size=38)), "says vocab_size 38, .* have 37"),
    "no vocabulary": (damaged_config(lambda c: c.pop("vocab_size")), "has no vocab_size"),
    "other heads": (damaged_config(lambda c: c["model"].update(n_heads=8)), "says n_heads 8, .* have 4"),
    "other angles": (damaged_weights(lambda w: w["rotary_emb.inv_freq"].pow_(2)), "not those of the base 10,000"),
    "no heads": (damaged_config(lambda c: c["model"].pop("n_heads")), "has no n_heads"),
    "no such source": (lambda folder: folder / "nothing.ckpt", "is neither a folder"),
    "pickle with code": (checkpoint(callbacks=Attack()), "without running code"),
    "no checkpoint": (checkpoint(state_dict=None), "state_dict"),
    "average too short": (checkpoint(ema=SHORT), "has 1 tensors for 40 parameters"),
    "average in another order": (checkpoint(ema=SWAPPED), "in the place of vocab_embed.embedding"),
    "no average": (checkpoint(ema=None), "holds no moving average.*--raw"),
    "no configuration": (checkpoint(hyper_parameters={}), "has no vocab_size"),
}


@pytest.mark.parametrize("damage, message", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_source_is_refused_by_name(damage, message, tmp_path, capsys):
    source = damage(tmp_path / "source")
    with pytest.raises(ValueError, match=message):
        convert(read_source(source), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    assert "code has run" not in capsys.readouterr().out


@pytest.mark.parametrize("given", [["--raw"], ["--config", "official/config.json"]])
def test_what_is_for_a_checkpoint_is_refused_for_an_export(given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export(tmp_path / "official")
    assert main(["convert", "official", "--output", "ours", *given]) == 1
    assert "official is an export: --config and --raw are for a .ckpt file." in capsys.readouterr().err


def test_a_tokenizer_of_another_size_is_refused(tmp_path):
    source = read_source(export(tmp_path / "official"))
    with pytest.raises(ValueError, match="has 4096 tokens, but the model 37"):
        convert(source, tmp_path / "ours", tokenizer="examples/corpus/tokenizer")


def test_what_the_official_network_has_not_is_not_exported(tmp_path):
    model = official_model("dit_flm", 30.0)
    model.config.attn_logit_softcapping = None
    with pytest.raises(ValueError, match="caps attention scores at 50"):
        export_official(model, tmp_path)
    model = official_model("dit_flm", 20.0)
    with pytest.raises(ValueError, match="caps logits at 30.*`final_logit_softcapping` is 20.0"):
        export_official(model, tmp_path)
    model = official_model("dit_flm", 30.0)
    model.config.rope_theta = 500.0
    with pytest.raises(ValueError, match="`rope_theta` 10,000, but here it is 500.0"):
        export_official(model, tmp_path)
    with pytest.raises(ValueError, match="the official network has no weight loop_gates.0.weight"):
        export_official(tiny_model(num_loops=2), tmp_path)
    with pytest.raises(ValueError, match="the model is a masked diffusion model, no flow"):
        export_official(tiny_model(masked_diffusion=True), tmp_path)
