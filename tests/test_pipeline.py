"""`pipeline("text-generation")`: the one that a repository brings, and transformers' own, as their users call them."""

import shutil

import numpy as np
import pytest
import torch
from children import run_python
from tiny import tiny_model
from transformers import AutoModel, AutoTokenizer, GenerationConfig, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from benchmarks.results import HUB

FRESH = """
import sys
from transformers import AutoModel, AutoTokenizer, pipeline
from transformers.utils import logging
logging.disable_progress_bar()
folder = sys.argv[1]
for task in ("text-generation", None):
    write = pipeline(task, model=folder, trust_remote_code=True)
    assert type(write).__name__ == "FLMPipeline" and "modeling_flm" not in sys.modules
    (nothing,) = write(num_steps=1, seed=0)
    one, other = write("In the beginning", num_steps=2, num_return_sequences=2, seed=0)
    assert one["generated_text"] != other["generated_text"] and nothing["generated_text"]
    assert all(text["generated_text"].startswith("In the beginning") for text in (one, other))
write.save_pretrained(sys.argv[2])
again = pipeline("text-generation", model=sys.argv[2], trust_remote_code=True)
assert again("In the beginning", num_steps=2, num_return_sequences=2, seed=0) == [one, other]

model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
(text,) = pipeline("text-generation", model=model, tokenizer=tokenizer)("In the beginning", num_steps=2, seed=0)
assert text == one
print("written")
"""


@pytest.fixture(scope="module")
def write():
    folder = HUB / "fmlm-english-small"
    model = AutoModel.from_pretrained(folder).eval()
    return model.pipeline(AutoTokenizer.from_pretrained(folder))


def texts_of(written) -> list[str]:
    return [text["generated_text"] for text in written]


