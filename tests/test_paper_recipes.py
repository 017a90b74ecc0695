"""The recipes of the paper against its published settings and results, and the pages that describe them."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from neuroada.report.published import TASKS, find, model_key, published
from neuroada.runs.recipe import bundled_recipes, load_recipe
from neuroada.runs.schema import DATA, Recipe
from neuroada.runs.scoring import FAMILIES
from neuroada.tasks.arithmetic import METAMATH
from neuroada.tasks.glue import PAPER_TASKS

DOCS = Path(__file__).parents[1] / "docs"
MODELS = ("llama-7b", "llama-13b", "llama-2-7b", "llama-3-8b")
SCRIPTS = [
    (f"{model}-{each.family}-k{chosen.where['k']}", model, each, chosen)
    for each in published().settings
    if each.source == "Launch scripts of the published code"
    for chosen in each.chosen
    for model in MODELS
]
GLUE = [(f"roberta-base-{task}-k{k}", task, k) for task in PAPER_TASKS for k in (1, 9)]
AVERAGE = re.compile(r"(?<![\d.])\d\d\.\d(?![\d ]*%)")


def reached(name: str) -> set[float]:
    """The numbers in the line of a recipe's header that says what it should reach."""
    lines = bundled_recipes()[name].read_text().splitlines()
    return {float(number) for line in lines if line.startswith("# Reaches:") for number in AVERAGE.findall(line)}


@pytest.mark.parametrize(("name", "model", "source", "chosen"), SCRIPTS, ids=[script[0] for script in SCRIPTS])
def test_recipe_has_the_settings_of_the_launch_script(name: str, model: str, source, chosen):
    recipe, training = load_recipe(bundled_recipes()[name]), load_recipe(bundled_recipes()[name]).training
    assert recipe.data.task == source.family
    assert recipe.neuroada["k"] == chosen.where["k"]
    assert {
        "learning_rate": training.learning_rate,
        "batch_size": training.per_device_train_batch_size * training.gradient_accumulation_steps,
        "warmup_ratio": training.warmup_steps,
        "weight_decay": training.weight_decay,
    } == chosen.values
    assert {
        "optimizer": "AdamW",
        "lr_scheduler_type": training.lr_scheduler_type.value,
        "num_train_epochs": training.num_train_epochs,
        "max_length": recipe.data.max_length,
        "seed": recipe.seed,
        "dtype": recipe.model.dtype,
    } == source.fixed
    assert model_key(recipe.model.name) == model
    assert recipe.data.train_on_prompt is False


@pytest.mark.parametrize(("name", "model", "source", "chosen"), SCRIPTS, ids=[script[0] for script in SCRIPTS])
def test_recipe_says_what_was_published(name: str, model: str, source, chosen):
    rows = [found.row for found in find(model, source.family, "neuroada") if found.row.settings == chosen.where]
    printed = {row.average for row in rows}
    assert printed <= reached(name) <= printed | {round(row.mean + 1e-9, 1) for row in rows}


@pytest.mark.parametrize(("name", "task", "k"), GLUE, ids=[each[0] for each in GLUE])
def test_glue_recipe_says_what_was_published(name: str, task: str, k: int):
    recipe = load_recipe(bundled_recipes()[name])
    rows = find(recipe.model.name, "glue", "neuroada")
    share = {1: 0.0297, 9: 0.2674}[k]
    assert reached(name) == {row.scores[task] for _, row in rows if row.trained_percent == share}
    assert recipe.data.name == task
    assert recipe.neuroada["k"] == k
    assert recipe.training.load_best_model_at_end


def test_published_tasks_are_those_that_can_be_scored():
    assert set(TASKS["commonsense"]) == set(FAMILIES["commonsense"].tests)
    assert set(TASKS["arithmetic"]) == set(FAMILIES["arithmetic"].tests) - {"mathqa"} | set(METAMATH.tests)
    assert set(TASKS["glue"]) == set(PAPER_TASKS)


def keys(section: type[BaseModel], before: str = "") -> set[str]:
    """Dotted keys of a section and of those in it."""
    found = set()
    for name, field in section.model_fields.items():
        found.add(f"{before}{name}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= keys(field.annotation, f"{before}{name}.")
    return found


@pytest.mark.parametrize("page", ["recipes.md", "from-the-published-code.md"])
def test_keys_on_a_page_are_known(page: str):
    known = keys(Recipe) | {f"data.{name}" for section in DATA.values() for name in section.model_fields}
    text = (DOCS / page).read_text(encoding="utf-8")
    used = set(re.findall(r"(?<![\w./-])((?:model|data|evaluation|training)\.[a-z_]+)", text))
    assert len(used) > 8
    assert used <= known


def test_every_key_of_a_recipe_is_on_the_page():
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    sections = {key.split(".")[0] for key in keys(Recipe) if "." in key} | {"data"}
    wanted = {key.split(".")[-1] for key in keys(Recipe) - sections}
    wanted |= {name for section in DATA.values() for name in section.model_fields}
    assert [name for name in sorted(wanted) if not re.search(rf"`(?:\w+\.)?{name}`", text)] == []


@pytest.mark.parametrize("page", ["recipes.md", "from-the-published-code.md"])
def test_recipes_and_files_on_a_page_are_there(page: str):
    text = (DOCS / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:neuroada train |`)((?:llama|roberta|smollm2|minilm)-[a-z0-9-]+-[a-z0-9]+)", text))
    models = set(MODELS) | {"smollm2-135m-instruct"}
    assert named - models <= set(bundled_recipes())
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (DOCS / link).exists()] == []


def test_the_page_on_the_published_code_shows_its_averages():
    text = (DOCS / "from-the-published-code.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (L[^|]*) \| (\d+) \| ([\d.]+) % \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) == 8
    for model, k, share, commonsense, arithmetic in rows:
        for family, average in (("commonsense", commonsense), ("arithmetic", arithmetic)):
            published_row = next(
                row
                for table, row in find(model, family, "neuroada")
                if table.source.startswith("README") and row.settings == {"k": int(k)}
            )
            assert (published_row.average, published_row.trained_percent) == (float(average), float(share))
