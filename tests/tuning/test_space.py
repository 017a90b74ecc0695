"""Search spaces: where they come from, what they may say, and what is wrong with them."""

from pathlib import Path

import pytest

from neuroada.errors import ConfigError
from neuroada.recipe.files import RecipeFile, bundled_recipes
from neuroada.tuning.space import build_recipe, bundled_spaces, check_space, load_space

RATES = "training.learning_rate={low: 1e-4, high: 1.0, log: true}"
KS = "neuroada.k={choices: [1, 2, 3]}"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text("model: {name: none}\nmethod: neuroada\ntraining: {max_steps: 4, learning_rate: 0.05}\n")
    return path


def test_a_file_a_name_and_keys_make_a_space(recipe: Path, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("neuroada.k: {choices: [1, 2]}\ntraining.weight_decay: 0\ntraining.warmup_steps: 0\n")
    space = load_space(
        [str(path), "training.warmup_steps={low: 0, high: 4}", RATES], RecipeFile(recipe), ["training.weight_decay"]
    )
    assert space.plain == {
        "neuroada.k": {"choices": [1, 2]},
        "training.warmup_steps": {"low": 0, "high": 4, "log": False},
        "training.learning_rate": {"low": 1e-4, "high": 1.0, "log": True},
    }
    assert space.size is None
    assert load_space([KS, "training.warmup_steps={choices: [0, 1]}"], RecipeFile(recipe)).size == 6


def test_the_space_beside_the_recipe_is_the_default(recipe: Path):
    with pytest.raises(
        ConfigError, match=r"no --search .* no .*small\.search\.yaml. Give --search .* papers-arithmetic,"
    ):
        load_space([], RecipeFile(recipe))
    recipe.with_name("small.search.yaml").write_text("neuroada.k: {choices: [1, 2]}")
    assert load_space([], RecipeFile(recipe)).size == 2


def test_a_set_key_is_not_searched(recipe: Path):
    given = ["papers-commonsense"]
    assert load_space(given, RecipeFile(recipe), ["neuroada.k"]).size == 8 * 3 * 3
    assert "batch_size" not in load_space(given, RecipeFile(recipe), ["training.gradient_accumulation_steps"]).searched


@pytest.mark.parametrize("name", bundled_spaces())
def test_bundled_spaces_fit_a_recipe_of_their_task(name: str):
    path = bundled_recipes()["minilm-cola" if name == "papers-neat-glue" else "smollm2-commonsense"]
    space = load_space([name], path)
    check_space(space, path, [], {})
    assert space.size is not None
    assert space.size > 10


def test_published_spaces_are_the_papers():
    spaces = {name: load_space([name], RecipeFile(Path("none.yaml"))).searched for name in bundled_spaces()}
    rates = {name: len(space["training.learning_rate"].choices) for name, space in spaces.items()}
    assert rates == {"papers-arithmetic": 8, "papers-budgets": 9, "papers-commonsense": 8, "papers-neat-glue": 2}
    assert spaces["papers-budgets"]["neuroada.k"].choices == [1, 5, 10, 20, 50, 100, 300, 500]
    assert spaces["papers-commonsense"]["training.learning_rate"].choices[0] == 7e-4


def test_a_batch_size_is_reached_by_accumulation(recipe: Path):
    overrides = ["training.per_device_train_batch_size=4"]
    for asked, parts in ((16, (4, 4)), (4, (4, 1)), (2, (2, 1))):
        built = build_recipe(recipe, overrides, {"batch_size": asked}).training
        assert (built.per_device_train_batch_size, built.gradient_accumulation_steps) == parts
    with pytest.raises(
        ConfigError, match=r"batch_size = 6: it is no multiple of training\.per_device_train_batch_size = 4"
    ):
        build_recipe(recipe, overrides, {"batch_size": 6})
    with pytest.raises(ConfigError, match=r"batch_size = 0: it is no number of samples"):
        build_recipe(recipe, overrides, {"batch_size": 0})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("papers-comonsense", r"--search papers-comonsense: no such file, .* Did you mean 'papers-commonsense'\?"),
        ("neuroada.k=1", r"nothing in it is left to search. Write \{low"),
        ("neuroada.k={low: 1}", r"search space, neuroada\.k: high: Field required. Write"),
        ("neuroada.k={low: 3, high: 1}", r"low = 3 is not below high = 1"),
        ("neuroada.k={low: 0, high: 1, log: true}", r"log is given, and low = 0 is not above 0"),
        ("neuroada.k={choice: [1]}", r"choice: Extra inputs are not permitted"),
        ("neuroada.k={choices: []}", r"choices: List should have at least 1 item"),
        ("neuroada.k={", r"--search neuroada\.k=\{: it is not valid YAML"),
        ("seed={choices: [1, 2]}", r"search space, seed: trials that differ in it are judged by different data"),
        ("data.block_length={low: 8, high: 9}", r"data\.block_length: trials that differ .* Keep one value for it"),
    ],
)
def test_bad_space(recipe: Path, given: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_space([given], RecipeFile(recipe))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "training.learning_rat={low: 1e-3, high: 1e-2}",
            r"unknown key 'training\.learning_rat'. Did you mean 'learning_",
        ),
        ("batch_sise={choices: [1, 2]}", r"search space, batch_sise: no such key. Did you mean 'batch_size'\?"),
        ("training.learning_rate={low: 0, high: 1}", r"training\.learning_rate = 0: Input should be greater than 0"),
        ("neuroada.kk={choices: [1, 2]}", r"neuroada has no setting 'kk'. Did you mean 'k'"),
        ("method={choices: [neuroada, lor]}", r"no such method. Did you mean 'lora'\?"),
        ("lora.r={choices: [1, 2]}", r"lora\.r: it is not read, because the method is neuroada. Search neuroada\.\*"),
        ("batch_size={choices: [8, 12]}", r"batch_size = 12: it is no multiple .* = 8"),
    ],
)
def test_space_that_does_not_fit_the_recipe(recipe: Path, given: str, message: str):
    with pytest.raises(ConfigError, match=message):
        check_space(
            load_space([given], RecipeFile(recipe)), RecipeFile(recipe), ["training.per_device_train_batch_size=8"], {}
        )


def test_methods_can_be_searched_with_their_settings(recipe: Path):
    given = ["method={choices: [neuroada, lora]}", "lora.r={choices: [2, 4]}", KS]
    check_space(load_space(given, RecipeFile(recipe)), RecipeFile(recipe), [], {})


def test_a_space_file_that_is_none(recipe: Path, tmp_path: Path):
    path = tmp_path / "list.yaml"
    path.write_text("- a")
    with pytest.raises(ConfigError, match=r"list\.yaml: it is not a mapping of a recipe's keys. Write"):
        load_space([str(path)], RecipeFile(recipe))
