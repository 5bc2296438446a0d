"""Packing keeps every token it promises to keep, in the order and the form of the published code."""

import ast
import dataclasses
import hashlib
import json
import re
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from children import run_python
from datasets import Dataset, IterableDataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st
from test_rooms import MAY_IMPORT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, TrainingArguments, default_data_collator

from benchmarks.results import BASELINES, HUB
from flm_data import DataSource, load_text, load_tokenizer, pack
from flm_data.detokenizers import detokenize_lm1b
from modeling_flm.configuration_flm import FLMConfig
from trainers import FMLMTrainingArguments
from trainers.noise import with_fixed_noise

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "examples" / "corpus"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


# ------------------------------------------------------------------------------------------------------------
# Tokenizers like those of the published models, small enough to be made here
# ------------------------------------------------------------------------------------------------------------

WORDS = ["the", "cat", "sat", "on", "mat", "##s", ".", ",", "a", "dog", "ran"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """`datasets` caches rows by their arguments: the user's cache may hold what older code packed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    """A folder with a WordPiece tokenizer like bert-base-uncased: [CLS] x [SEP], no BOS or EOS."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder = tmp_path_factory.mktemp("bert")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_max_length=512,
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> str:
    """A folder with a tokenizer of single bytes like gpt2's: <|endoftext|> is BOS and EOS, none pads."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("gpt2")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        model_max_length=1024,
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(CORPUS / "tokenizer"))


@pytest.fixture(scope="module")
def validation() -> Dataset:
    return load_text(DataSource.parse("./validation.parquet", CORPUS))


def texts(*documents, column="text") -> Dataset:
    return Dataset.from_dict({column: list(documents)})


def ids(dataset) -> list[list[int]]:
    return [row["input_ids"] for row in dataset]


# ------------------------------------------------------------------------------------------------------------
# load_tokenizer
# ------------------------------------------------------------------------------------------------------------


def test_bert_like_tokenizer_takes_cls_and_sep(bert):
    loaded = load_tokenizer(bert)
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("[CLS]", "[SEP]", "[PAD]")
    assert (loaded.bos_token_id, loaded.eos_token_id) == (2, 3)
    assert len(loaded) == 5 + len(WORDS)  # nothing was added


def test_gpt2_like_tokenizer_gets_a_padding_token(gpt2):
    loaded = load_tokenizer(gpt2)
    assert len(loaded) == 258  # as gpt2: 50,257 and one more
    assert (loaded.pad_token, loaded.pad_token_id) == ("[PAD]", 257)
    assert loaded.bos_token_id == loaded.eos_token_id == 256


@pytest.mark.parametrize("missing, present", [("bos_token", "eos_token"), ("eos_token", "bos_token")])
def test_tokenizer_without_ends_is_refused(tmp_path, missing, present):
    bare = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=bare, **{present: "b"}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"has no `{missing}`, nor a `(cls|sep)_token`"):
        load_tokenizer(str(tmp_path))


# ------------------------------------------------------------------------------------------------------------
# pack
# ------------------------------------------------------------------------------------------------------------


def test_packing_by_hand(bert):
    """Three documents: the stream is 3 + 1, 1 + 1, 4 + 1 tokens; pieces of 4; the last 3 tokens fill none."""
    rows = pack(texts("the cat sat", "dog", "a dog ran ."), load_tokenizer(bert), length=6)
    cls, sep = 2, 3
    the, cat, sat, dog, a = 5, 6, 7, 14, 13
    assert ids(rows) == [[cls, the, cat, sat, sep, sep], [cls, dog, sep, a, dog, sep]]
    assert rows.column_names == ["input_ids"]
    assert rows.features["input_ids"].feature.dtype == "int32"


def test_packing_as_the_published_lm1b_code(bert):
    """There both ends of a row and the mark after a document are [CLS]."""
    rows = pack(texts("the cats , the mat"), load_tokenizer(bert), length=5, eos_token="[CLS]")
    the, cat, s, comma, mat = 5, 6, 10, 12, 9
    assert ids(rows) == [[2, the, cat, s, 2], [2, comma, the, mat, 2]]
    # One token more is one more of the stream: the mark.
    rows = pack(texts("the cats , the mat"), load_tokenizer(bert), length=9, eos_token="[CLS]")
    assert ids(rows) == [[2, the, cat, s, comma, the, mat, 2, 2]]


def test_tokens_can_be_chosen(bert):
    rows = pack(texts("the cat"), load_tokenizer(bert), length=5, bos_token="[MASK]", eos_token="[PAD]")
    assert ids(rows) == [[4, 5, 6, 0, 0]]


def test_documents_without_a_token_are_skipped(bert):
    documents = texts(None, "the cat", "", "   ", None, "sat", "")
    assert ids(pack(documents, load_tokenizer(bert), length=7)) == [[2, 5, 6, 3, 7, 3, 3]]


def test_a_batch_of_nothing_yields_nothing(bert):
    """A whole map batch without a row, between batches that have some."""
    dataset = texts(*["the cat"] * 1000, *[""] * 1000, *["dog"] * 1000)
    assert len(pack(dataset, load_tokenizer(bert), length=8)) == 3000 // 6 + 2000 // 6


def test_remainder_of_each_batch_is_dropped(bert):
    """1,001 documents of 2 tokens: the last one, a batch of its own, fills no row of 5."""
    loaded = load_tokenizer(bert)
    assert len(pack(texts(*["cat"] * 1000), loaded, length=5)) == 666
    assert len(pack(texts(*["cat"] * 1001), loaded, length=5)) == 666
    assert len(pack(texts(*["cat"] * 1002), loaded, length=5)) == 667


@given(
    documents=st.lists(st.text(max_size=30), min_size=1, max_size=12),
    length=st.integers(min_value=3, max_value=20),
)
def test_packing_keeps_every_token_but_the_remainder(gpt2, documents, length):
    loaded = load_tokenizer(gpt2)
    stream = []
    for document in documents:
        if document:
            stream += [*loaded(document, add_special_tokens=False)["input_ids"], loaded.eos_token_id]
    stream = stream[: len(stream) // (length - 2) * (length - 2)]
    if not stream:
        with pytest.raises(ValueError, match="too small"):
            pack(texts(*documents), loaded, length)
        return
    rows = ids(pack(texts(*documents), loaded, length))
    assert {(len(row), row[0], row[-1]) for row in rows} == {(length, 256, 256)}
    assert [token for row in rows for token in row[1:-1]] == stream


def test_streaming_gives_the_same_rows(tokenizer, validation):
    streamed = load_text(DataSource.parse("./validation.parquet", CORPUS), streaming=True)
    assert isinstance(streamed, IterableDataset)
    packed = pack(streamed, tokenizer, 128)
    assert packed.column_names == ["input_ids"]
    rows = ids(packed)
    assert rows == ids(pack(validation, tokenizer, 128))
    assert all(type(row) is list for row in rows)  # not arrays, which would make batches of another dtype


def test_a_stream_that_does_not_know_its_columns(tokenizer):
    rows = [{"text": "the cat sat on the mat " * 9, "n": i} for i in range(3)]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    assert stream.column_names is None
    assert ids(pack(stream, tokenizer, 16)) == ids(pack(Dataset.from_list(rows), tokenizer, 16))


def test_two_processes_give_the_same_rows(tokenizer, validation):
    """Each has an unbroken share, so whole batches of 1,000 come out as from one process."""
    documents = concatenate_datasets([validation, validation]).select(range(2000))
    assert ids(pack(documents, tokenizer, 128, num_proc=2)) == ids(pack(documents, tokenizer, 128))


def test_a_document_of_ten_million_characters(bert):
    """Among others, and with empty ones: every token of all arrives."""
    long, words = "the cat sat . " * 714_286, load_tokenizer(bert)
    assert len(long) > 10_000_000
    rows = ids(pack(Dataset.from_dict({"text": ["a dog", long, "", None, "ran ."]}), words, 1002))
    assert len(rows) == (2 + 1 + 4 * 714_286 + 1 + 2 + 1) // 1000
    assert rows[0][1:8] == [
        *words("a dog").input_ids[1:-1],
        words.eos_token_id,
        *words("the cat sat .").input_ids[1:-1],
    ]


BROKEN = {
    "cut.parquet": (
        (CORPUS / "validation.parquet").read_bytes()[:100_000],
        "magic bytes",
    ),
    "latin.txt": (b"good\n\xff\xfe bad\n", "can't decode byte 0xff"),
    "rows.jsonl": (b'{"text": "fine"}\n{"text": "bro\n', "JSON parse error|Unterminated|Invalid"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(name, tmp_path):
    content, reason = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"(?i){name} cannot be read: .*({reason})"):
        load_text(DataSource.parse(f"./{name}", tmp_path))


def test_rows_are_found_in_the_cache(bert, tmp_path):
    """In a second call and in another process, also after a text beyond the tokenizer's length."""
    (tmp_path / "long.txt").write_text("the cat sat .\n" + "a dog ran . " * 300 + "\n")
    loaded = load_tokenizer(bert)
    documents = load_text(DataSource.parse("./long.txt", tmp_path))
    fingerprint = pack(documents, loaded, 8)._fingerprint
    assert pack(documents, loaded, 8)._fingerprint == fingerprint
    assert pack(documents, loaded, 9)._fingerprint != fingerprint
    script = (
        "import sys; from flm_data import *\n"
        "documents = load_text(DataSource.parse('./long.txt', sys.argv[2]))\n"
        "print(pack(documents, load_tokenizer(sys.argv[1]), 8)._fingerprint)"
    )
    environment = dict(PYTHONPATH=str(ROOT), HF_HOME=str(tmp_path / "home"), PYTHONHASHSEED="1")
    result = run_python("-P", "-c", script, bert, tmp_path, cwd=tmp_path, **environment)
    assert result.stdout.strip() == fingerprint
    assert "longer than the specified maximum" not in result.stderr


def test_a_huge_document(tokenizer):
    """One word of half a million letters, and as much prose, in one document each."""
    word, prose = "a" * 500_000, "the cat sat on the mat. " * 20_000
    rows = ids(pack(texts(word, "", prose), tokenizer, 128))
    text = tokenizer.decode([token for row in rows for token in row[1:-1]], skip_special_tokens=True)
    assert (word + prose).startswith(text)
    assert len(word + prose) - len(text) < 126 * 24


def test_a_collator_makes_a_batch(tokenizer, validation):
    rows = with_fixed_noise(pack(validation.select(range(20)), tokenizer, 32))
    batch = default_data_collator([rows[i] for i in range(4)])
    assert batch["input_ids"].shape == (4, 32)
    assert {key: value.dtype for key, value in batch.items()} == {
        "input_ids": torch.int64,
        "noise_seed": torch.int64,
        "timesteps": torch.float32,
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"length": 2}, "`length` is 2"),
        ({"length": -1}, "`length` is -1"),
        ({"text_column": "body"}, r"no column `body` in the corpus; its columns are \['text', 'n'\]"),
        ({"text_column": "n"}, "must be a string, but there is 1, a int"),
        ({"detokenizer": "moses"}, r"Unknown `detokenizer` 'moses'; there are \['lm1b'\]"),
        ({"bos_token": "[BOS]"}, r"`bos_token` '\[BOS\]' is not in the tokenizer's vocabulary"),
        ({"eos_token": ""}, "`eos_token` '' is not in the tokenizer's vocabulary"),
        ({"length": 1000}, "too small: 1 documents fill no row of 1000 tokens"),
    ],
)
def test_packing_refuses(bert, arguments, message):
    dataset = Dataset.from_dict({"text": ["the cat sat"], "n": [1]})
    with pytest.raises(ValueError, match=message):
        pack(dataset, load_tokenizer(bert), **{"length": 4, **arguments})


