"""Pieces of run folders that tests write by hand."""

import json
from pathlib import Path
from typing import Any

HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>\"' {{ 7 * 7 }} <!-- ]]>"
"""A text that acts where it is not escaped."""
FINISHED = {
    "trainable_parameters": 1000,
    "parameters": 100_000,
    "surviving_deltas": None,
    "steps": 4,
    "training_seconds": 300.0,
    "seconds": 400.0,
    "tokens_per_second": 1234.5,
    "peak_memory_bytes": 2_000_000,
    "peak_memory_of": "resident, whole process",
    "adapter_bytes": 5_000,
    "merge": {"equal": False, "logits": 10, "differing": 2, "largest": 0.5},
}
"""The summary of a run that has ended."""
COMMONSENSE = {"task": "commonsense", "train_set": "commonsense_15k", "train_records": 100}


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """A .jsonl file, its folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def score(name: str, value: float, **fields: Any) -> dict[str, Any]:
    """A score of 50 records as a run writes it."""
    given = {"name": name, "metric": "accuracy", "value": value, "low": value - 0.05, "high": value + 0.05, "count": 50}
    return {**given, "note": "", **fields}


def scored(when: str, *scores: dict) -> dict:
    return {"event": "scores", "when": when, "scores": list(scores)}
