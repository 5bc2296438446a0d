"""Packing keeps every token it promises to keep, in the order and the form of the published code."""

import ast
import hashlib
import json
import re

import pytest
import torch
from children import run_python
from datasets import Dataset, IterableDataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st
from test_rooms import MAY_IMPORT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, default_data_collator

from benchmarks.results import BASELINES, CORPUS, HUB, ROOT
from flm_data import DataSource, load_text, load_tokenizer, one_row_each, pack
from flm_data.detokenizers import detokenize_lm1b
from modeling_flm.configuration_flm import FLMConfig
from trainers import FLMTrainingArguments, FMLMTrainingArguments, MatchingTrainingArguments
from trainers.noise import with_fixed_noise
from trainers.recipe import load_recipe
from trainers.train import MATCHING

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


# -- Tokenizers like those of the published models, small enough to be made here

WORDS = ["the", "cat", "sat", "on", "mat", "##s", ".", ",", "a", "dog", "ran"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    """A folder with a WordPiece tokenizer like bert-base-uncased: [CLS] x [SEP], no BOS or EOS."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
    folder = str(tmp_path_factory.mktemp("bert"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, model_max_length=512).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> str:
    """A folder with a tokenizer of single bytes like gpt2's: <|endoftext|> is BOS and EOS, none pads."""
    end, alphabet = "<|endoftext|>", sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, end])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, folder = {"bos_token": end, "eos_token": end}, str(tmp_path_factory.mktemp("gpt2"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, model_max_length=1024).save_pretrained(folder)
    return folder


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


# -- load_tokenizer


def test_a_tokenizer_gets_the_ends_and_the_padding_it_lacks(bert, gpt2):
    loaded = load_tokenizer(bert)
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("[CLS]", "[SEP]", "[PAD]")
    assert (loaded.bos_token_id, loaded.eos_token_id, len(loaded)) == (2, 3, 5 + len(WORDS))  # nothing was added
    loaded = load_tokenizer(gpt2)
    assert len(loaded) == 258 and (loaded.pad_token, loaded.pad_token_id) == ("[PAD]", 257)  # one more, as with gpt2
    assert loaded.bos_token_id == loaded.eos_token_id == 256


@pytest.mark.parametrize("missing, present", [("bos_token", "eos_token"), ("eos_token", "bos_token")])
def test_tokenizer_without_ends_is_refused(tmp_path, missing, present):
    bare = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=bare, **{present: "b"}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"has no `{missing}`, nor a `(cls|sep)_token`"):
        load_tokenizer(str(tmp_path))


# -- pack


def with_ends(tokenizer, options: dict):
    """The tokenizer with the BOS and EOS among `options`, which loses them."""
    for role in options.keys() & {"bos_token", "eos_token"}:
        setattr(tokenizer, role, options.pop(role))
    return tokenizer


@pytest.mark.parametrize(
    "documents, options, rows",
    [
        # The stream is 3 + 1, 1 + 1, 4 + 1 tokens; pieces of 4; the last 3 tokens fill none.
        (["the cat sat", "dog", "a dog ran ."], {"length": 6}, [[2, 5, 6, 7, 3, 3], [2, 14, 3, 13, 14, 3]]),
        # As the published code for LM1B: both ends of a row and the mark after a document are [CLS].
        (["the cats , the mat"], {"length": 5, "eos_token": "[CLS]"}, [[2, 5, 6, 10, 2], [2, 12, 5, 9, 2]]),
        (["the cats , the mat"], {"length": 9, "eos_token": "[CLS]"}, [[2, 5, 6, 10, 12, 5, 9, 2, 2]]),
        (["the cat"], {"length": 5, "bos_token": "[MASK]", "eos_token": "[PAD]"}, [[4, 5, 6, 0, 0]]),
        # Documents without a token are skipped.
        ([None, "the cat", "", "   ", None, "sat", ""], {"length": 7}, [[2, 5, 6, 3, 7, 3, 3]]),
    ],
)
def test_packing_by_hand(bert, documents, options, rows):
    packed = pack(texts(*documents), with_ends(load_tokenizer(bert), options := dict(options)), **options)
    assert ids(packed) == rows
    assert packed.column_names == ["input_ids"] and packed.features["input_ids"].feature.dtype == "int32"


def test_the_remainder_of_each_batch_of_a_thousand_is_dropped(bert):
    """Of documents of 2 tokens the thousand and first, a batch of its own, fills no row of 5; nor do empty ones."""
    loaded = load_tokenizer(bert)
    for documents, rows in ((1000, 666), (1001, 666), (1002, 667)):
        assert len(pack(texts(*["cat"] * documents), loaded, length=5)) == rows
    dataset = texts(*["the cat"] * 1000, *[""] * 1000, *["dog"] * 1000)
    assert len(pack(dataset, loaded, length=8)) == 3000 // 6 + 2000 // 6