def test_packing_refuses_an_empty_corpus_and_a_bare_tokenizer(bert):
    with pytest.raises(ValueError, match="0 documents fill no row"):
        pack(texts(), load_tokenizer(bert), 8)
    with pytest.raises(ValueError, match="no `bos_token`: load it with `load_tokenizer`"):
        pack(texts("the"), PreTrainedTokenizerFast.from_pretrained(bert), 8)


# ------------------------------------------------------------------------------------------------------------
# The detokeniser
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokenised, written",
    [
        ("", ""),
        ("nothing to do", "nothing to do"),
        ("The end .", "The end."),
        ("The end . And more .", "The end. And more."),
        ("Who ? Me ?", "Who? Me?"),
        ("Stop ! Now !", "Stop! Now!"),
        ("red , white ; blue : all", "red, white; blue: all"),
        ("he 's here and they 're not", "he's here and they're not"),
        ("I do n't know", "I do n't know"),
        ('he said , " no . "', 'he said, "no."'),
        ('a " word " in quotes', 'a "word" in quotes'),
        ('" one " and " two "', '"one" and "two"'),
        ("a ' word ' in quotes", "a 'word' in quotes"),
        ("a side ( or two ) of it", "a side (or two) of it"),
        ("a side [ or two ] of it", "a side [or two] of it"),
        ("and / or", "and/or"),
        ("see http : / / example.org and https : / / a.b", "see http://example.org and https://a.b"),
        ("it cost $ 5 , or £ 4", "it cost $5, or £4"),
        ("at 5.30 p.m. , he left", "at 5.30 p.m., he left"),
        ("it rose 1.5 .", "it rose 1.5 ."),  # as published: only a plain word draws the full stop to it
    ],
)
def test_lm1b_detokeniser(tokenised, written):
    assert detokenize_lm1b(tokenised) == written


