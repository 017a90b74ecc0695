"""What would stop a run in its middle is told before the first step, by a dry run too."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from neuroada.errors import ConfigError, MissingInputError
from neuroada.evaluation.evaluate import evaluate, read_settings
from neuroada.inputs.models import load_model
from neuroada.training.train import train

QUIET = Console(quiet=True)


@pytest.fixture
def short_model(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A GPT-2 whose positions are learned and end at 32."""
    folder = tmp_path / "short"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def data_of(task: str, data_dir: Path, tmp_path: Path) -> dict[str, Any]:
    if task == "text":
        (tmp_path / "long.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 100)
        return {"text": str(tmp_path / "long.txt"), "block_length": 64}
    if task == "instruct":
        rows = [{"prompt": f"{n} is what? " * 5, "completion": "a number"} for n in range(30)]
        (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"task": "instruct", "file": str(tmp_path / "mine.jsonl")}
    return {"task": task, "data_dir": str(data_dir)}


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("task", ["text", "instruct", "commonsense", "arithmetic"])
def test_a_context_that_is_too_short(
    task: str, dry_run: bool, make_recipe, short_model, data_dir: Path, tmp_path: Path
):
    sections = {"model": {"name": str(short_model)}, "data": data_of(task, data_dir, tmp_path)}
    with pytest.raises(ConfigError, match=r"tokens, and the model's context is 32. Set data\.\w+ to 32 or less"):
        train(make_recipe(**sections), tmp_path / "run", QUIET, dry_run=dry_run)
    assert not (tmp_path / "run").exists()


def without_padding(folder: Path, *tokens: str) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.exists():
            content = json.loads(path.read_text())
            path.write_text(json.dumps({key: value for key, value in content.items() if key not in tokens}))


def test_a_tokenizer_without_padding_pads_with_the_end_of_text(make_recipe, tiny_model_dir, data_dir, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    without_padding(folder, "pad_token")
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    sections = {"model": {"name": str(folder)}, "data": {"task": "commonsense", "data_dir": str(data_dir)}}
    summary = train(make_recipe("evaluation.records=1", **sections), tmp_path / "run", QUIET)
    assert summary is not None
    assert summary["merge"]["equal"]


def test_a_tokenizer_with_neither_is_told(tiny_model_dir: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    without_padding(folder, "pad_token", "eos_token")
    with pytest.raises(MissingInputError, match="neither a padding nor an end-of-text token"):
        load_model(str(folder), "float32")


@pytest.mark.parametrize("task", ["commonsense", "glue"])
def test_scoring_wants_no_train_set(task: str, make_recipe, tiny_model_dir, tiny_bert_dir, data_dir, tmp_path: Path):
    data = {"task": task, "data_dir": str(data_dir), **({"name": "mrpc", "max_length": 64} if task == "glue" else {})}
    model = {"name": str(tiny_bert_dir if task == "glue" else tiny_model_dir)}
    summary = train(make_recipe("evaluation.records=4", model=model, data=data), tmp_path / "run", QUIET)
    assert summary is not None
    tests_alone = tmp_path / "tests"
    shutil.copytree(data_dir, tests_alone, ignore=shutil.ignore_patterns("train*", "images"))
    scored = evaluate(str(tmp_path / "run"), [], tests_alone, read_settings({}), QUIET)
    assert [each.value for each in scored.scores] == [each["value"] for each in summary["scores_after"]]