@given(documents=st.lists(st.text(max_size=30), min_size=1, max_size=12), length=st.integers(3, 20))
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
    unknown = IterableDataset.from_generator(lambda: iter(validation.to_list()))
    assert unknown.column_names is None  # it does not know them
    expected = ids(pack(validation, tokenizer, 128))
    for stream in (streamed, unknown):
        packed = pack(stream, tokenizer, 128)
        rows = ids(packed)
        assert packed.column_names == ["input_ids"] and rows == expected
        assert all(type(row) is list for row in rows)  # not arrays, which would make batches of another dtype


def test_two_processes_give_the_same_rows(tokenizer, validation):
    """Each has an unbroken share, so whole batches of 1,000 come out as from one process."""
    documents = concatenate_datasets([validation, validation]).select(range(2000))
    assert ids(pack(documents, tokenizer, 128, num_proc=2)) == ids(pack(documents, tokenizer, 128))


def test_huge_documents(tokenizer):
    """One word of half a million letters, and as much prose, in one document each, among empty and short ones."""
    word, prose = "a" * 500_000, "the cat sat on the mat. " * 20_000
    rows = ids(pack(texts("a dog", word, "", None, prose, "ran ."), tokenizer, 128))
    text = tokenizer.decode([token for row in rows for token in row[1:-1]], skip_special_tokens=True)
    whole = "a dog" + word + prose + "ran ."
    assert whole.startswith(text) and len(whole) - len(text) < 126 * 24


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("cut.parquet", (CORPUS / "validation.parquet").read_bytes()[:100_000], "magic bytes"),
        ("latin.txt", b"good\n\xff\xfe bad\n", "can't decode byte 0xff"),
        ("rows.jsonl", b'{"text": "fine"}\n{"text": "bro\n', "JSON parse error|Unterminated|Invalid"),
    ],
    ids=["parquet", "txt", "jsonl"],
)
def test_a_broken_file_is_named(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"(?i){name} cannot be read: .*({reason})"):
        load_text(DataSource.parse(f"./{name}", tmp_path))


def test_an_empty_file_holds_no_document(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="empty.txt holds no document."):
        load_text(DataSource.parse("./empty.txt", tmp_path))


def test_rows_are_found_in_the_cache(bert, tmp_path):
    """In a second call and in another process, also after a text beyond the tokenizer's length."""
    (tmp_path / "long.txt").write_text("the cat sat .\n" + "a dog ran . " * 300 + "\n")
    loaded = load_tokenizer(bert)
    documents = load_text(DataSource.parse("./long.txt", tmp_path))
    fingerprint = pack(documents, loaded, 8)._fingerprint
    assert pack(documents, loaded, 8)._fingerprint == fingerprint
    assert pack(documents, loaded, 9)._fingerprint != fingerprint
    script = """import sys; from flm_data import *
documents = load_text(DataSource.parse('./long.txt', sys.argv[2]))
print(pack(documents, load_tokenizer(sys.argv[1]), 8)._fingerprint)"""
    environment = dict(PYTHONPATH=str(ROOT), HF_HOME=str(tmp_path / "home"), PYTHONHASHSEED="1")
    result = run_python("-P", "-c", script, bert, tmp_path, cwd=tmp_path, **environment)
    assert result.stdout.strip() == fingerprint and "longer than the specified maximum" not in result.stderr


def test_fixed_noise(tokenizer, validation):
    rows = with_fixed_noise(pack(validation, tokenizer, 128))
    assert rows["noise_seed"][:] == list(range(len(rows)))
    assert rows["timesteps"][:3] == pytest.approx([0.5, 0.1180339887498949, 0.7360679774997898])
    for n in (8, 100, len(rows)):  # low discrepancy: no point is far from where even spacing has it
        times = sorted(rows["timesteps"][:n])
        assert 0 <= times[0] and times[-1] < 1
        assert max(abs(time - (i + 0.5) / n) for i, time in enumerate(times)) < 2 / n
    batch = default_data_collator([rows[i] for i in range(4)])
    assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == {
        "input_ids": (torch.int64, (4, 128)),
        "noise_seed": (torch.int64, (4,)),
        "timesteps": (torch.float32, (4,)),
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
        ({"eos_token": "[EOS]"}, r"`eos_token` '\[EOS\]' is not in the tokenizer's vocabulary"),
        ({"length": 1000}, "too small: 1 documents fill no row of 1000 tokens"),
        ({"dataset": texts()}, "0 documents fill no row"),
        ({"tokenizer": "bare"}, "no `bos_token`: load it with `load_tokenizer`"),
    ],
    ids=str,
)
def test_packing_refuses(bert, arguments, message):
    dataset = Dataset.from_dict({"text": ["the cat sat"], "n": [1]})
    read = PreTrainedTokenizerFast.from_pretrained if "tokenizer" in arguments else load_tokenizer
    tokenizer = with_ends(read(bert), arguments := dict(arguments))
    with pytest.raises(ValueError, match=message):
        pack(**{"dataset": dataset, "length": 4, **arguments, "tokenizer": tokenizer})