def test_packing_detokenises(gpt2):
    loaded = load_tokenizer(gpt2)
    rows = ids(pack(texts("It cost $ 5 , or £ 4 ."), loaded, 22, detokenizer="lm1b"))
    assert loaded.decode(rows[0][1:-2]) == "It cost $5, or £4."


# ------------------------------------------------------------------------------------------------------------
# Fixed noise
# ------------------------------------------------------------------------------------------------------------


def test_fixed_noise(tokenizer, validation):
    rows = with_fixed_noise(pack(validation, tokenizer, 128))
    count = len(rows)
    assert rows["noise_seed"][:] == list(range(count))
    assert rows["timesteps"][:3] == pytest.approx([0.5, 0.1180339887498949, 0.7360679774997898])
    for n in (8, 100, count):  # low discrepancy: no point is far from where even spacing has it
        times = sorted(rows["timesteps"][:n])
        assert 0 <= times[0] and times[-1] < 1
        assert max(abs(time - (i + 0.5) / n) for i, time in enumerate(times)) < 2 / n


# ------------------------------------------------------------------------------------------------------------
# Sources
# ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    documents = texts("first document", "second document", "third")
    documents.to_parquet(str(tmp_path / "some.parquet"))
    documents.to_json(str(tmp_path / "some.jsonl"))
    documents.to_csv(str(tmp_path / "some.csv"), index=False)
    (tmp_path / "some.json").write_text(json.dumps(documents.to_list()))
    (tmp_path / "some.txt").write_text("first document\nsecond document\nthird\n")
    (tmp_path / "some.md").write_text("# no corpus\n")
    (tmp_path / "folder").mkdir()
    documents.to_parquet(str(tmp_path / "folder" / "train.parquet"))
    documents.select([2]).to_parquet(str(tmp_path / "folder" / "validation.parquet"))
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json", "csv", "txt"])
def test_local_files(files, suffix, streaming):
    source = DataSource.parse(f"../some.{suffix}", files / "folder")
    rows = load_text(source, streaming=streaming)
    assert [row["text"] for row in rows] == ["first document", "second document", "third"]


