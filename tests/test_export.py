"""`flm export`: the graph writes what `model.generate` writes, runs without torch, and says what it is."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.numpy_helper import to_array
from tiny import tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from benchmarks.results import HUB, ROOT
from command.main import main
from examples import onnx_generate
from examples.onnx_generate import FlowMap, step_seed, white_noise
from examples.sudoku.puzzles import unique_puzzles
from hub_cards.export import _before, _cast_to, _converted, export, load_map, step_table
from modeling_flm.generation_flm import prompt_ids
from modeling_flm.noise_flm import step_seeds
from modeling_flm.noise_flm import white_noise as torch_noise

MAPS = ("fmlm-shidoku", "fmlm-sudoku", "fmlm-english-small")
SEEDS = [3, 4, 2**40 + 5]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in MAPS}
    for name, folder in folders.items():
        export(HUB / name, folder)
    return folders


@pytest.mark.parametrize("name", MAPS)
def test_the_same_seeds_give_the_same_ids(name, exported):
    model, flow_map = AutoModel.from_pretrained(HUB / name).eval(), FlowMap(exported[name], threads=1)
    for gamma in (0.0, 0.8):
        flow_map.steps = {str(n): step_table(model, n, gamma) for n in (1, 2, 4)}  # the graph is the same
        for steps in (1, 2, 4):
            ids = model.generate(num_steps=steps, gamma=gamma, num_return_sequences=3, seed=SEEDS)
            assert (flow_map.generate(SEEDS, steps) == ids.numpy()).all()
    prompt, given = ids[0, :9], torch.arange(9) % 3 != 1
    told = {"conditioning_mask": given[None], "num_return_sequences": 3, "seed": SEEDS, "max_length": 12}
    for steps in (1, 2):
        wanted = model.generate(prompt[None], num_steps=steps, gamma=0.8, **told).numpy()
        assert (flow_map.generate(SEEDS, steps, prompt.numpy(), given.numpy(), length=12) == wanted).all()


def test_refinements_are_those_of_generate(exported):
    """With gamma 1 the steps draw noise, too: refinements go on in the same sequence of draws."""
    model = AutoModel.from_pretrained(HUB / "fmlm-sudoku").eval()
    flow_map = FlowMap(exported["fmlm-sudoku"], threads=1)
    # Of 49 cells to write, 3/7 are 21 in float32, but a little more in float64.
    for clues, steps, gamma, refinements in ((36, 1, 0.0, 7), (36, 2, 1.0, 3), (32, 1, 0.0, 7)):
        puzzle = torch.from_numpy(unique_puzzles(clues, 1, 0))
        given = puzzle[0].numpy() > 0
        settings = dict(num_steps=steps, gamma=gamma, refine_steps=refinements)
        wanted = model.generate(puzzle, num_return_sequences=3, seed=SEEDS, **settings).numpy()
        flow_map.steps = {str(steps): step_table(model, steps, gamma)}
        written = flow_map.generate(SEEDS, steps, puzzle[0].numpy(), given, refine_steps=refinements)
        assert (written == wanted).all()


def test_what_the_file_says_of_itself(exported):
    about = FlowMap(exported["fmlm-english-small"], threads=1).about
    assert about["license"] == "apache-2.0" and about["source"] == "fmlm-english-small"
    assert len(about["source_sha256"]) == 64 and about["vocab_size"] == "4096" and about["gamma"] == "0.0"
    assert json.loads(about["steps"]).keys() == {"1", "2", "4"}
    names = {path.name for path in exported["fmlm-english-small"].iterdir()}
    assert names >= {"model.onnx", "config.json", "generation_config.json", "tokenizer.json"}


def test_what_only_the_tokenizer_knows_goes_with_the_graph(tmp_path):
    """The ids of blank and BOS, which a model of the plain Trainer lacks; but no padding of an earlier call."""
    tokenizer = AutoTokenizer.from_pretrained(HUB / "fmlm-english-small")
    tokenizer("Once upon", padding="max_length", max_length=20, truncation=True)
    tokenizer.save_pretrained(tmp_path / "model")
    tiny_model("fmlm", vocab_size=4096).save_pretrained(tmp_path / "model")
    about = FlowMap(export(tmp_path / "model", tmp_path / "out").parent, threads=1).about
    assert about["mask_token_id"] == str(tokenizer.mask_token_id)
    assert about["bos_token_id"] == str(tokenizer.bos_token_id)
    plain = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert plain.encode("Once upon").ids == tokenizer("Once upon").input_ids


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype, share", [("float16", 0.97), ("int8", 0.5)])
def test_other_precisions(name, dtype, share, exported, tmp_path):
    """Of one step: int8 rounds enough to change some of the tokens. Of several loops, too, all matrices are int8."""
    source = exported[name]
    shutil.copy(source / "tokenizer.json", tmp_path)
    onnx.save(_converted(onnx.load(source / "model.onnx"), dtype), tmp_path / "model.onnx")
    weights = onnx.load(tmp_path / "model.onnx").graph.initializer
    matrices = [x for x in weights if len(x.dims) == 2 and min(x.dims) >= 32]
    assert matrices and not [x.name for x in matrices if x.data_type == onnx.TensorProto.FLOAT]
    same = FlowMap(tmp_path, 1).generate(SEEDS) == FlowMap(source, 1).generate(SEEDS)
    print(name, dtype, same.mean())
    assert share <= same.mean()


def test_angles_stay_in_float32(exported):
    """Rounded to float16, the angle of place 1,000 would be wrong by up to a quarter."""
    graph = _converted(onnx.load(exported["fmlm-english-small"] / "model.onnx"), "float16").graph
    kept = _before(graph, ("Cos", "Sin"))
    assert {"Cos", "Sin", "Range", "Mul"} <= {node.op_type for node in kept}
    used = {name for node in kept for name in node.input}
    assert "step" in used
    rounded = [weight for weight in graph.initializer if weight.data_type == onnx.TensorProto.FLOAT16]
    assert {float(to_array(weight)) for weight in rounded if weight.name in used} == {0, 1}  # of the places, exactly
    assert onnx.TensorProto.FLOAT16 not in {_cast_to(node) for node in kept if node.op_type == "Cast"}


def test_the_noise_is_torchs():
    for length, width in ((4, 4), (16, 5), (81, 11), (128, 193), (7, 9)):
        for seed in (0, 77, 2**40 + 5, 2**64 - 1):
            ours, theirs = white_noise(seed, length, width), torch_noise([seed], length, width, torch.device("cpu"))[0]
            np.testing.assert_allclose(ours, theirs[0].numpy(), rtol=0, atol=2e-6)
    assert [step_seed(seed, 3) for seed in SEEDS] == step_seeds(SEEDS, 3)
    with pytest.raises(ValueError, match="fewer than 16 numbers"):
        white_noise(0, 3, 5)


def test_text_without_torch(exported, tmp_path):
    script = (
        "import sys; sys.argv = ['onnx_generate.py', *sys.argv[1:]]; sys.path.insert(0, sys.argv.pop(1)); "
        "import onnx_generate; onnx_generate.main(); "
        "assert not {'torch', 'transformers', 'onnx'} & sys.modules.keys()"
    )
    arguments = [ROOT / "examples", exported["fmlm-english-small"], "--prompt", "In the beginning", "--count", "2"]
    command = [sys.executable, "-P", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("In the beginning") == 2 and "256 tokens in " in done.stdout


def test_mistakes_of_who_runs_it(exported):
    flow_map = FlowMap(exported["fmlm-shidoku"], threads=1)
    with pytest.raises(ValueError, match="exported were 1, 2, 4 steps, not 3 .flm export --num-steps"):
        flow_map.generate([0], 3)
    with pytest.raises(ValueError, match=r"`length` is 17, but must lie in \[1, 16\]"):
        flow_map.generate([0], length=17)
    with pytest.raises(ValueError, match="the prompt has 17 ids, but a sequence has 16"):
        flow_map.generate([0], input_ids=np.ones(17, np.int64))
    with pytest.raises(ValueError, match="`seeds` are none"):
        flow_map.generate([])


def test_a_prompt_is_that_of_generate_whatever_the_tokenizer_adds(tmp_path, monkeypatch, capsys):
    """A tokenizer like BERT's puts an end behind each text, one like GPT-2's nothing before it."""
    words = {word: i for i, word in enumerate(["[CLS]", "[SEP]", "[MASK]", "[PAD]", "the", "king", "said", "so"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="so"))
    tokenizer.pre_tokenizer = Whitespace()
    for post in (None, TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)])):
        if post is not None:
            tokenizer.post_processor = post
        folder = tmp_path / ("plain" if post is None else "bert")
        special = dict(bos_token="[CLS]", eos_token="[SEP]", mask_token="[MASK]", pad_token="[PAD]")
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
        model = tiny_model("fmlm", vocab_size=len(words), bos_token_id=0, mask_token_id=2, max_position_embeddings=8)
        model.save_pretrained(folder)
        fast.save_pretrained(folder)
        export(folder, tmp_path / "out", num_steps=[2])
        monkeypatch.setattr(
            "sys.argv", ["onnx_generate.py", str(tmp_path / "out"), *"--num-steps 2 --prompt".split(), "the king"]
        )
        onnx_generate.main()
        wanted = fast.decode(
            model.generate(prompt_ids("the king", fast), num_steps=2, seed=0)[0], skip_special_tokens=True
        )
        assert capsys.readouterr().out.startswith(wanted.strip() + "\n")


def damaged(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def foreign(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "gpt2"}')


def writing(**settings) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "generation_config.json").read_text())
        (folder / "generation_config.json").write_text(json.dumps(config | settings))

    return change


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("flm", None, "is a flow (FLM), which does not write in one step: distil it, and export its map."),
        ("fmlm", damaged, "model.safetensors is damaged"),
        ("fmlm", foreign, "is a model of type gpt2, not a flow language model."),
        (
            "fmlm",
            writing(guidance_scale=2.0, refine_steps=1),
            "with guidance_scale, refine_steps (generation_config.json), which cannot be exported",
        ),
        (
            "fmlm",
            writing(pad_after_eos=True, eos_token_id=3, pad_token_id=5, max_length=8),
            "with max_length, pad_after_eos (generation_config.json), which cannot be exported",
        ),
    ],
)
def test_what_cannot_be_exported_is_named(kind, change, message, tmp_path, capsys):
    folder = tmp_path / "model"
    tiny_model(kind).save_pretrained(folder)
    if change:
        change(folder)
    assert main(["export", str(folder), "--output", str(tmp_path / "out")]) == 1
    [line] = (line for line in capsys.readouterr().err.splitlines() if line.startswith("flm: "))
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_steps": []}, "`num_steps` must be numbers >= 1, but are []"),
        ({"num_steps": [0, 1]}, "`num_steps` must be numbers >= 1"),
        ({"gamma": 1.5}, "`gamma` must be a number in [0, 1], but is 1.5"),
        ({"dtype": "int4"}, "`dtype` must be one of float32, float16, int8, but is 'int4'"),
    ],
)
def test_bad_settings(settings, message, tmp_path):
    with pytest.raises(ValueError) as error:
        export(HUB / "fmlm-shidoku", tmp_path, **settings)
    assert message in str(error.value)


def test_no_folder_and_no_configuration(tmp_path, capsys):
    assert main(["export", "./nowhere", "--output", str(tmp_path)]) == 1
    assert "there is no file or folder ./nowhere" in capsys.readouterr().err
    with pytest.raises(ValueError, match="has no config.json: it is no model folder"):
        load_map(tmp_path)
    tiny_model("fmlm").save_pretrained(tmp_path / "bare")
    assert main(["export", str(tmp_path / "bare"), "--output", str(tmp_path / "out")]) == 1
    assert "has no tokenizer, which goes with a graph" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_broken_graph_is_refused_by_onnxruntime(exported, tmp_path):
    (tmp_path / "model.onnx").write_bytes((exported["fmlm-shidoku"] / "model.onnx").read_bytes()[:10_000])
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf):
        FlowMap(tmp_path)
