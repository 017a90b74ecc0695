"""What an adapter's page says."""

from pathlib import Path

import peft
import pytest
from huggingface_hub import ModelCard
from peft import get_peft_model

from neuroada import NeatConfig, NeuroAdaConfig
from neuroada.recipe.loading import check_recipe
from neuroada.run_folder.card import write_card


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
