"""Run folders: two that were really trained, on questions that try to break out of a page, and a builder for others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from run_folders import HOSTILE, write_lines


def question(number: int) -> dict[str, str]:
    answer = "true" if number % 2 else "false"
    text = f"Is {number} odd? {HOSTILE}\n\nAnswer format: true/false"
    return {"instruction": text, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


@pytest.fixture(scope="session")
def trained(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders by method, of the tiny Llama on two commonsense tests."""
    from neuroada.recipe.loading import check_recipe
    from neuroada.training.train import train

    folder = tmp_path_factory.mktemp("trained")
    for place, numbers in (("boolq/test", range(6)), ("piqa/test", range(5)), ("commonsense_15k/train", range(9, 33))):
        write_lines(folder / "data" / "commonsense" / f"{place}.jsonl", [question(number) for number in numbers])
    write_lines(folder / "data" / "commonsense" / "commonsense_15k" / "validation.jsonl", [question(40), question(41)])
    for method, settings in (("neuroada", {"k": 2}), ("lora", {"r": 2})):
        content = {
            "model": {"name": str(tiny_model_dir), "dtype": "bfloat16"},
            "data": {"task": "commonsense", "data_dir": str(folder / "data"), "max_length": 256},
            "evaluation": {"tests": ["boolq", "piqa"], "max_new_tokens": 3},
            "method": method,
            method: settings,
            "training": {
                "num_train_epochs": 2,
                "learning_rate": 0.05,
                "per_device_train_batch_size": 4,
                "logging_steps": 2,
            },
        }
        train(check_recipe(content, "recipe"), folder / method, Console(quiet=True))
    return {method: folder / method for method in ("neuroada", "lora")}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder by hand: its recipe's changes, records, answers and summary (None: unfinished)."""

    def make(
        name: str = "run",
        records: list[dict[str, Any]] | None = None,
        summary: dict[str, Any] | None = None,
        answers: dict[str, list[dict[str, Any]]] | None = None,
        **changes: Any,
    ) -> Path:
        folder = tmp_path / name
        recipe = {
            "model": {"name": "some/model", "dtype": "float32"},
            "data": {"task": "text"},
            "method": "neuroada",
            "neuroada": {"k": 1},
            "training": {"max_steps": 4, "learning_rate": 0.01},
        }
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | changes, sort_keys=False))
        (folder / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {"torch": "2"}}))
        write_lines(folder / "metrics.jsonl", records or [])
        for when, given in (answers or {}).items():
            write_lines(folder / f"answers-{when}.jsonl", given)
        if summary is not None:
            (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return make
