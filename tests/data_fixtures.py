"""Small data sets laid out like the real ones, a tiny BERT, and what searches run on."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from neuroada.recipe.loading import load_recipe
from neuroada.recipe.schema import Recipe
from neuroada.tasks import glue
from neuroada.tasks.images.hub import HUB
from pictures import write_dinov2, write_set

WORDS = ["a", "the", "cat", "dog", "sat", "ran", "on", "in", "big", "small", "mat", "house", "good", "bad", "yes", "no"]
RECIPE = """
model: {{name: "{model}", dtype: float32}}
data: {{text: "{text}", block_length: 32, held_out_blocks: 2}}
method: neuroada
training: {{max_steps: 4, learning_rate: 0.05, save_steps: 2, logging_steps: 1}}
"""


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def question(number: int) -> dict[str, str]:
    answer = "true" if number % 2 else "false"
    return {
        "instruction": f"Is {number} odd?\n\nAnswer format: true/false",
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }


def problem(number: int) -> dict[str, str]:
    total = str(number + 3)
    return {
        "instruction": f"{number} + 3 ?",
        "input": "",
        "output": f"It is {total}. The answer is {total}.",
        "answer": total,
    }


TESTS = ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in TESTS:
        write_lines(folder / "commonsense" / name / "test.jsonl", [question(n) for n in range(6)])
    for name in ("commonsense_15k", "commonsense_170k"):
        write_lines(folder / "commonsense" / name / "train.jsonl", [question(n) for n in range(10, 42)])
    write_lines(folder / "commonsense" / "commonsense_15k" / "validation.jsonl", [question(n) for n in range(50, 62)])
    for name in ("gsm8k", "SVAMP", "mawps", "MultiArith", "AddSub", "SingleEq"):
        write_lines(folder / "math" / name / "test.jsonl", [problem(n) for n in range(4)])
    letter = {**problem(1), "answer": "A"}
    write_lines(folder / "math" / "AQuA" / "test.jsonl", [letter, {**letter, "instruction": "another"}])
    write_lines(folder / "math" / "math_10k" / "train.jsonl", [problem(n) for n in range(20, 60)])
    solved = [{"problem": f"{n} + 3 ?", "solution": f"It is $\\boxed{{{n + 3}}}$."} for n in range(4)]
    write_lines(folder / "math" / "MATH" / "test.jsonl", solved)
    answered = [{"query": f"{n} + 3 ?", "response": f"It is {n + 3}. The answer is: {n + 3}"} for n in range(20, 60)]
    write_lines(folder / "math" / "MetaMathQA" / "train.jsonl", answered)
    for name, task in glue.TASKS.items():
        for part, count in (("train", 32), ("dev" if task.validation == "validation" else task.validation, 24)):
            records = [
                {
                    **dict.fromkeys(task.fields, f"the {'cat' if n % 2 else 'dog'} sat on mat {n % 5}"),
                    "label": n % len(task.labels) if task.labels else float(n % 6),
                    "idx": n,
                }
                for n in range(count)
            ]
            write_lines(folder / "glue" / name / f"{part}.jsonl", records)
    for name in (*HUB, "clothing10"):
        write_set(folder / "images" / name, train=8, test=3)
    return folder


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT body of two layers, 32 wide, with a tokeniser of one token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: index for index, word in enumerate([*special, *WORDS, *"0123456789"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_dinov2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 body of two layers, 32 wide, with its image processor."""
    return write_dinov2(tmp_path_factory.mktemp("models") / "tiny-dinov2")


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """The file of a recipe that is small enough to search over."""
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 100)
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(model=tiny_model_dir, text=text))
    return path


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Trials cost nothing, and are best at a learning rate of 0.01 and k = 2; the folders that were trained."""
    trained = []

    def train(recipe: Any, folder: Path, advance: Any, judge: Any, console: Any) -> dict[str, float]:
        trained.append(folder)
        advance(1, 1)
        loss = (math.log10(recipe.training.learning_rate) + 2) ** 2 + abs(recipe.settings["k"] - 2)
        return {"held_out_loss_after": loss}

    monkeypatch.setattr("neuroada.tuning.search.train_here", train)
    return trained


@pytest.fixture
def make_recipe(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Builds a recipe on a little text; sections that are given take the place of its own."""

    def make(*overrides: str, **sections: Any) -> Recipe:
        text, path = tmp_path / "text.txt", tmp_path / "mine.yaml"
        text.write_text("the quick brown fox jumps over the lazy dog\n" * 200)
        content = {
            "model": {"name": str(tiny_model_dir), "dtype": "float32"},
            "data": {"text": str(text), "block_length": 16, "held_out_blocks": 2},
            "method": "neuroada",
            "training": {"max_steps": 2, "learning_rate": 0.01, "per_device_train_batch_size": 4},
        }
        path.write_text(yaml.safe_dump(content | sections))
        return load_recipe(path, overrides)

    return make
