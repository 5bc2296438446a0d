"""`flm evaluate`: every kind of writer, controls, frontier and files, on the shipped corpus in miniature."""

import json
import math
import re
import sys

import numpy as np
import pytest
import torch
from datasets import load_dataset
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    MambaConfig,
    MambaForCausalLM,
)

from benchmarks.baselines import mdlm
from benchmarks.results import BASELINES, CORPUS, HUB, ROOT
from command.main import main
from evaluation import report
from evaluation.compare import compare
from evaluation.controls import controls
from evaluation.frontier import Point
from evaluation.judges import Judge
from evaluation.masked import sample_masked
from evaluation.mauve import mauve_score
from evaluation.measures import _known, frontiers
from evaluation.ngram import KneserNey
from evaluation.samples import Common, Samples, packed
from evaluation.writers import Sweep, open_writer
from flm_data.paths import weights_sha256

SCORER = BASELINES / "ar-english-small"
MAP, MASKED = HUB / "fmlm-english-small", BASELINES / "mdlm-english-small"
COUNT = 16  # samples, of each of two seeds


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a reference, a training text and samples made elsewhere."""
    folder = tmp_path_factory.mktemp("evaluation")
    for name, split, some in (("real", "test", 100), ("training", "train", 300)):
        texts = load_dataset("parquet", data_files=str(CORPUS / f"{split}.parquet"), split=f"train[:{some}]")
        texts.to_parquet(folder / f"{name}.parquet")
    lines = [f"And he said unto him number {i}, Go thy way" if i != 3 else " " for i in range(2 * COUNT)]
    (folder / "samples.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def outcome(project):
    """What the command writes of models that share a tokenizer: the folder."""
    models = f"{MAP} --against {HUB / 'flm-english-small'} {MASKED} {SCORER} --scorer {SCORER} --scorer kneser-ney"
    texts = f"--reference {project / 'real.parquet'} --training-text {project / 'training.parquet'}"
    settings = f"--num-samples {COUNT} --seeds 0,5 --num-steps 1,3 --temperature 0.6,1.0 --gamma 0,1 --length 32"
    assert main(f"evaluate {models} {texts} {settings} --output {project / 'out'}".split()) == 0
    return project / "out"


@pytest.fixture(scope="module")
def result(outcome):
    return json.loads((outcome / "evaluation.json").read_text())


def of(result: dict, model: str, **settings) -> dict:
    [row] = [r for r in result["rows"] if r["model"] == model and settings.items() <= r["settings"].items()]
    return {name: value["mean"] for name, value in row["metrics"].items()} | {"row": row}


def test_the_files_are_of_one_another(outcome, result):
    text = (outcome / "evaluation.md").read_text()
    assert text == report.markdown(result) and (outcome / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    assert text.splitlines()[3].startswith("flm evaluate ") and "not reached" in text
    assert "ar-english-small is a scorer too: its own perplexity there is a reference, no result." in text


def test_the_protocol_is_whole(result):
    protocol = result["protocol"]
    assert [model["kind"] for model in protocol["models"]] == ["flow", "flow", "masked", "causal"]
    for described in (*protocol["models"], protocol["scorers"][0]):
        assert len(described["weights_sha256"]) == 64 and described["dtype"] == "float32"
    assert protocol["models"][3]["weights_sha256"] == protocol["scorers"][0]["weights_sha256"]
    assert protocol["scorers"][0]["input"] == "ids, as they are" and protocol["scorers"][1]["order"] == 4
    assert protocol["seeds"] == [0, 5] and protocol["length"] == 32 and protocol["num_samples"] == COUNT
    assert {"python", "torch", "transformers", "sacrebleu", "mauve-text"} <= protocol["versions"].keys()
    assert len(protocol["reference"]["sha256"]) == 64 and protocol["training_text"]["rows"] > 100


def test_rows_have_every_sample_its_evaluations_and_intervals(result):
    assert len(result["rows"]) == 8 + (1 + 2 + 4) + (2 + 4) + 4 + 2
    names, scores = set(result["rows"][0]["metrics"]), {"gppl ar-english-small", "gppl kneser-ney", "entropy", "mauve"}
    assert names >= {*scores, "self-BLEU", "memorised 8", "known words", "known pairs"}
    for row in result["rows"]:
        assert row["samples"] == 2 * COUNT and len(row["texts"]) == 2 and set(row["metrics"]) == names
        for value in row["metrics"].values():
            assert math.isfinite(value["mean"])
            if value["interval"] is not None:
                assert value["interval"][0] - 1e-9 <= value["mean"] <= value["interval"][1] + 1e-9
    assert of(result, "fmlm-english-small", sampler="flow_map", num_steps=3, gamma=1.0)["row"]["evaluations"] == 3
    assert of(result, "ar-english-small", temperature=1.0)["row"]["evaluations"] == 31


def test_controls_rank_as_they_should(result):
    """Each trick has a good figure, and another figure that gives it away."""
    real, shuffled = of(result, "held-out text"), of(result, "held-out text, shuffled within rows")
    assert shuffled["entropy"] == pytest.approx(real["entropy"]) and shuffled["pool entropy"] == real["pool entropy"]
    frequent, loops = of(result, "tokens drawn by frequency"), of(result, "loops of 8 tokens")
    repeated, copies = of(result, "one held-out text, repeated"), of(result, "copies of training text")
    patchwork = of(result, "patchwork of 8 training tokens")
    for scorer in ("gppl ar-english-small", "gppl kneser-ney"):
        for scrambled in (shuffled, frequent, of(result, "held-out text, shuffled across rows")):
            assert scrambled[scorer] > 5 * real[scorer]
    assert copies["gppl kneser-ney"] < patchwork["gppl kneser-ney"] < real["gppl kneser-ney"]
    assert copies["memorised 8"] == 1 and copies["longest run"] == 30
    assert real["memorised 8"] < 0.05 < patchwork["memorised 8"] < 1 and patchwork["longest run"] >= 8
    assert copies["known words"] == 1 and copies["known pairs"] > 0.95  # a row may hold the ends of two documents
    assert frequent["known words"] < real["known words"] - 0.1 < 0.9
    assert shuffled["known pairs"] < real["known pairs"] - 0.2 < 0.8
    assert loops["gppl ar-english-small"] < shuffled["gppl ar-english-small"] / 5
    assert loops["entropy"] < real["entropy"] - 0.5 and loops["repetition 4"] > 0.6 > real["repetition 4"]
    assert repeated["self-BLEU"] == pytest.approx(1) and real["self-BLEU"] < 0.3
    assert repeated["pool entropy"] < real["pool entropy"] - 1 and repeated["mauve"] < real["mauve"]


def test_the_frontier_is_that_of_the_rows(result):
    entropy = result["protocol"]["reference"]["entropy"]
    sweeps = {(e["model"], e["varied"], tuple(e["settings"].items()), e["metric"]) for e in result["frontier"]}
    assert len(sweeps) == len(result["frontier"]) == 2 * (3 + 3 + 2 + 1)
    for entry in result["frontier"]:
        settings = ({**entry["settings"], entry["varied"]: value} for value in entry["values"])
        low, high = (of(result, entry["model"], **varied) for varied in settings)
        if entry["perplexity"] is None:
            assert entropy < min(entry["entropies"]) or entropy > max(entry["entropies"])
            continue
        share = (entropy - low["entropy"]) / (high["entropy"] - low["entropy"])
        expected = low[entry["metric"]] ** (1 - share) * high[entry["metric"]] ** share
        assert entry["perplexity"] == pytest.approx(expected)
        assert entry["interval"][0] < entry["perplexity"] < entry["interval"][1] and entry["reached"] > 0.3


def test_figures_are_those_of_the_functions_on_the_samples(project, result):
    model = open_writer(str(MAP))
    written = model.write({"sampler": "flow_map", "num_steps": 3, "gamma": 1.0}, COUNT, [0, 5], 32)
    row = of(result, "fmlm-english-small", sampler="flow_map", num_steps=3, gamma=1.0)
    assert row["row"]["texts"] == written.texts[:2]
    scorer = GPT2LMHeadModel.from_pretrained(SCORER).eval()
    ids = torch.tensor(written.ids)
    with torch.no_grad():
        assert row["gppl ar-english-small"] == pytest.approx(math.exp(scorer(ids, labels=ids).loss), rel=1e-4)
    training = packed(str(project / "training.parquet"), model.tokenizer, 32).rows
    expected = np.exp(KneserNey(training, 4096).token_losses(ids.numpy()).mean())
    assert row["gppl kneser-ney"] == pytest.approx(expected)


def test_known_words_are_those_of_whole_documents_and_special_tokens_part_words(project):
    lines = '{"text": "It is done in the house"}\n{"text": null}\n{"text": "Go thy way"}\n'
    (project / "words.jsonl").write_text(lines)
    tokenizer = AutoTokenizer.from_pretrained(MAP)
    parts = tokenizer(["It is done", "In the house"], add_special_tokens=False)["input_ids"]
    row = np.array([tokenizer.bos_token_id, *parts[0], tokenizer.eos_token_id, *parts[1], tokenizer.eos_token_id])
    for shared, words in ((True, 1), (False, 2 / 3)):  # of a text nothing says where the special tokens were
        common = Common(tokenizer, shared, length=32)
        sets = [common.samples({}, rows) for rows in ([row, row[:1]], [row, row])]
        known = _known(sets, str(project / "words.jsonl"), common)
        assert known["known words"] == pytest.approx(np.array([[words, 0], [words, words]]))
        assert known["known pairs"][:, 0] == pytest.approx(1 if shared else 0)


def test_texts_are_cut_to_the_common_length():
    tokenizer = AutoTokenizer.from_pretrained(MAP)
    samples = Common(tokenizer, shared=False, length=4).samples_of_texts(
        {}, ["And he said unto him, Go thy way", "Go"]
    )
    assert [len(ids) for ids in samples.rows] == [4, 1]
    assert samples.texts == [tokenizer.decode(samples.rows[0]), "Go"]


def test_samples_of_a_file_make_all_be_compared_as_texts(project):
    settings = dict(scorers=[str(SCORER)], reference=str(project / "real.parquet"), num_samples=COUNT, length=32)
    result = compare([str(MAP), str(project / "samples.txt")], **settings)
    [row] = [row for row in result["rows"] if row["kind"] == "file"]
    assert (row["model"], row["samples"], row["empty_samples"], row["evaluations"]) == ("samples.txt", COUNT, 1, None)
    assert "retokenised" in result["protocol"]["scorers"][0]["input"]
    assert result["protocol"]["training_text"] is None and not {"memorised 8", "known words"} & set(row["metrics"])
    assert result["frontier"] == [] and "No sweep" in report.markdown(result)


# -- writers ----------------------------------------------------------------------------------------------------------


def test_samples_depend_on_their_seeds_alone():
    for source, settings in ((MAP, {"sampler": "bridge", "num_steps": 2}), (SCORER, {"temperature": 1.0})):
        writer = open_writer(str(source))
        both = writer.write(settings, 3, [1, 2], 16)
        assert len(both.ids) == len(both.texts) == 6
        assert writer.write(settings, 3, [2], 16).ids == both.ids[3:] != both.ids[:3]


REMOTE = """
from transformers import BertConfig, BertForMaskedLM

