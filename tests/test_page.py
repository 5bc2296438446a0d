"""The page that plays how texts come about."""

import html
import json
import re
import shutil
import subprocess

import pytest
import torch
from tiny import random_ids, tiny_model
from tokenizers.decoders import WordPiece

from hub_cards.page import texts_of_tokens, write_page


class Tokenizer:
    """Token 7 is what a page must not take for markup."""

    def decode(self, ids):
        return "".join("</script><!-- & \u00e9" if token == 7 else f"<{token}>" for token in ids)


class Bytes:
    """A token is a byte."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


def data_of(path) -> dict:
    page = path.read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", ""), "the page needs no network"
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_holds_every_draft(tmp_path):
    model, prompt = tiny_model("fmlm"), random_ids(1, 4)
    path = tmp_path / "page.html"
    ids = write_page(path, model, Tokenizer(), [1, 3], prompt, title="Two ways", num_return_sequences=2, seed=5)
    data = data_of(path)
    assert data["title"] == "Two ways" and [column["steps"] for column in data["columns"]] == [1, 3]
    for column in data["columns"]:
        out = model.generate(prompt, num_steps=column["steps"], num_return_sequences=2, seed=5, output_trajectory=True)
        assert column["seconds"] > 0
        for i, sample in enumerate(column["samples"]):
            assert sample["texts"] == [
                [Tokenizer().decode([token]) for token in draft] for draft in out.trajectory[:, i].tolist()
            ]
            torch.testing.assert_close(torch.tensor(sample["confidence"]), out.confidence[:, i], atol=6e-4, rtol=0)
            assert sample["given"] == [True] * 4 + [False] * 8
    assert torch.equal(ids, out.sequences)


def test_a_character_of_several_tokens_is_shown_whole():
    text = "a\u00e9\u20ac\U0001f600b"
    shown = texts_of_tokens(list(text.encode()), Bytes().decode)
    assert shown == ["a", "", "\u00e9", "", "", "\u20ac", "", "", "", "\U0001f600", "b"]
    broken = [*b"a", 0xE2, None, *b"b", *[0x80] * 5]  # no character: what there is, after four bytes at most
    assert texts_of_tokens(broken, Bytes().decode) == ["a", "\ufffd", None, "b", "", "", "", "\ufffd" * 4, "\ufffd"]


def test_words_of_tokenizers_that_put_spaces_between_tokens_are_apart():
    pieces, decoder = ["the", "cat", "##s", "."], WordPiece()
    shown = texts_of_tokens([0, 1, 2, 3, None, 1], lambda ids: decoder.decode([pieces[i] for i in ids]))
    assert shown == ["the", " cat", "s", ".", None, "cat"]


def test_columns_share_their_seeds_and_tokens_are_no_markup(tmp_path):
    model, path = tiny_model(), tmp_path / "page.html"
    everything = torch.arange(61)[None].repeat(1, 1)[:, :12]
    write_page(path, model, Tokenizer(), [2, 2], everything[:, :11])
    data = data_of(path)
    assert data["columns"][0]["samples"] == data["columns"][1]["samples"]
    assert data["columns"][0]["samples"][0]["texts"][0][7] == "</script><!-- & \u00e9"


def test_what_generate_refuses_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`num_steps` must be an integer >= 1"):
        write_page(tmp_path / "page.html", tiny_model(), Tokenizer(), [0])
    assert not (tmp_path / "page.html").exists()


BROWSER = shutil.which("chromium")


def dumped(path, moment: str, folder) -> str:
    """The page as a browser has it at a moment."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000", "--dump-dom"]
    command += [f"--user-data-dir={folder}/profile", f"file://{path}{moment}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=600).stdout


def shown_in(page: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<span[^>]*>(.*?)</span>", page)]


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize("moment, step", [("#1", 3), ("#0", 0), ("#0.7", 2)])
def test_a_browser_shows_the_drafts(tmp_path, moment, step):
    model, prompt, path = tiny_model(), random_ids(1, 4), tmp_path / "page.html"
    write_page(path, model, Tokenizer(), [3], prompt, seed=5)
    out = model.generate(prompt, num_steps=3, seed=5, output_trajectory=True)
    page = dumped(path, moment, tmp_path)
    assert f"{step} of 3 evaluations" in page
    drawn = [Tokenizer().decode([token]) for token in out.trajectory[max(step - 1, 0), 0].tolist()]
    assert shown_in(page) == (drawn if step else drawn[:4] + ["\u00b7"] * 8)


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_browser_shows_drafts_of_several_evaluations(tmp_path):
    """Guidance takes two for each."""
    model, path = tiny_model(), tmp_path / "page.html"
    settings = dict(guidance_dropout=0.3, guidance_scale=2.0)
    ids = write_page(path, model, Tokenizer(), [2], random_ids(1, 4), seed=5, **settings)
    page = dumped(path, "#1", tmp_path)
    assert "4 of 4 evaluations" in page and shown_in(page) == [
        Tokenizer().decode([token]) for token in ids[0].tolist()
    ]
    assert shown_in(dumped(path, "#0.3", tmp_path))[4:] == ["\u00b7"] * 8
