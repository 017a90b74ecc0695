"""Records of a data set: JSON lines in a folder, or rows on the hub, each checked before anything is trained."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from neuroada.errors import MissingInputError

Fields = Mapping[str, type | tuple[type, ...]]
Hub = tuple[str, str | None, str]
"""Name, configuration and split, as `datasets.load_dataset` takes them."""

SUFFIXES = ("", ".jsonl", ".jsonl.gz", ".json", ".json.gz")

NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def read_records(path: Path, fields: Fields, may_be_empty: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The records of a file of JSON lines (of one JSON list, where the name ends in .json), gzipped if it ends in .gz.

    Each has the `fields` with those types, and others unchecked. Text is not blank unless its field `may_be_empty`.
    Record i of JSON lines stands on line i + 1.

    Raises:
        MissingInputError: the file cannot be read, or a record is not as said; the message names file and line.
    """
    if not path.is_file():
        found = "a folder, not a file" if path.is_dir() else "no such file"
        raise MissingInputError(f"data file {path}", found, "Give the path of a file of JSON lines")
    records = []
    for place, record in _parsed(path):
        check_record(record, place, fields, may_be_empty)
        records.append(record)
    if not records:
        raise MissingInputError(f"data file {path}", "it has no record in it", "Give a file with a record a line")
    return records


def check_record(record: Any, place: str, fields: Fields, may_be_empty: Sequence[str] = ()) -> None:
    """Raise MissingInputError, naming `place`, unless the record is an object with those fields."""
    if not isinstance(record, dict):
        raise MissingInputError(place, f"{_kind(record)}, not an object", f"Write an object with {_listed(fields)}")
    missing = [name for name in fields if name not in record]
    if missing:
        found = f"no {_listed(missing)}; it has {_listed(record) or 'no field'}"
        raise MissingInputError(place, found, f"Write an object with {_listed(fields)}")
    for name, types in fields.items():
        value = record[name]
        types = types if isinstance(types, tuple) else (types,)
        if not _is_a(value, types):
            wanted = " or ".join(NAMES[kind] for kind in types)
            raise MissingInputError(place, f"{name!r} is {_kind(value)}", f"Write {wanted} there")
        if isinstance(value, str) and not value.strip() and name not in may_be_empty:
            raise MissingInputError(place, f"{name!r} is empty", f"Fill in {name!r}, or leave the record out")


def find_file(data_dir: Path, *candidates: str) -> Path:
    """The first of the candidates that is a file in the folder, as given or ending in .jsonl, .json, or those and .gz.

    Raises:
        MissingInputError: there is no such folder, or none of the files in it.
    """
    if not data_dir.is_dir():
        found = "a file, not a folder" if data_dir.exists() else "no such folder"
        do = f"Give the folder that holds {candidates[0]}.jsonl.gz"
        raise MissingInputError(f"data folder {data_dir}", found, do)
    for candidate in candidates:
        for suffix in SUFFIXES:
            if (path := data_dir / f"{candidate}{suffix}").is_file():
                return path
    looked = " or ".join(candidates)
    found = f"no {looked}, ending in .jsonl, .jsonl.gz, .json or .json.gz, in {data_dir.resolve()}"
    raise MissingInputError(f"data folder {data_dir}", found, f"Put {candidates[0]}.jsonl.gz there")


def load_records(
    data_dir: Path | None,
    candidates: Sequence[str],
    fields: Fields,
    hub: Hub | None,
    may_be_empty: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Records from the folder, or without one from the hub, checked alike.

    Raises:
        MissingInputError: they are in neither, or one of them lacks a field.
    """
    if data_dir is not None:
        return read_records(find_file(data_dir, *candidates), fields, may_be_empty)
    give = f"Give --data-dir with {candidates[0]}.jsonl.gz in it" if candidates else "Give another name"
    if hub is None:
        raise MissingInputError(f"data set {candidates[0]}", "it is not on the hub in its published form", give)
    place = describe_hub(hub)
    name, configuration, split = hub
    try:
        rows: Any = datasets.load_dataset(name, configuration, split=split)
    except Exception as error:  # the transport library, and with it its errors, varies by version of the hub's client
        reason = (str(error).splitlines() or [type(error).__name__])[0].removesuffix(".")
        raise MissingInputError(place, f"the hub does not give it ({reason})", f"{give}, or connect") from error
    records = list(rows)
    if not records:
        raise MissingInputError(place, "it has no row", give)
    for number, record in enumerate(records, start=1):
        check_record(record, f"{place}, row {number}", fields, may_be_empty)
    return records


def find_place(data_dir: Path | None, candidates: Sequence[str], hub: Hub | None) -> str:
    """Where `load_records` takes the same set from: the file, or the hub name with its split."""
    if data_dir is not None:
        return str(find_file(data_dir, *candidates))
    return describe_hub(hub) if hub else "nowhere"


def describe_hub(hub: Hub) -> str:
    """The set and its split, for headers and messages: "hub:openai/gsm8k/main/test"."""
    return "hub:" + "/".join(part for part in hub if part)


def _parsed(path: Path) -> Iterator[tuple[str, Any]]:
    """(file and line, value) of each record."""
    names = path.name.removesuffix(".gz")
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as lines:
            yield from _list(lines.read(), path) if names.endswith(".json") else _lines(lines, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise MissingInputError(f"data file {path}", f"it is not whole gzip ({error})", "Copy it again") from error
    except MissingInputError:
        raise
    except OSError as error:
        found = f"it cannot be read ({error.strerror or error})"
        raise MissingInputError(f"data file {path}", found, "Give a file that you may read") from error


def _lines(lines: Iterable[bytes], path: Path) -> Iterator[tuple[str, Any]]:
    blank = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            blank = blank or number
            continue
        if blank:
            raise MissingInputError(f"{path}, line {blank}", "it is empty", "Take the line out, or fill it in")
        place = f"{path}, line {number}"
        yield place, _value(line, place, first=number == 1)


def _list(content: bytes, path: Path) -> Iterator[tuple[str, Any]]:
    if not content.strip():
        return
    records = _value(content, f"data file {path}", first=True)
    if not isinstance(records, list):
        found = f"{_kind(records)}, not a list"
        raise MissingInputError(f"data file {path}", found, "Write a list of objects, or JSON lines ending in .jsonl")
    for number, record in enumerate(records, start=1):
        yield f"{path}, record {number}", record


def _value(text: bytes, place: str, first: bool) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig" if first else "utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise MissingInputError(place, f"byte {error.start} is not UTF-8", "Convert the file to UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise MissingInputError(place, f"it is not JSON ({error})", "Write one JSON object a record") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _is_a(value: Any, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, (*types, int) if float in types else types)


def _kind(value: Any) -> str:
    return "null" if value is None else NAMES.get(type(value), type(value).__name__)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
