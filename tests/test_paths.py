"""What is a path and what a name on the Hub, and what is said where it is neither."""

import pytest
from huggingface_hub import constants

from flm_data.paths import check_links, check_path, is_path, reading

PATHS = ["./x", "../x", "/x", "~/x", "a/b/c", "a/", "corpus.txt", "a/rows.parquet", "last.ckpt", "two words", ".", ""]
NAMES = ["gpt2", "org/model", "org/model-2.5", "org/model@main", "org/model@refs/pr/1", "hf://datasets/a/b/c.parquet"]


def test_a_path_is_told_from_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [name for name in PATHS if not is_path(name)] == []
    assert [name for name in NAMES if is_path(name)] == []
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert is_path("org/model")
    check_path("org/model")
    check_path("gpt2")


@pytest.mark.parametrize("name", ["./x", "a/b/c", "corpus.txt"])
def test_a_path_to_nothing_is_named(name):
    with pytest.raises(ValueError, match=f"^there is no file or folder {name}\\.$"):
        check_path(name)
    with pytest.raises(ValueError, match=f"^there is no file or folder {name}\\.$"), reading(name):
        raise AssertionError("nothing is to be read")


def test_what_cannot_be_had_from_the_hub_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="no file or folder org/model, .* in offline mode"), reading("org/model"):
        raise OSError("We couldn't connect")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match="no file or folder org/model, .*: We couldn't"), reading("org/model"):
        raise OSError("We couldn't connect")
    (tmp_path / "models--org--model" / "snapshots").mkdir(parents=True)
    with pytest.raises(OSError, match="^damaged$"), reading("org/model@main"):  # it was had: something else is wrong
        raise OSError("damaged")


def test_a_checkout_without_links_is_told_what_to_do(tmp_path):
    (tmp_path / "modeling_flm.py").write_text("../../modeling_flm/modeling_flm.py")
    with pytest.raises(ValueError, match="modeling_flm.py should be a link .* `git config core.symlinks true`"):
        check_links(tmp_path)
    (tmp_path / "modeling_flm.py").write_text('"""Code."""')
    check_links(tmp_path)
