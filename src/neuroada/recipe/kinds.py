"""Kinds of values that several keys of a recipe have, each with the bounds beyond which nothing can be meant."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

MAX_NAME, MAX_PART = 4096, 255
"""Bytes of a path, and of a file's or folder's name in it, that Linux takes."""


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is asked for, and this is a truth value")
    return value


def _name(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty; give a name, or leave the key out")
    if "\0" in text:
        raise ValueError("it has a NUL character in it; take it out")
    if len(text.encode()) > MAX_NAME or max(len(part.encode()) for part in text.split("/")) > MAX_PART:
        raise ValueError(f"it is longer than a name can be ({MAX_PART} bytes, {MAX_NAME} for a path)")
    return text


def _place(value: Any) -> Any:
    if isinstance(value, str | Path):
        _name(str(value))
    elif value is not None:
        raise ValueError("it is not the path of a file or folder")
    return value


Number = BeforeValidator(_no_truth)

Count = Annotated[int, Field(gt=0, le=10**9), Number]
"""Records, steps or blocks of a training: fewer than a thousand million."""

Batch = Annotated[int, Field(gt=0, le=10**6), Number]
"""Samples at a time, and batches before a step."""

Length = Annotated[int, Field(gt=0, le=10**7), Number]
"""Tokens of one sample: ten times as many as any model reads today."""

Side = Annotated[int, Field(gt=0, le=2**14), Number]
"""Pixels."""

Bytes = Annotated[int, Field(gt=0, le=2**60), Number]

Seed = Annotated[int, Field(ge=0, le=2**32 - 1), Number]
"""What NumPy takes as a seed, and with it Trainer."""

MAX_REAL = 1e38
"""About the largest float32."""

Positive = Annotated[float, Field(gt=0, le=MAX_REAL), Number]
NotNegative = Annotated[float, Field(ge=0, le=MAX_REAL), Number]
Epochs = Annotated[float, Field(gt=0, le=10**6), Number]
Share = Annotated[float, Field(gt=0, le=1), Number]
Fraction = Annotated[float, Field(gt=0, lt=1), Number]

Name = Annotated[str, AfterValidator(_name)]
"""Of a model, a set or a test."""

Place = Annotated[Path, BeforeValidator(_place)]
"""A path, which need not be there yet."""