# -- The detokeniser

WRITTEN = {
    "": "",
    "nothing to do": "nothing to do",
    "The end .": "The end.",
    "The end . And more .": "The end. And more.",
    "Who ? Me ?": "Who? Me?",
    "Stop ! Now !": "Stop! Now!",
    "red , white ; blue : all": "red, white; blue: all",
    "he 's here and they 're not": "he's here and they're not",
    "I do n't know": "I do n't know",
    'he said , " no . "': 'he said, "no."',
    'a " word " in quotes': 'a "word" in quotes',
    '" one " and " two "': '"one" and "two"',
    "a ' word ' in quotes": "a 'word' in quotes",
    "a side ( or two ) of it": "a side (or two) of it",
    "a side [ or two ] of it": "a side [or two] of it",
    "and / or": "and/or",
    "see http : / / example.org and https : / / a.b": "see http://example.org and https://a.b",
    "it cost $ 5 , or £ 4": "it cost $5, or £4",
    "at 5.30 p.m. , he left": "at 5.30 p.m., he left",
    "it rose 1.5 .": "it rose 1.5 .",  # as published: only a plain word draws the full stop to it
}


def test_lm1b_detokeniser(gpt2):
    for tokenised, written in WRITTEN.items():
        assert detokenize_lm1b(tokenised) == written
    loaded = load_tokenizer(gpt2)
    rows = ids(pack(texts("It cost $ 5 , or £ 4 ."), loaded, 22, detokenizer="lm1b"))
    assert loaded.decode(rows[0][1:-2]) == "It cost $5, or £4."


# -- Sources


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("files")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").mkdir()
    documents = texts("first document", "second document", "third")
    documents.to_parquet(str(tmp_path / "some.parquet"))
    documents.to_json(str(tmp_path / "some.jsonl"))
    documents.to_csv(str(tmp_path / "some.csv"), index=False)
    (tmp_path / "some.json").write_text(json.dumps(documents.to_list()))
    (tmp_path / "some.txt").write_text("first document\nsecond document\nthird\n")
    (tmp_path / "some.md").write_text("# no corpus\n")
    documents.to_parquet(str(tmp_path / "folder" / "train.parquet"))
    documents.select([2]).to_parquet(str(tmp_path / "folder" / "validation.parquet"))
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json", "csv", "txt"])
def test_local_files(files, suffix, streaming):
    rows = load_text(DataSource.parse(f"../some.{suffix}", files / "folder"), streaming=streaming)
    assert [row["text"] for row in rows] == ["first document", "second document", "third"]


def test_local_folders_and_links(files):
    assert len(load_text(DataSource.parse("./folder", files))) == 3
    assert len(load_text(DataSource.parse(str(files / "folder"), "/"))) == 3
    held_out = DataSource.parse({"path": "./folder", "split": "validation"}, files)
    assert load_text(held_out)["text"][:] == ["third"]
    some = DataSource.parse({"path": "./", "data_files": "some.*l", "split": "train[1:2]"}, files)
    assert load_text(some)["text"][:] == ["second document"]
    (files / "blob").write_text("one\n")
    (files / "link.txt").symlink_to(files / "blob")  # it keeps its own name
    assert load_text(DataSource.parse("./link.txt", files))["text"][:] == ["one"]
    # A folder's README and its tokenizer's files are no part of the data.
    assert len(load_text(DataSource.parse({"path": "./corpus", "split": "test"}, CORPUS.parent))) == 1159


@pytest.mark.parametrize("names", [("alps.txt", "train-journey.txt"), ("alps.txt", "b.jsonl")])
def test_a_folder_of_which_files_would_be_left_out_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text('{"text": "one"}\n')
    with pytest.raises(ValueError, match="alps.txt would be left out.*Name the files by `data_files`"):
        load_text(DataSource.parse(str(tmp_path), "."))
    assert len(load_text(DataSource.parse({"path": str(tmp_path), "data_files": names[1]}, "."))) == 1


