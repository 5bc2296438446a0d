"""`pipeline("text-generation")`: the one that a repository brings, as its user calls it."""

import shutil
import subprocess
import sys

import pytest
from transformers import AutoModel, AutoTokenizer

import modeling_flm  # noqa: F401  registers the model types
from benchmarks.results import HUB

FRESH = """
import sys
from transformers import pipeline
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
print("written")
"""


@pytest.fixture(scope="module")
def write():
    folder = HUB / "fmlm-english-small"
    model = AutoModel.from_pretrained(folder).eval()
    return model.pipeline(AutoTokenizer.from_pretrained(folder))


def test_a_repository_brings_it(tmp_path):
    folder = shutil.copytree(HUB / "fmlm-english-small", tmp_path / "fmlm")
    command = [sys.executable, "-P", "-c", FRESH, folder, tmp_path / "again"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "written", done.stderr[-2000:]


def test_it_writes_what_generate_writes(write):
    model, tokenizer = write.model, write.tokenizer
    ids = model.generate(num_steps=2, num_return_sequences=3, seed=5)
    texts = [text["generated_text"] for text in write(num_steps=2, num_return_sequences=3, seed=5)]
    assert texts == tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert write(None, seed=5) == write("", seed=5)


def test_several_texts_one_by_one_or_together(write):
    prompts = ["Once", "In the beginning was the word", ""]
    alone = [write(prompt, num_steps=2, seed=[3]) for prompt in prompts]
    assert write(prompts, num_steps=2, seed=[3]) == alone
    together = write(prompts, num_steps=2, seed=[3, 3, 3], batch_size=3)
    assert together == alone
    several = write(prompts[:2], num_steps=2, num_return_sequences=2, seed=[1, 2, 1, 2], batch_size=2)
    assert [len(texts) for texts in several] == [2, 2]
    assert several[1] == write(prompts[1], num_steps=2, num_return_sequences=2, seed=[1, 2])


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
    [(dict(text_inputs=3), "a prompt must be a text"), (dict(num_beams=2), "does not use: num_beams")],
)
def test_what_it_refuses(write, arguments, message):
    with pytest.raises(ValueError, match=message):
        write(**arguments)