def test_a_repository_brings_it_and_nothing_is_said(tmp_path):
    folder = shutil.copytree(HUB / "fmlm-english-small", tmp_path / "fmlm")
    done = run_python("-P", "-c", FRESH, folder, tmp_path / "again", cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("written", "")


def test_it_writes_what_generate_writes(write):
    model, tokenizer = write.model, write.tokenizer
    ids = model.generate(num_steps=2, num_return_sequences=3, seed=5)
    texts = texts_of(write(num_steps=2, num_return_sequences=3, seed=5))
    assert texts == tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert write(None, seed=5) == write("", seed=5)


PROMPTS = ["Once", "In the beginning was the word", "", "The king"]


@pytest.mark.parametrize("settings", [{}, {"max_new_tokens": 7}, {"max_new_tokens": 7, "return_full_text": False}])
def test_the_texts_do_not_depend_on_the_batch(write, settings, monkeypatch):
    """The i-th sequence takes seed + i, or seed[i], of a list, a tuple, a generator or a data set alike."""
    settings = settings | {"num_steps": 2, "num_return_sequences": 2}
    alone = [write(prompt, seed=20 + 2 * i, **settings) for i, prompt in enumerate(PROMPTS)]
    assert len({text for texts in alone for text in texts_of(texts)}) == 8
    if "max_new_tokens" in settings:
        for prompt, texts in zip(PROMPTS, alone, strict=True):
            ids = write.tokenizer(prompt, return_tensors="pt").input_ids if prompt else None
            seeds = {"seed": 20 + 2 * PROMPTS.index(prompt)}
            out = write.model.generate(ids, num_steps=2, num_return_sequences=2, max_new_tokens=7, **seeds)
            assert out.shape[1] == 7 + (0 if ids is None else ids.shape[1])
            if "return_full_text" in settings:
                out = out[:, -7:]
            assert texts_of(texts) == write.tokenizer.batch_decode(out, skip_special_tokens=True)
    for side in ("right", "left"):
        monkeypatch.setattr(write.tokenizer, "padding_side", side)
        for batch_size in (1, 2, 3):
            assert write(PROMPTS, seed=20, batch_size=batch_size, **settings) == alone
    assert write(tuple(PROMPTS), seed=list(range(20, 28)), batch_size=3, **settings) == alone
    assert [*write((prompt for prompt in PROMPTS), seed=20, batch_size=2, **settings)] == alone
    assert write(PROMPTS, seed=range(20, 28), batch_size=3, **settings) == alone
    assert write(PROMPTS, seed=np.int64(20), batch_size=3, **settings) == alone
    data = KeyDataset([{"text": prompt} for prompt in PROMPTS], "text")
    assert [*write(data, seed=torch.arange(20, 28), batch_size=3, **settings)] == alone


def test_padding_is_no_text(write):
    shown = write(PROMPTS, num_steps=1, max_new_tokens=3, seed=0, batch_size=4, skip_special_tokens=False)
    given = (write.tokenizer(prompt).input_ids if prompt else [] for prompt in PROMPTS)
    for ids, texts in zip(given, shown, strict=True):
        again = write.tokenizer(texts_of(texts), add_special_tokens=False).input_ids
        assert write.tokenizer.pad_token_id not in again[0] and len(again[0]) <= len(ids) + 3


def test_each_text_ends_where_it_ends(write):
    settings = dict(num_steps=1, num_return_sequences=20, seed=0)
    ids = write.model.generate(**settings)
    eos = int(ids[0, 40])
    texts = write(**settings, eos_token_id=eos, pad_after_eos=True, skip_special_tokens=False)
    lengths = [row.index(eos) + 1 if eos in row else len(row) for row in ids.tolist()]
    assert len(set(lengths)) > 2
    for row, length, text in zip(ids, lengths, texts_of(texts), strict=True):
        assert text == write.tokenizer.decode(row[:length])


def test_seeds_are_those_of_the_global_generator_without_one(write):
    written = []
    for batch_size in (1, 3):
        torch.manual_seed(4)
        written.append(write(PROMPTS, num_steps=1, max_new_tokens=4, batch_size=batch_size))
    assert written[0] == written[1]


def test_seeds_may_be_arrays(write):
    asked = dict(num_steps=1, max_new_tokens=4)
    expected = write(PROMPTS, seed=list(range(len(PROMPTS))), **asked)
    for seeds in (np.arange(len(PROMPTS)), torch.arange(len(PROMPTS))):
        assert write(PROMPTS, seed=seeds, **asked) == expected
    with pytest.raises(ValueError, match="`seed` must be"):
        write("Once", seed=torch.tensor(3))


def test_blanks_and_what_follows(write):
    mask = write.tokenizer.mask_token
    (filled,) = write(f"He said{mask}{mask} the king.", num_steps=4, max_length=12, seed=0)
    assert filled["generated_text"].startswith("He said") and " the king." in filled["generated_text"]
    (whole,) = write("In the beginning", num_steps=2, seed=0)
    (rest,) = write("In the beginning", num_steps=2, seed=0, return_full_text=False)
    assert whole["generated_text"] == "In the beginning" + rest["generated_text"]
    (special,) = write(num_steps=1, seed=0, skip_special_tokens=False)
    assert special["generated_text"].startswith(write.tokenizer.bos_token)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(text_inputs=3), "a prompt must be a text"),
        (dict(text_inputs=["Once", 3]), "a prompt must be a text"),
        (dict(num_beams=2), "does not use: num_beams"),
        (dict(text_inputs=["Once", "The"], seed=[1]), "`seed` has 1 entries for 2 sequences"),
        (dict(seed=[1, 2]), "`seed` has 2 entries for 1 sequences"),
        (dict(seed="x"), "`seed` must be integers"),
    ],
)
def test_what_it_refuses(write, arguments, message):
    with pytest.raises(ValueError, match=message):
        write(**arguments)


def test_no_texts_are_none(write):
    assert write([]) == []


# -- transformers' own, around a model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(write):
    tokenizer = AutoTokenizer.from_pretrained(HUB / "fmlm-english-small")
    return pipeline("text-generation", model=write.model, tokenizer=tokenizer)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_new_tokens": 6},
        {"temperature": 0.5, "num_steps": 3},
        {"num_return_sequences": 2},
        {"generation_config": GenerationConfig(max_new_tokens=9)},
    ],
    ids=str,
)
def test_a_model_in_transformers_own_pipeline(own, settings):
    """Its defaults (256 new tokens, a temperature) are not the user's, and a text is what `generate` writes of it."""
    expected = []
    for prompt in ("In the beginning", "Once", ""):
        ids = own.tokenizer(prompt, return_tensors="pt").input_ids
        out = own.model.generate(ids, seed=3, **settings)
        expected.append(own.tokenizer.batch_decode(out, skip_special_tokens=True))
        assert texts_of(own(prompt, seed=3, **settings)) == expected[-1]
    assert [texts_of(written) for written in own(["In the beginning", "Once", ""], seed=3, **settings)] == expected


def test_its_defaults_are_no_part_of_a_saved_model(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    config = AutoModel.from_pretrained(tmp_path).generation_config
    assert config.temperature is None and config.max_new_tokens is None
