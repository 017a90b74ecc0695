"""Recipes: schema, overrides, and what their errors say."""

from pathlib import Path

import pytest
import yaml
from peft import LoraConfig

from neuroada import NeuroAdaConfig
from neuroada.errors import ConfigError
from neuroada.runs.methods import METHODS
from neuroada.runs.recipe import Recipe, bundled_recipes, check_recipe, find_recipe, load_recipe, to_yaml

MINIMAL = {
    "model": {"name": "somewhere"},
    "method": "neuroada",
    "training": {"max_steps": 2, "learning_rate": 1e-3},
}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


@pytest.mark.parametrize("path", bundled_recipes().values(), ids=lambda path: path.stem)
def test_bundled_recipe_parses_and_says_how_to_launch_it(path: Path):
    assert isinstance(load_recipe(path), Recipe)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"neuroada train {path.stem}" in line for line in header)
    assert any("Reaches:" in line for line in header)


def test_resolved_recipe_reads_back_equal(recipe_file: Path, tmp_path: Path):
    recipe = load_recipe(recipe_file, ["neuroada.k=3", "data.text=/some/file.txt"])
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(recipe))
    assert load_recipe(again) == recipe
    assert "lora" not in recipe.resolved()


def test_set_overrides_and_parses_values_as_yaml(recipe_file: Path):
    overrides = ["training.learning_rate=7e-4", "neuroada.budget=1e-3", "neuroada.target_modules=[q_proj, v_proj]"]
    recipe = load_recipe(recipe_file, overrides)
    config = recipe.peft_config()
    assert recipe.training.learning_rate == 7e-4
    assert (config.budget, config.target_modules) == (1e-3, {"q_proj", "v_proj"})


def test_each_method_has_a_block_and_builds_its_config(recipe_file: Path):
    assert set(METHODS) <= set(Recipe.model_fields)
    assert isinstance(load_recipe(recipe_file).peft_config(), NeuroAdaConfig)
    lora = load_recipe(recipe_file, ["method=lora", "lora.r=4"]).peft_config()
    assert isinstance(lora, LoraConfig)
    assert lora.r == 4
    assert lora.target_modules == "all-linear"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lerning_rate=1", r"unknown key 'training\.lerning_rate'. Did you mean 'learning_rate'\? Known: "),
        ("trainig.max_steps=1", r"unknown key 'trainig'. Did you mean 'training'\?"),
        ("neuroada.selecton=random", r"no setting 'selecton'. Did you mean 'selection'\?"),
        ("neuroada.peft_type=LORA", r"no setting 'peft_type'"),
        ("neuroada.k=0", r"k=0"),
        ("method=neurada", r"no such method. Did you mean 'neuroada'\? Known: neuroada, lora"),
        ("training.max_steps=many", r"training\.max_steps = 'many': Input should be a valid integer"),
        ("training.max_steps=0", r"training\.max_steps = 0: Input should be greater than 0"),
        ("data.held_out=1.5", r"data\.held_out = 1\.5: Input should be less than 1"),
        ("model.dtype=float8", r"model\.dtype = 'float8': Input should be 'float32' or 'bfloat16'"),
        ("data={text: a.txt, data_dir: b}", r"text and data_dir are both given; give one"),
        ("model.name.first=x", r"'name' is a value, not a section"),
        ("max_steps", r"--set max_steps: it is not of the form key=value. Write section\.key=value"),
        ("=3", r"it is not of the form key=value"),
        ("model.name={", r"--set model\.name=\{: it is not valid YAML"),
    ],
)
def test_bad_set(recipe_file: Path, override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe_file, [override])


def test_missing_key():
    with pytest.raises(ConfigError, match=r"'training' is missing. Add 'training'"):
        check_recipe({key: MINIMAL[key] for key in ("model", "method")}, "recipe")


@pytest.mark.parametrize(("content", "message"), [("a: [", "not valid YAML"), ("- a", "not a mapping of sections")])
def test_file_that_is_no_recipe(tmp_path: Path, content: str, message: str):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_unknown_recipe_lists_known_and_near_ones(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"neither a bundled recipe nor a file. Did you mean 'quickstart'\? Known: "):
        find_recipe("quikstart")
    with pytest.raises(ConfigError, match=r"no such file\. "):
        find_recipe(str(tmp_path / "absent.yaml"))


def test_recipe_by_path(recipe_file: Path):
    assert find_recipe(str(recipe_file)) == recipe_file
