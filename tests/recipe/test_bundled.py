"""Every bundled recipe, with a tiny model and tiny data in place of its own: it resolves and dry-runs."""

import json

import pytest
from rich.console import Console

from neuroada.recipe.files import bundled_recipes
from neuroada.recipe.loading import load_recipe, to_yaml
from neuroada.training.train import train


@pytest.mark.parametrize("name", ["minilm-mrpc", "dinov2-cifar10", "dinov2-clothing10"])
def test_two_methods_get_the_same_data(name):
    first, second = (load_recipe(bundled_recipes()[each]) for each in (name, f"{name}-neat"))
    assert first.data == second.data
    assert first.evaluation == second.evaluation


@pytest.mark.parametrize("name", bundled_recipes())
def test_it_resolves_and_dry_runs(name, tiny_model_dir, tiny_bert_dir, tiny_dinov2_dir, data_dir, tmp_path):
    recipe = load_recipe(bundled_recipes()[name])
    models = {"glue": tiny_bert_dir, "images": tiny_dinov2_dir}
    values = {"model.name": str(models.get(recipe.data.task, tiny_model_dir))}
    if recipe.data.task == "text":
        values["data.text"] = str(tmp_path / "text.txt")
        (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 500)
    elif recipe.data.task == "instruct":
        values["data.file"] = str(tmp_path / "my.jsonl")
        pairs = [{"prompt": f"Say {n}", "completion": f"{n} it is"} for n in range(30)]
        (tmp_path / "my.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    else:
        values["data.data_dir"] = str(data_dir)
    if recipe.data.task in models:
        values["data.train_records"] = None
    if "layers_to_transform" in recipe.settings:
        values[f"{recipe.method}.layers_to_transform"] = [0]
    if recipe.data.task == "glue":
        values["data.max_length"] = 64
    recipe = load_recipe(bundled_recipes()[name], values=values)
    (tmp_path / "resolved.yaml").write_text(to_yaml(recipe))
    assert load_recipe(tmp_path / "resolved.yaml").resolved() == recipe.resolved()

    console = Console(record=True, width=200, file=(tmp_path / "printed.txt").open("w"))
    assert train(recipe, tmp_path / "run", console, dry_run=True) is None
    printed = console.export_text()
    assert "Dry run: nothing was trained or written." in printed
    assert f"learning rate {recipe.training.learning_rate:g}" in printed
    assert not (tmp_path / "run").exists()
