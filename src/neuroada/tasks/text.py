"""Causal language modelling on plain text: where the text comes from, how it is split, how it is packed."""

import random
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from neuroada.errors import ConfigError, MissingInputError

PIECE_CHARACTERS = 10_000
"""Long documents are tokenised in pieces of about this length, so that a bar can show progress."""

BAR_CHARACTERS = 4_000_000
"""About two seconds of tokenising on two cores; a bar appears for more than this."""


@dataclass(frozen=True)
class TextSplit:
    """Documents to train on and documents held out."""

    source: str
    train: list[str]
    held_out: list[str]


def read_text(text: Path | None, data_dir: Path | None, held_out: float, seed: int) -> TextSplit:
    """The split of one text file, of a folder's .txt files, or by default of Python's own manual.

    Files give the last `held_out` share of each; the manual is split by topic, seeded.
    """
    if text is not None:
        return split_files([text], str(text), held_out)
    if data_dir is not None:
        return split_files(_text_files(data_dir), str(data_dir), held_out)
    return split_topics(held_out, seed)


def split_topics(held_out: float, seed: int) -> TextSplit:
    """The help topics that every CPython carries, split by topic.

    Many topics repeat passages of longer ones, which would leak across the split. So each paragraph stays
    only in the longest topic that has it, and topics left with less than half of their text are dropped.
    """
    from pydoc_data.topics import topics

    own = _without_repeats(topics)
    names = sorted(own)
    random.Random(seed).shuffle(names)
    room = held_out * sum(map(len, own.values()))
    chosen = set()
    for name in names:
        if len(own[name]) <= room:
            chosen.add(name)
            room -= len(own[name])
    return TextSplit(
        source=f"pydoc_data.topics ({len(names) - len(chosen)} topics to train, {len(chosen)} held out)",
        train=[own[name] for name in names if name not in chosen],
        held_out=[own[name] for name in names if name in chosen],
    )


def split_files(paths: list[Path], source: str, held_out: float) -> TextSplit:
    """Every file's last `held_out` share of characters, cut at the end of a line, is held out."""
    train, last = [], []
    for path in paths:
        content = _read(path)
        cut = content.find("\n", int(len(content) * (1 - held_out))) + 1
        cut = cut or int(len(content) * (1 - held_out))
        train.append(content[:cut])
        last.append(content[cut:])
    return TextSplit(source, _filled(train), _filled(last))


def pack(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, block_length: int, source: str
) -> datasets.Dataset:
    """Tokenise, join with end-of-text tokens, and cut into blocks; the remainder is dropped.

    Returns rows of `input_ids` and equal `labels`, int64 [block_length] each.
    """
    pieces = [piece for document in documents for piece in _pieces(document)]
    rows = datasets.Dataset.from_dict({"text": [text for text, _ in pieces], "ends": [ends for _, ends in pieces]})
    with _bars(sum(len(text) for text, _ in pieces) > BAR_CHARACTERS):
        tokens = rows.map(
            lambda batch: {"input_ids": _tokenise(batch, tokenizer)},
            batched=True,
            remove_columns=["text", "ends"],
            desc="Tokenising",
        )
        blocks: Any = tokens.map(
            lambda batch: _blocks(batch["input_ids"], block_length),
            batched=True,
            remove_columns=["input_ids"],
            desc="Packing",
        )
    if not len(blocks):
        found = sum(map(len, tokens["input_ids"]))
        raise ConfigError(
            f"blocks of {block_length} tokens from {source}",
            f"{found} tokens in one part of the split, less than one block",
            "Give more text, or lower data.block_length",
        )
    return blocks


def _without_repeats(topics: dict[str, str]) -> dict[str, str]:
    seen: set[str] = set()
    own = {}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = [p for p in re.split(r"\n\s*\n", topics[name]) if p.strip()]
        fresh = [p for p in paragraphs if " ".join(p.split()) not in seen]
        seen.update(" ".join(p.split()) for p in fresh)
        text = "\n\n".join(fresh)
        if len(text) >= len(topics[name]) / 2:
            own[name] = text
    return own


def _text_files(folder: Path) -> list[Path]:
    asked = f"data folder {folder}"
    if not folder.is_dir():
        found = "a file, not a folder" if folder.exists() else "no such folder"
        raise MissingInputError(asked, found, "Give a folder of .txt files, or one file with --text")
    paths = sorted(folder.rglob("*.txt"))
    if not paths:
        raise MissingInputError(asked, "no .txt file in it", "Put UTF-8 text files ending in .txt there")
    return paths


def _read(path: Path) -> str:
    asked = f"text file {path}"
    if not path.is_file():
        found = "a folder, not a file" if path.is_dir() else "no such file"
        raise MissingInputError(asked, found, "Give the path of a UTF-8 text file")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        found = f"byte {error.start} is not UTF-8"
        raise MissingInputError(asked, found, "Convert the file to UTF-8") from None
    except OSError as error:
        found = f"it cannot be read ({error.strerror or error})"
        raise MissingInputError(asked, found, "Give a file that you may read") from error
    if not content.strip():
        raise MissingInputError(asked, "it is empty", "Give a file with text in it")
    return content


def _filled(documents: list[str]) -> list[str]:
    return [document for document in documents if document.strip()]


def _pieces(document: str) -> Iterator[tuple[str, bool]]:
    start = 0
    while start < len(document):
        stop = document.find("\n", start + PIECE_CHARACTERS) + 1 or len(document)
        yield document[start:stop], stop == len(document)
        start = stop


def _tokenise(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
    return [ids + end if ends else ids for ids, ends in zip(encoded, batch["ends"], strict=True)]


def _blocks(rows: list[list[int]], length: int) -> dict[str, list[list[int]]]:
    tokens = [token for row in rows for token in row]
    blocks = [tokens[i : i + length] for i in range(0, len(tokens) - length + 1, length)]
    return {"input_ids": blocks, "labels": blocks}


@contextmanager
def _bars(show: bool) -> Iterator[None]:
    hidden_before = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if show else datasets.disable_progress_bars)()
    try:
        yield
    finally:
        (datasets.disable_progress_bars if hidden_before else datasets.enable_progress_bars)()
