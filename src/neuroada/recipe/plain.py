"""What a file can say at all: plain values, neither too many nor too deep; and values as an error shows them."""

import math
import reprlib
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from neuroada.errors import ConfigError

MAX_DEPTH = 32
"""Lists and mappings inside one another; a choice, far above what any recipe, study or search space needs."""

MAX_PARTS = 100_000
"""Values in one file, those that aliases repeat counted each time; a choice."""

MAX_WHOLE = 2**63 - 1
"""Whole numbers beyond 64 bits fit no tensor."""

SHOWN = 80
"""Characters of a value that an error repeats."""


def shortened(text: str, most: int = SHOWN) -> str:
    """A text in one line, its middle left out where it is longer than `most`."""
    line = " ".join(text[: 20 * most].split()).encode("utf-8", "backslashreplace").decode()
    if len(text) <= 20 * most and len(line) <= most:
        return line
    half = (most - 5) // 2
    end = " ".join(text[-most:].split()).encode("utf-8", "backslashreplace").decode()
    return f"{line[:half]} ... {end[-half:]}"


class _Repr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, SHOWN, SHOWN
        self.maxlist = self.maxdict = self.maxset = self.maxtuple = 6

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 200 else "a number of too many digits"


_REPR = _Repr()


def shown(value: Any) -> str:
    """A value as an error repeats it: short, and a single one as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shortened(_REPR.repr(value), 2 * SHOWN)


def require_plain(value: Any, asked: str) -> None:
    """Raise ConfigError unless `value` is made of texts, finite numbers, truth values, nothing, lists and mappings.

    asked: what the error names, before the place inside it.
    """
    left = [MAX_PARTS]
    _require(value, asked, (), left)


def _require(value: Any, asked: str, place: tuple[str, ...], left: list[int]) -> None:
    left[0] -= 1
    if left[0] < 0:
        raise ConfigError(asked, f"it holds more than {MAX_PARTS:,} values", "Leave out what repeats others")
    if len(place) > MAX_DEPTH:
        raise ConfigError(asked, f"it is nested more than {MAX_DEPTH} levels deep", "Write it with fewer levels")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _require(key, asked, (*place, "a key"), left)
            _require(inner, asked, (*place, str(key)), left)
    elif isinstance(value, list | tuple | set | frozenset):
        for index, inner in enumerate(value):
            _require(inner, asked, (*place, str(index)), left)
    elif problem := _problem(value):
        at = f"{shortened('.'.join(place))}: " if place else ""
        raise ConfigError(asked, at + problem[0], problem[1])


def _problem(value: Any) -> tuple[str, str] | None:
    """What is wrong with a single value, and what to do."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return (f"{shown(value)} is beyond 64 bits", "Give a smaller number") if abs(value) > MAX_WHOLE else None
    if isinstance(value, float):
        return None if math.isfinite(value) else (f"{value} is no finite number", "Give a finite number")
    if isinstance(value, str | PurePath):
        return _text_problem(str(value))
    kind = type(value).__name__
    return f"it is of the type {kind}, which no setting has", "Write it in quotes if a text is meant"


def _text_problem(text: str) -> tuple[str, str] | None:
    if "\0" in text:
        return f"the text {shown(text)} has a NUL character in it", "Take it out"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return f"the text {shown(text)} has characters that are half of one", "Write it as UTF-8"
    return None