def test_local_folders(files):
    assert len(load_text(DataSource.parse("./folder", files))) == 3
    assert len(load_text(DataSource.parse(str(files / "folder"), "/"))) == 3
    held_out = DataSource.parse({"path": "./folder", "split": "validation"}, files)
    assert load_text(held_out)["text"][:] == ["third"]
    some = DataSource.parse({"path": "./", "data_files": "some.*l", "split": "train[1:2]"}, files)
    assert load_text(some)["text"][:] == ["second document"]


def test_the_shipped_corpus_as_a_folder():
    """Its README and its tokenizer's files are no part of the data."""
    assert len(load_text(DataSource.parse({"path": "./corpus", "split": "test"}, CORPUS.parent))) == 1159


def test_linked_file_keeps_its_name(files):
    (files / "blob").write_text("one\n")
    (files / "link.txt").symlink_to(files / "blob")
    assert load_text(DataSource.parse("./link.txt", files))["text"][:] == ["one"]


def test_hub_names_pass_through():
    assert DataSource.parse("wikitext", "/nowhere") == DataSource("wikitext")
    given_keys = {
        "path": "org/corpus",
        "name": "en",
        "split": "test",
        "revision": "v1",
        "data_files": ["a.csv"],
    }
    assert DataSource.parse(given_keys, "/nowhere") == DataSource(**given_keys)
    assert DataSource.parse({"path": "org/corpus", "name": None}, "/nowhere") == DataSource("org/corpus")