def test_a_folder_is_looked_through_as_datasets_does(tmp_path):
    for name in ("train/0.txt", "extra/0.txt", ".ipynb_checkpoints/0-checkpoint.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("one\n")
    with pytest.raises(ValueError, match="read: extra/0.txt would be left out, since"):
        load_text(DataSource.parse(str(tmp_path), "."))
    (tmp_path / "extra" / "0.txt").unlink()
    assert len(load_text(DataSource.parse(str(tmp_path), "."))) == 1


def test_a_name_is_no_pattern(tmp_path):
    (tmp_path / "k [x]").mkdir()
    for name, text in (("data[1].txt", "wanted"), ("data1.txt", "another"), ("k [x]/a.jsonl", '{"text": "wanted"}')):
        (tmp_path / name).write_text(f"{text}\n")
    for name in ("data[1].txt", "k [x]/a.jsonl"):
        for streaming in (False, True):
            assert next(iter(load_text(DataSource.parse(f"./{name}", tmp_path), streaming))) == {"text": "wanted"}
    with pytest.raises(ValueError, match="would be read as a pattern"):
        DataSource.parse("./k [x]", tmp_path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="empty.jsonl holds no document"):
        load_text(DataSource.parse("./empty.jsonl", tmp_path))


def test_rows_are_of_strings(tokenizer):
    with pytest.raises(ValueError, match="A document must be a string, but there is 12, a int"):
        one_row_each(Dataset.from_dict({"text": [12]}), tokenizer, 4)


def test_hub_names_pass_through():
    assert DataSource.parse("wikitext", "/nowhere") == DataSource("wikitext")
    keys = dict(path="org/corpus", name="en", split="test", revision="v1", data_files=["a.csv"])
    assert DataSource.parse(keys, "/nowhere") == DataSource(**keys)
    assert DataSource.parse({"path": "org/corpus", "name": None}, "/nowhere") == DataSource("org/corpus")


@pytest.mark.parametrize(
    "value, message",
    [
        ("./absent.txt", "there is no file or folder .*absent.txt"),
        ("./some.md", r"some.md is none of the files that can be read: .csv, .json, .jsonl, .parquet, .txt"),
        ("./empty", "empty holds no .csv, .json, .jsonl, .parquet, .txt file"),
        ({"path": "org/corpus", "subset": "en"}, r"Unknown keys \['subset'\] in a data source; the keys are \['path'"),
        ({"name": "en"}, "needs a `path`"),
        ("some.txt", "`some.txt` in a data source is a file by its end: a path begins with"),
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


def test_whole_files_are_txt(files):
    (files / "rows.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match="Whole files are documents where they are .txt, but here are others"):
        load_text(DataSource.parse("./rows.jsonl", files), whole_files=True)


# -- What the repository ships


def test_shipped_tokenizer(tokenizer, validation):
    assert len(tokenizer) == tokenizer.vocab_size == 4096 and tokenizer.model_max_length == 128
    assert [getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")] == [0, 1, 2, 3]
    pieces = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    assert tokenizer("the cat")["input_ids"] == [0, *pieces]  # as a row of training text begins
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
    assert f"| validation | {len(validation):,} | {characters:,} |" in readme and f"| {words:,} |" in readme
    assert all(f"`{source}`" in readme for source in set(validation["source"]))


# What scripts make: make_grids.py and make_puzzles.py.
MADE = [f"../examples/sudoku/9x9/{name}.parquet" for name in ("train", "puzzles")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes(path, tmp_path):
    """What the shipped recipes name is known and, but for what scripts make, there."""
    recipe = load_recipe(path)
    model = {key: value for key, value in recipe.model.items() if key not in ("type", "from", "masked")}
    assert recipe.teacher or recipe.model["type"] == "flm"
    assert FLMConfig(vocab_size=100, **model).to_dict().items() >= model.items()
    for source in (recipe.data.train, recipe.data.validation):
        if source and source not in MADE:
            DataSource.parse(source, recipe.folder)
    kind, training = FMLMTrainingArguments if recipe.teacher else FLMTrainingArguments, dict(recipe.training)
    if training.get("objective") == MATCHING:
        kind = MatchingTrainingArguments
        del training["objective"]
    kind(**training | {"bf16": False, "use_cpu": True, "output_dir": str(tmp_path)})  # on any machine
    if path.stem in ("lm1b", "owt"):  # as published: 512 rows a step on 8 processes
        rows = recipe.training["per_device_train_batch_size"] * recipe.training["gradient_accumulation_steps"]
        assert 8 * rows == 512
    if path.stem == "english-small":
        small, length = load_tokenizer(recipe.tokenizer), recipe.model["max_position_embeddings"]
        held_out = load_text(DataSource.parse(recipe.data.validation, recipe.folder))
        assert len(pack(held_out, small, length)) >= recipe.data.max_validation_rows
