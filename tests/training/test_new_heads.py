"""Bodies whose head is more than a classifier, from recipe to run folder: what was trained is what is scored again."""

import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer, DebertaConfig, DebertaModel, DistilBertConfig, DistilBertModel

from neuroada.evaluation.evaluate import evaluate, read_settings
from neuroada.evaluation.loading import load_trained
from neuroada.evaluation.merged import merge
from neuroada.recipe.loading import check_recipe
from neuroada.training.train import train

QUIET = Console(quiet=True)
BODIES = {
    "deberta": lambda size: DebertaModel(
        DebertaConfig(
            vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=64,
        )
    ),
    "distilbert": lambda size: DistilBertModel(
        DistilBertConfig(vocab_size=size, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64)
    ),
}  # fmt: skip


@pytest.fixture(params=BODIES)
def body(request, tiny_bert_dir: Path, tmp_path: Path) -> Path:
    """A folder with a body alone, and the tokeniser of the tiny BERT."""
    folder = tmp_path / request.param
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    torch.manual_seed(0)
    BODIES[request.param](len(tokenizer)).save_pretrained(folder)
    for file in tiny_bert_dir.glob("*token*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("method", ["neuroada", "neat", "lora", "bitfit", "probe", "mask"])
def test_a_run_is_scored_again_as_it_was(method: str, body: Path, data_dir: Path, tmp_path: Path):
    content = {
        "model": {"name": str(body), "dtype": "float32"},
        "data": {"task": "glue", "name": "mrpc", "data_dir": str(data_dir), "max_length": 64},
        "method": method,
        "training": {"num_train_epochs": 2, "learning_rate": 0.05, "per_device_train_batch_size": 8},
    }
    run = tmp_path / "run"
    summary = train(check_recipe(content, "recipe"), run, QUIET)
    assert summary is not None
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)  # whatever is drawn for the head of the base is not kept
        models.append({name: each.detach().clone() for name, each in load_trained(str(run)).model.named_parameters()})
    first, second = models
    kept = [name for name in first if ".original_module." not in name]
    assert [name for name in kept if not torch.equal(first[name], second[name])] == []
    scored = evaluate(str(run), [], None, read_settings({}), QUIET)
    assert scored.scores[0].value == summary["scores_after"][0]["value"]
    if method in ("neuroada", "neat", "lora"):
        merge(str(run), tmp_path / "merged", QUIET)
