"""Pieces of run folders that tests write by hand."""

import json
from pathlib import Path
from typing import Any

HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>\"' {{ 7 * 7 }} <!-- ]]>"
"""A text that acts where it is not escaped."""


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """A .jsonl file, its folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def score(name: str, value: float, **fields: Any) -> dict[str, Any]:
    """A score of 50 records as a run writes it."""
    given = {"name": name, "metric": "accuracy", "value": value, "low": value - 0.05, "high": value + 0.05, "count": 50}
    return {**given, "note": "", **fields}