class OwnConfig(BertConfig):
    model_type = "own-masked"

class OwnForMaskedLM(BertForMaskedLM):
    config_class = OwnConfig
"""


TINY_BERT = BertConfig(
    vocab_size=4096, max_position_embeddings=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=16,
)  # fmt: skip


def test_a_repository_runs_its_own_code_if_that_is_trusted(tmp_path):
    BertForMaskedLM(TINY_BERT).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(MAP).save_pretrained(tmp_path)
    (tmp_path / "modeling_own.py").write_text(REMOTE)
    config = json.loads((tmp_path / "config.json").read_text())
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForMaskedLM": "modeling_own.OwnForMaskedLM"}
    config |= {"model_type": "own-masked", "architectures": ["OwnForMaskedLM"], "auto_map": own}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        open_writer(str(tmp_path))
    writer = open_writer(str(tmp_path), trust_remote_code=True)
    assert (writer.kind, type(writer.model).__name__) == ("masked", "OwnForMaskedLM")
    assert len(writer.write({"num_steps": 2, "temperature": 1.0}, 2, [0], 16).texts) == 2


def test_what_an_evaluation_lacks_is_named(tmp_path, monkeypatch, capsys):
    rows, scorers = str(CORPUS / "validation.parquet"), [str(SCORER)]
    MambaForCausalLM(MambaConfig(vocab_size=4096, hidden_size=16, num_hidden_layers=1)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(MAP, model_max_length=10**30).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not say how long its texts are: give a `length`"):
        compare([str(tmp_path)], scorers=scorers, reference=rows)
    with pytest.raises(ValueError, match="`seeds` has one twice, .*: 0, 3, 0"):
        compare([str(MAP)], scorers=scorers, reference=rows, seeds=[0, 3, 0])
    monkeypatch.setattr("evaluation.compare._version", lambda package: None)
    with pytest.raises(ValueError, match=r"self-BLEU needs sacrebleu: pip install .*\[evaluation\]"):
        compare([str(MAP)], scorers=scorers, reference=rows)
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ValueError, match=r"MAUVE needs mauve-text: pip install .*\[evaluation\]"):
        mauve_score(np.zeros((2, 3)), np.zeros((2, 3)))
    monkeypatch.delitem(sys.modules, "evaluation.report")
    monkeypatch.delattr("evaluation.report")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    asked = ["evaluate", str(MAP), "--output", str(tmp_path / "out"), "--scorer", *scorers, "--reference", rows]
    assert main(asked) == 1
    assert re.search(r"matplotlib.*: pip install .*\[evaluation,plots\]", capsys.readouterr().err)


def test_the_masked_baseline_is_known_by_its_configuration_and_sampled_as_in_the_benchmark():
    writer = open_writer(str(MASKED))
    written = writer.write({"num_steps": 3, "temperature": 0.8}, 4, [0], 128)
    assert writer.kind == "masked" and written.evaluations == 3
    assert written.ids == mdlm.sample(writer.model, 3, 4, 0.8, 0).tolist()


def test_models_of_transformers(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(MAP)
    torch.manual_seed(0)
    bert = BertForMaskedLM(TINY_BERT)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=16, n_layer=1, n_head=2))
    ends = set(range(100, 300))  # one in twenty, as its weights are small and its draws nearly uniform
    gpt.generation_config = GenerationConfig(eos_token_id=list(ends), pad_token_id=2, do_sample=True, top_k=3)
    gpt.generation_config.min_p = 0.9
    for model, name in ((bert, "bert"), (gpt, "gpt"), (GPT2Model(gpt.config), "headless")):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    written = open_writer(str(tmp_path / "bert")).write({"num_steps": 4, "temperature": 1.0}, 3, [0], 16)
    assert all(len(row) == 16 and tokenizer.mask_token_id not in row for row in written.ids)
    writer = open_writer(str(tmp_path / "gpt"))
    assert writer.settings(Sweep(temperatures=[0.5, 1.0])) == [{"temperature": 0.5}, {"temperature": 1.0}]
    rows = writer.write({"temperature": 1.0}, 40, [0], 16).ids
    assert {len(row) for row in rows} > {16}  # some end early
    assert all(row[0] == tokenizer.bos_token_id and not ends & set(row[1:-1]) for row in rows)
    assert all(row[-1] in ends for row in rows if len(row) < 16)
    assert len({token for row in rows for token in row[1:]}) > 100  # not the top_k of its generation configuration
    with pytest.raises(ValueError, match="headless is GPT2Model, which does not say how it writes: .* masked:"):
        open_writer(str(tmp_path / "headless"))
    assert open_writer(f"causal:{tmp_path / 'gpt'}").kind == "causal"
    for name, token in (("gpt", "bos_token"), ("bert", "mask_token")):
        lacking = AutoTokenizer.from_pretrained(tmp_path / name)
        setattr(lacking, token, None)
        lacking.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=f"the tokenizer of {name} has no .* to begin with: set `{token}`"):
            open_writer(str(tmp_path / name))


class Twins(torch.nn.Module):
    """The exact masked predictor of the world {00, 11}, each with probability 1/2; 2 is the mask."""

    config = BertConfig(vocab_size=3)
    device = torch.device("cpu")

    def forward(self, input_ids):
        other = input_ids.flip(1)
        p = torch.nn.functional.one_hot(other, 3).double()
        p[other == 2] = torch.tensor([0.5, 0.5, 0], dtype=torch.double)
        return type("Output", (), {"logits": p.log()})


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_masked_sampling_breaks_twins_only_where_both_are_revealed_at_once(steps):
    ids = sample_masked(Twins(), torch.full((4000, 2), 2), 2, steps, 1.0, seed=steps)
    assert ids.max() < 2
    broken = float((ids[:, 0] != ids[:, 1]).double().mean())
    expected = 0.5 / steps  # both in one of `steps` steps, and then half
    assert abs(broken - expected) < 4 * math.sqrt(expected / 4000)


class Ladder(Twins):
    """Masked tokens are 0 or 1, the surer the further to the right: of five, the last is always 1."""

    config = BertConfig(vocab_size=3)

    def forward(self, input_ids):
        one = torch.linspace(0.6, 1, 5, dtype=torch.double).expand(len(input_ids), 5)
        return type("Output", (), {"logits": torch.stack([1 - one, one, torch.zeros_like(one)], -1).log()})


def test_by_confidence_the_surest_tokens_are_written_first_and_given_ones_stay():
    states, start = [], torch.full((200, 5), 2)
    start[:, 2] = 0

    class Noting(Ladder):
        def forward(self, input_ids):
            states.append(input_ids.clone())
            return super().forward(input_ids)

    ids = sample_masked(Noting(), start, 2, 2, 1.0, seed=0, by_confidence=True)
    halfway = states[1]
    assert len(states) == 2 and ((halfway == 2).sum(1) == 2).all()  # two of the four
    assert (halfway[:, 4] == 1).all()  # certain, so it is always among the first
    assert (halfway[:, 3] != 2).double().mean() > 0.8 > (halfway[:, 0] != 2).double().mean()
    assert ids.max() < 2 and (ids[:, 2] == 0).all() and (start[:, 2] == 0).all() and start[0, 0] == 2


def test_the_settings_of_a_sweep_are_those_that_apply():
    flow, flow_map = (open_writer(str(HUB / f"{kind}-english-small")) for kind in ("flm", "fmlm"))
    assert flow.settings(Sweep()) == [{"sampler": "euler", "num_steps": 64}]
    assert flow_map.settings(Sweep(num_steps=[1, 2], gammas=[0.5, 1.0])) == [
        {"sampler": "flow_map", "num_steps": 1, "gamma": 0.5},
        {"sampler": "flow_map", "num_steps": 2, "gamma": 0.5},
        {"sampler": "flow_map", "num_steps": 2, "gamma": 1.0},
    ]
    named = Sweep(num_steps=[2], samplers=["flow_map", "bridge"], temperatures=[0.7])
    assert flow.settings(named) == [{"sampler": "bridge", "num_steps": 2, "temperature": 0.7}]
    with pytest.raises(ValueError, match="temperatures must be > 0, but are 0.0"):
        Sweep(temperatures=[0.0])
    with pytest.raises(ValueError, match="numbers of steps must be >= 1, but are 0"):
        Sweep(num_steps=[0])
    with pytest.raises(ValueError, match="gammas must be in \\[0, 1\\], but are 0.5, 1.5"):
        Sweep(gammas=[0.5, 1.5])


def test_a_flow_ends_its_texts_where_it_pads_them():
    writer = open_writer(str(MAP))
    whole = writer.write({"num_steps": 1}, 8, [0], 64).ids
    end = whole[0][30]
    for name, value in dict(pad_after_eos=True, eos_token_id=end).items():
        setattr(writer.model.generation_config, name, value)
    for row, text in zip(whole, writer.write({"num_steps": 1}, 8, [0], 64).ids, strict=True):
        assert text == row[: row.index(end) + 1 if end in row else 64]


def test_what_varies_is_the_sweep():
    """Of two settings the one that has several values; a single temperature is none."""

    def samples(**settings) -> Samples:
        row = {"model": "masked", "settings": settings, "metrics": {"entropy": {"mean": 4.0 + settings["num_steps"]}}}
        return Samples(row, [[1, 2]], ["a"])

    judge = Judge("judge", lambda some: some.rows, lambda rows: (np.ones(2), np.ones(2, int)), {})

    def varied(*sets: Samples) -> list[tuple]:
        points = {(i, "judge"): Point(np.ones(2), np.ones(2, int), np.full(2, 4.0 + i)) for i in range(len(sets))}
        return [(found["varied"], found["values"]) for found in frontiers(list(sets), [judge], points, 4.5)]

    assert varied(samples(num_steps=8, temperature=1.0)) == []
    steps = (samples(num_steps=n, temperature=1.0) for n in (8, 64))
    assert varied(*steps) == [("num_steps", [8, 64])]
    both = (samples(num_steps=n, temperature=t) for n in (8, 64) for t in (0.8, 1.0))
    assert varied(*both) == [("temperature", [0.8, 1.0])] * 2


def test_controls_are_what_they_say():
    real, training = np.arange(80).reshape(8, 10), 100 + np.arange(60).reshape(6, 10)
    sets = controls(real, training, 4, seed=0)
    text = sets["held-out text"]
    assert all(rows.shape == (4, 10) for rows in sets.values())
    within, across = (sets[f"held-out text, shuffled {how} rows"] for how in ("within", "across"))
    assert (np.sort(within) == np.sort(text)).all() and (within != text).any()
    assert sorted(across.ravel()) == sorted(text.ravel()) and (np.sort(across) != np.sort(text)).any()
    assert (within[:, [0, -1]] == text[:, [0, -1]]).all()
    assert (np.unique(sets["one held-out text, repeated"], axis=0) == text[0]).all()
    assert {tuple(row) for row in sets["copies of training text"]} <= {tuple(row) for row in training}
    assert (np.diff(sets["patchwork of 8 training tokens"][:, 1:9]) == 1).all()
    assert set(sets["tokens drawn by frequency"][:, 1:-1].ravel()) <= set(training.ravel())
    assert len(controls(real, None, 4, seed=0)) == len(sets) - 2
    with pytest.raises(ValueError, match="the held-out text has 8 rows, but 9 samples are compared: ask for fewer"):
        controls(real, None, 9, seed=0)


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ("no/such --scorer SCORER", "no/such is no folder, and cannot be had from the Hub"),
        ("MAP --scorer kneser-ney", "the scorer kneser-ney is made from a training text, but there is none"),
        ("SAMPLES --scorer SCORER", "samples.txt is a file, but the first model's tokenizer measures all"),
        ("MAP --scorer SCORER --num-samples 5000", "twice as many: one half to compare"),
        ("MAP --scorer SCORER --num-samples 1", "two samples or more for each"),
        ("MAP --scorer SCORER --temperature 0", "temperatures must be > 0"),
        ("MAP --against SAMPLES --scorer SCORER", "samples.txt has 32 texts, but 64 samples are"),
        ("MAP --scorer SCORER --reference none.txt", "there is no file none.txt"),
        ("MAP --against MAP --scorer SCORER", "several are called fmlm-english-small: give them folders of different"),
        ("MAP --scorer MAP", "fmlm-english-small is a flow language model, but a scorer is a causal one"),
        ("MAP --against FLOW --scorer SCORER --sampler flow_map", "flm-english-small is no flow map: it writes with"),
        ("MAP --scorer SCORER --output SAMPLES", "samples.txt is a file, but --output names the folder"),
        ("MAP --scorer SCORER --length 129", "fmlm-english-small writes up to 128 tokens, not 129"),
    ],
)
def test_mistakes_end_on_one_line(project, capsys, arguments, reason):
    places = {"MAP": MAP, "FLOW": HUB / "flm-english-small", "SCORER": SCORER, "SAMPLES": project / "samples.txt"}
    words = [str(places.get(word, word)) for word in arguments.split()]
    reference = [] if "--reference" in words else ["--reference", str(project / "real.parquet")]
    output = [] if "--output" in words else ["--output", str(project / "none")]
    assert main(["evaluate", *words, *reference, "--num-steps", "1", *output]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("flm: ") and reason in line and not (project / "none").exists()


def test_empty_samples_and_files_without_text(project):
    (project / "empty.jsonl").write_text('{"text": ""}\n{"text": null}\n' * 10)
    (project / "columns.jsonl").write_text('{"words": "a"}\n')
    settings = dict(scorers=[str(SCORER)], reference=str(project / "real.parquet"), num_samples=20, length=8)
    with pytest.raises(ValueError, match="all samples of empty.jsonl are empty"):
        compare([str(MAP), str(project / "empty.jsonl")], **settings)
    with pytest.raises(ValueError, match="columns.jsonl has no column `text`; its columns are \\['words'\\]"):
        open_writer(str(project / "columns.jsonl"))
    (project / "numbers.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(ValueError, match="the column `text` of numbers.jsonl has 3, a int."):
        open_writer(str(project / "numbers.jsonl"))


# -- what is shipped --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "folder"), [("english-small", "evaluation"), ("tinystories", "evaluation-tinystories")]
)
def test_the_published_report_is_that_of_its_measurements(data, folder):
    folder = ROOT / "benchmarks" / folder
    result = json.loads((folder / "evaluation.json").read_text())
    assert (folder / "evaluation.md").read_text() == report.markdown(result)
    models = {model["model"]: model["weights_sha256"] for model in result["protocol"]["models"]}
    for name, where in (("flm", HUB), ("fmlm", HUB), ("mdlm", BASELINES), ("ar", BASELINES)):
        assert models[f"{name}-{data}"] == weights_sha256(where / f"{name}-{data}")