@pytest.mark.parametrize(
    "value, message",
    [
        ("./absent.txt", "there is no file or folder .*absent.txt"),
        ("./some.md", r"some.md is none of the files that can be read: .csv, .json, .jsonl, .parquet, .txt"),
        ("./empty", "empty holds no .csv, .json, .jsonl, .parquet, .txt file"),
        (
            {"path": "org/corpus", "subset": "en"},
            r"Unknown keys \['subset'\] in a data source; the keys are \['path'",
        ),
        ({"name": "en"}, "needs a `path`"),
        ("", "needs a `path`"),
        ({"path": "org/corpus", "split": 3}, "`split` of a data source must be a string, not 3"),
        ({"path": ["a", "b"]}, r"`path` of a data source must be a string, not \['a', 'b'\]"),
        (None, "is a path or a mapping with a `path`, not None"),
        (["./some.txt"], "is a path or a mapping with a `path`"),
        ({"path": "./some.txt", "name": "en", "revision": "v1"}, "A local source takes no name, revision"),
        ({"path": "./folder", "revision": "v1"}, "A local source takes no revision"),
    ],
)
def test_sources_refused(files, value, message):
    with pytest.raises(ValueError, match=message):
        DataSource.parse(value, files)


def test_a_part_of_a_split_is_not_streamed():
    with pytest.raises(ValueError, match=r"Only a whole split can be streamed.*train\[-10:\]"):
        load_text(DataSource("org/corpus", split="train[-10:]"), streaming=True)


# ------------------------------------------------------------------------------------------------------------
# What the repository ships
# ------------------------------------------------------------------------------------------------------------


def test_shipped_tokenizer(tokenizer, validation):
    assert len(tokenizer) == tokenizer.vocab_size == 4096
    assert [
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        tokenizer.mask_token_id,
    ] == [*range(4)]
    assert tokenizer.model_max_length == 128
    pieces = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    assert tokenizer("the cat")["input_ids"] == [tokenizer.bos_token_id, *pieces]  # as a row of training text begins
    rows = [*validation["text"][:200], " a  b\n\n\tc ", "naïve — “quotes” … 日本語 🙂", "don 't , do n't !"]
    assert tokenizer.batch_decode(tokenizer(rows)["input_ids"], skip_special_tokens=True) == rows
    for folder in (*HUB.glob("*-english-small"), *BASELINES.glob("*-english-small")):
        assert (folder / "tokenizer.json").read_bytes() == (CORPUS / "tokenizer" / "tokenizer.json").read_bytes()


