"""Where text comes from, how it is split, how it is packed."""

import re
from pathlib import Path

import pytest

from neuroada.errors import ConfigError, MissingInputError
from neuroada.tasks.text import pack, read_text, split_files, split_topics


def paragraphs(documents: list[str]) -> set[str]:
    return {" ".join(p.split()) for document in documents for p in re.split(r"\n\s*\n", document) if p.strip()}


def test_topics_share_no_paragraph_across_the_split():
    split = split_topics(0.1, seed=0)
    assert not paragraphs(split.train) & paragraphs(split.held_out)


def test_topics_hold_out_about_the_share_that_was_asked():
    split = split_topics(0.1, seed=0)
    held_out, train = (sum(map(len, part)) for part in (split.held_out, split.train))
    assert 0.05 < held_out / (held_out + train) <= 0.1


def test_topics_split_follows_the_seed():
    assert split_topics(0.1, seed=3) == split_topics(0.1, seed=3)
    assert split_topics(0.1, seed=3) != split_topics(0.1, seed=4)


def test_file_is_cut_at_a_line_and_nothing_is_lost(tmp_path: Path):
    lines = [f"line {number}\n" for number in range(100)]
    path = tmp_path / "text.txt"
    path.write_text("".join(lines))
    split = split_files([path], "text", held_out=0.2)
    assert split.train[0] + split.held_out[0] == "".join(lines)
    assert split.held_out[0].startswith("line ")
    assert 15 <= split.held_out[0].count("\n") <= 21


def test_one_long_line_is_cut_inside(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("abcde" * 100)
    split = split_files([path], "text", held_out=0.2)
    assert (len(split.train[0]), len(split.held_out[0])) == (400, 100)


def test_folder_gives_all_its_text_files_in_order(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "second.txt").write_text("second\n" * 10)
    (tmp_path / "a.txt").write_text("first\n" * 10)
    (tmp_path / "ignored.md").write_text("ignored\n")
    split = read_text(None, tmp_path, held_out=0.3, seed=0)
    assert [document.split()[0] for document in split.train] == ["first", "second"]
    assert len(split.held_out) == 2


def test_packing_keeps_every_token_in_order_but_the_remainder(byte_tokenizer):
    documents = ["héllo wörld\n" * 2000, "second"]
    blocks = pack(documents, byte_tokenizer, 32, "text")
    ids = [token for block in blocks["input_ids"] for token in block]
    end = byte_tokenizer.eos_token_id
    expected = [token for document in documents for token in [*byte_tokenizer.encode(document), end]]
    assert len(ids) == len(expected) // 32 * 32
    assert ids == expected[: len(ids)]
    assert blocks["labels"] == blocks["input_ids"]


def test_too_little_text_for_a_block(byte_tokenizer):
    with pytest.raises(ConfigError, match=r"blocks of 32 tokens from tiny: 6 tokens .* Give more text, or lower"):
        pack(["short"], byte_tokenizer, 32, "tiny")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file. Give the path of a UTF-8 text file"),
        (b" \n\n", "it is empty. Give a file with text in it"),
        (b"caf\xe9", "byte 3 is not UTF-8. Convert the file"),
    ],
)
def test_bad_text_file(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MissingInputError, match=f"text file {path}: {message}"):
        read_text(path, None, 0.1, 0)


def test_text_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "text.txt"
    path.write_text("text")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)  # root may read every file
    with pytest.raises(MissingInputError, match=r"it cannot be read \(Permission denied\). Give a file that you may"):
        read_text(path, None, 0.1, 0)


def test_text_file_that_is_a_folder(tmp_path: Path):
    with pytest.raises(MissingInputError, match="a folder, not a file"):
        read_text(tmp_path, None, 0.1, 0)


def test_bad_data_folder(tmp_path: Path):
    with pytest.raises(MissingInputError, match=r"no such folder. Give a folder of .txt files"):
        read_text(None, tmp_path / "absent", 0.1, 0)
    with pytest.raises(MissingInputError, match=r"no \.txt file in it"):
        read_text(None, tmp_path, 0.1, 0)
