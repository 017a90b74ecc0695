"""What an adapter's page says."""

import re
from pathlib import Path

import peft
import pytest
from huggingface_hub import ModelCard
from peft import get_peft_model

from neuroada import NeatConfig, NeuroAdaConfig
from neuroada.recipe.loading import check_recipe
from neuroada.run_folder.card import plain_text, write_card
from run_folders import HOSTILE


@pytest.mark.parametrize(("method", "config"), [("neuroada", NeuroAdaConfig(k=2)), ("neat", NeatConfig(r=2))])
def test_it_says_how_the_adapter_is_loaded_and_was_trained(method, config, tiny_llama, tmp_path: Path):
    get_peft_model(tiny_llama, config).save_pretrained(tmp_path)
    content = {
        "model": {"name": "some/where/base"},
        "data": {"task": "text"},
        "method": method,
        method: {"k": 2} if method == "neuroada" else {"r": 2},
        "training": {"max_steps": 1, "learning_rate": 0.008},
        "seed": 3,
    }
    write_card(tmp_path, check_recipe(content, "recipe"))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "peft"
    for phrase in ("import neuroada", f"KeyError: '{method.upper()}'", "on base", "=2, learning rate 0.008, seed 3"):
        assert phrase in card.text
    assert "More Information Needed" not in card.text
    assert {"NEUROADA", "NEAT"} <= set(peft.PeftType.__members__)


HOSTILE_NAMES = [
    HOSTILE,
    "a\n\n# Another heading\n<script>alert(1)</script>",
    "```\n<img src=x onerror=alert(1)>",
    "[link](javascript:alert(1))",
    "![image](https://example.org/x.png)",
    "`code` **bold** | table |",
    "\u2028<b>\u2029",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_words_from_outside_stay_text(name: str, tiny_llama, tmp_path: Path):
    get_peft_model(tiny_llama, NeuroAdaConfig(k=2)).save_pretrained(tmp_path)
    content = {
        "model": {"name": f"x{name.replace('/', '')}"},
        "data": {"task": "text"},
        "method": "neuroada",
        "neuroada": {"k": 2, "target_modules": [name]},
        "training": {"max_steps": 1, "learning_rate": 0.008},
    }
    write_card(tmp_path, check_recipe(content, "recipe"))
    text = ModelCard.load(tmp_path / "README.md").text
    assert "<" not in text.replace("&lt;", "")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert len(headings) == 1
    assert text.count("\n```") == 2, "one block of code"
    assert not re.search(r"(?<!\\)\]\(javascript|(?<!\\)!\[", text)


@pytest.mark.parametrize("name", ["SmolLM2-135M-Instruct", "Llama-2-7b-hf", "my model (v1.2)", "模型"])
def test_ordinary_names_stay_as_they_are(name: str):
    assert plain_text(name) == name