def test_whatever_packs_or_measures_text_says_that_it_wants_no_special_tokens():
    """The shipped tokenizer puts BOS before a text: where that would be one too many, each call says no."""
    calls = {}
    for folder in MAY_IMPORT:
        for path in (ROOT / folder).rglob("*.py"):
            if path.is_symlink():
                continue  # of a shipped model, to modeling_flm/
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and re.fullmatch(r"(.*\.)?tokenizer(\.encode)?", ast.unparse(node.func)):
                    asked = {word.arg: ast.unparse(word.value) for word in node.keywords}
                    calls[f"{path.relative_to(ROOT)}: {ast.unparse(node)}"] = asked.get("add_special_tokens")
    assert len(calls) > 8
    allowed = ("sudoku", "grids", "puzzle", "onnx_generate")  # their tokenizers have none; its prompt begins with BOS
    wrong = [call for call, asked in calls.items() if asked != "False" and not any(word in call for word in allowed)]
    assert wrong == []


def test_corpus_readme_tells_the_truth(validation):
    readme = (CORPUS / "README.md").read_text()
    for file in CORPUS.glob("*.parquet"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() in readme
    characters, words = (sum(map(len, map(part, validation["text"]))) for part in (str, str.split))
    assert f"| validation | {len(validation):,} | {characters:,} |" in readme
    assert f"| {words:,} |" in readme
    assert all(f"`{source}`" in readme for source in set(validation["source"]))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes(recipe):
    content = yaml.safe_load(recipe.read_text())
    distils = "teacher" in content
    assert content.keys() == {"teacher" if distils else "model", "tokenizer", "data", "training"}

    model = dict(content.get("model", {"type": "flm"}))
    assert model.pop("type") == "flm"
    assert FLMConfig(vocab_size=100, **model).to_dict().items() >= model.items()

    data = dict(content["data"])
    for key in {"train", "validation"} & data.keys():
        source = data.pop(key)
        if source != "../examples/sudoku/9x9/train.parquet":  # which make_grids.py writes
            DataSource.parse(source, recipe.parent)
    assert data.keys() <= {
        *("text_column", "detokenizer", "bos_token", "eos_token", "packing"),
        *("streaming", "max_validation_rows", "num_proc"),
    }

    ours = {"ema_decay", "learned_loss_weighting", "conditioning_rate", "sample_num_steps", "num_samples"}
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    if distils:
        ours = {field.name for field in dataclasses.fields(FMLMTrainingArguments)}
    assert content["training"].keys() <= known | ours
    theirs = {key: value for key, value in content["training"].items() if key in known}
    words = {key for key, value in theirs.items() if isinstance(value, str)}
    assert words <= {
        "output_dir",
        "lr_scheduler_type",
        "eval_strategy",
        "objective",
    }  # YAML reads 1e-3 as a word
    theirs.pop("bf16", None)  # refused where there is no accelerator
    TrainingArguments(**theirs)


def test_published_batch_sizes():
    """512 rows a step on 8 processes."""
    for name in ("lm1b", "owt"):
        training = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())["training"]
        assert 8 * training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] == 512


def test_the_small_recipe_packs():
    recipe = ROOT / "recipes" / "english-small.yaml"
    content = yaml.safe_load(recipe.read_text())
    small = load_tokenizer(str(recipe.parent / content["tokenizer"]))
    length = content["model"]["max_position_embeddings"]
    rows = pack(load_text(DataSource.parse(content["data"]["validation"], recipe.parent)), small, length)
    assert len(rows) >= content["data"]["max_validation_rows"]
