"""The recipes of the paper against its published settings and results, and the pages that describe them."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from neuroada.inputs.tests import FAMILIES
from neuroada.recipe.data import DATA
from neuroada.recipe.files import bundled_recipes
from neuroada.recipe.loading import load_recipe
from neuroada.recipe.schema import Recipe
from neuroada.report.paper.published import TASKS, find, model_key, published
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
    lines = bundled_recipes()[name].described().splitlines()
    return {float(number) for line in lines if line.startswith("Reaches:") for number in AVERAGE.findall(line)}


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


NEAT = [
    (each, chosen) for each in published().settings if each.source == "NEAT paper" for chosen in (each.chosen or [None])
]
MODULES = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "up": "up_proj", "down": "down_proj"}
"""Of Llama and ViT, by what the paper calls them."""


def neat_recipe(source, chosen) -> str:
    """The name of the recipe with these published settings."""
    model = model_key(source.model)
    if source.family == "glue":
        return f"{model}-{chosen.where['task']}-neat-{source.fixed['variant'].lower()}"
    if source.family == "images":
        kind = {"Table 8": "sine"}.get(source.table, {7: "qv", 2: "qv-mlp"}[source.fixed["r"]])
        return f"{model}-{chosen.where['task'].replace('_', '-')}-neat-{kind}"
    return f"{model}-{ {'arithmetic': 'metamath'}.get(source.family, source.family) }-neat"


@pytest.mark.parametrize(("source", "chosen"), NEAT, ids=[neat_recipe(*each) for each in NEAT])
def test_recipe_has_the_settings_of_the_neat_paper(source, chosen):
    recipe = load_recipe(bundled_recipes()[neat_recipe(source, chosen)])
    training, neat = recipe.training, recipe.neat
    wanted = {**source.fixed, **({} if chosen is None else chosen.values)}
    found = {
        "optimizer": "AdamW",
        "variant": wanted.get("variant"),
        "alpha": neat["scaling"] * neat["r"],
        "lr_scheduler_type": training.lr_scheduler_type.value,
        "batch_size": training.per_device_train_batch_size,
        "max_length": getattr(recipe.data, "max_length", None),
        "max_new_tokens": 32,
        "max_new_tokens_gsm8k": METAMATH.tests["gsm8k"].max_new_tokens or METAMATH.max_new_tokens,
        "max_new_tokens_MATH": METAMATH.tests["MATH"].max_new_tokens or METAMATH.max_new_tokens,
        "seed": recipe.seed,
        **{
            name: getattr(training, name, None) for name in wanted if "rate" in name or name.startswith(("num", "warm"))
        },
        "weight_decay": training.weight_decay,
        **{name: neat.get(name) for name in ("r", "scaling", "activation", "dropout", "layers_to_transform")},
        "target_modules": neat["target_modules"],
    }
    modules = {**MODULES, "mlp": "fc1"}
    renamed = [modules[name] for name in wanted.get("target_modules", ())]
    if "fc1" in renamed:
        renamed.append("fc2")
    expected = wanted | ({"target_modules": renamed} if renamed else {})
    assert {name: found[name] for name in expected} == expected
    assert recipe.method == "neat"


@pytest.mark.parametrize(("source", "chosen"), NEAT, ids=[neat_recipe(*each) for each in NEAT])
def test_neat_recipe_says_what_was_published(source, chosen):
    name = neat_recipe(source, chosen)
    rows = {
        (table.table, tuple(sorted(row.settings.items()))): row
        for table, row in find(source.model, source.family, "neat")
    }
    if name.endswith("qv-mlp"):
        assert "Figure 3" in bundled_recipes()[name].described()
        return
    settings = {key: source.fixed[key] for key in ("variant", "r", "activation") if key in source.fixed}
    (row,) = [
        row
        for (table, key), row in rows.items()
        if dict(key) == settings and table in ("Table 1", "Table 2", "Table 3", "Table 4", "Table 5")
    ]
    if source.family == "arithmetic":
        numbers = set(row.scores.values())
    elif chosen is None:
        numbers = {row.average}
    else:
        numbers = {row.scores[chosen.where["task"]]}
    text = next(line for line in bundled_recipes()[name].described().splitlines() if line.startswith("Reaches:"))
    assert {float(number) for number in re.findall(r"(?<![\d.])\d\d\.\d+", text)} == numbers


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
    named = set(
        re.findall(r"(?:neuroada train |`)((?:llama|roberta|smollm2|minilm|dinov2|vit)-[a-z0-9-]+-[a-z0-9]+)", text)
    )
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
