"""Recipes: schema, overrides, and what their errors say."""

from pathlib import Path

import pytest
import yaml

from neuroada.errors import ConfigError
from neuroada.recipe.files import RecipeFile, bundled_recipes, find_recipe
from neuroada.recipe.loading import check_recipe, load_recipe, to_yaml
from neuroada.recipe.methods import METHODS
from neuroada.recipe.schema import Recipe

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


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipe_parses_and_says_how_to_launch_it(name: str):
    file = bundled_recipes()[name]
    assert isinstance(load_recipe(file), Recipe)
    described = file.described().splitlines()
    assert any(f"neuroada train {'NAME' if file.variant else name}" in line for line in described)
    assert any(line.startswith("Reaches:") for line in described)


VARIANTS = """
method: neuroada
model: {name: tiny}
data: {text: a.txt}
training: {max_steps: 2, learning_rate: 0.1}
variants:
  small: {about: "one", reaches: "nothing", neuroada: {k: 1}}
  long: {about: "epochs", reaches: "more", training: {num_train_epochs: 3}, seed: 7}
"""


def test_a_variant_is_laid_over_what_its_file_says_for_all(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(VARIANTS)
    small, long = (load_recipe(find_recipe(f"{tmp_path / 'mine.yaml'}#{name}")) for name in ("small", "long"))
    assert (small.settings, small.seed, small.training.max_steps) == ({"k": 1}, 0, 2)
    assert (long.settings, long.seed) == ({}, 7)
    assert (long.training.max_steps, long.training.num_train_epochs) == (None, 3), "one replaces the other"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("", r"it holds several variants. Name one as in .*mine\.yaml#NAME. Known: small, long"),
        ("#smal", r"it has no variant 'smal'. Name one as in .*mine\.yaml#NAME. Did you mean 'small'\?"),
    ],
)
def test_a_file_of_variants_wants_the_name_of_one(name: str, found: str, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(VARIANTS)
    with pytest.raises(ConfigError, match=found):
        load_recipe(find_recipe(f"{tmp_path / 'mine.yaml'}{name}"))


def test_a_recipe_can_build_on_a_bundled_variant(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("base: vit-base-dtd-neat-sine\nseed: 5\n")
    mine, theirs = load_recipe(tmp_path / "mine.yaml"), load_recipe(bundled_recipes()["vit-base-dtd-neat-sine"])
    assert mine == theirs.model_copy(update={"seed": 5})


def test_resolved_recipe_reads_back_equal(recipe_file: Path, tmp_path: Path):
    recipe = load_recipe(recipe_file, ["neuroada.k=3", "data.text=/some/file.txt"])
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(recipe))
    assert load_recipe(again) == recipe
    assert "lora" not in recipe.resolved()


def test_set_overrides_and_parses_values_as_yaml(recipe_file: Path):
    overrides = ["training.learning_rate=7e-4", "neuroada.budget=1e-3", "neuroada.target_modules=[q_proj, v_proj]"]
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.training.learning_rate == 7e-4
    assert recipe.settings == {"budget": 1e-3, "target_modules": ["q_proj", "v_proj"]}
    patterned = load_recipe(recipe_file, ["neuroada.k_pattern={q_proj: 4, v_proj: 2}"])
    assert patterned.settings["k_pattern"] == {"q_proj": 4, "v_proj": 2}


def test_each_method_has_a_block():
    assert set(METHODS) <= set(Recipe.model_fields)


@pytest.mark.parametrize("task", ["commonsense", "arithmetic"])
def test_a_task_has_its_own_keys(recipe_file: Path, task: str):
    recipe = load_recipe(recipe_file, [f"data={{task: {task}, train_records: 7}}", "training.warmup_steps=0.1"])
    assert (recipe.data.task, recipe.data.train_records, recipe.training.warmup_steps) == (task, 7, 0.1)
    message = rf"unknown key 'data\.block_length'. The recipe's task '{task}' takes .*Tasks with 'block_length': text\."
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe_file, [f"data={{task: {task}, block_length: 7}}"])


def test_a_recipe_builds_on_another_section_by_section(recipe_file: Path):
    above = recipe_file.with_name("above.yaml")
    above.write_text("base: mine\nmethod: lora\ntraining: {learning_rate: 0.5}\n")
    top = recipe_file.with_name("top.yaml")
    top.write_text("base: above\nseed: 3\n")
    recipe = load_recipe(top, ["training.weight_decay=0.25"])
    assert (recipe.method, recipe.seed, recipe.model.name) == ("lora", 3, "somewhere")
    assert (recipe.training.learning_rate, recipe.training.max_steps, recipe.training.weight_decay) == (0.5, 2, 0.25)


def test_the_length_that_is_set_later_takes_the_place_of_the_other(recipe_file: Path):
    top = recipe_file.with_name("top.yaml")
    top.write_text("base: mine\ntraining: {num_train_epochs: 3}\n")
    training = load_recipe(top).training
    assert (training.num_train_epochs, training.max_steps) == (3, None)
    training = load_recipe(top, ["training.max_steps=5"]).training
    assert (training.num_train_epochs, training.max_steps) == (None, 5)


@pytest.mark.parametrize("first", ["training.max_steps=4", "training.num_train_epochs=4"])
@pytest.mark.parametrize("null_first", [True, False])
def test_a_length_of_nothing_takes_no_place(recipe_file: Path, first: str, null_first: bool):
    other = {"training.max_steps=4": "num_train_epochs", "training.num_train_epochs=4": "max_steps"}[first]
    given = [f"training.{other}=null", first] if null_first else [first, f"training.{other}=null"]
    training = load_recipe(recipe_file, given).training
    assert (training.max_steps or training.num_train_epochs) == 4
    assert getattr(training, other) is None


def test_a_budget_takes_the_place_of_the_recipe_s_k(recipe_file: Path):
    assert load_recipe(recipe_file, ["neuroada.k=3"]).settings["k"] == 3
    top = recipe_file.with_name("top.yaml")
    top.write_text("base: mine\nneuroada: {k: 5}\n")
    assert load_recipe(top, ["neuroada.budget=0.01"]).settings == {"budget": 0.01}
    assert load_recipe(top, ["neuroada.k=null", "neuroada.budget=0.01"]).settings["budget"] == 0.01


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("training.max_steps=2", "training.num_train_epochs=1"),
        ("training.num_train_epochs=1", "training.max_steps=2"),
        ("neuroada.k=2", "neuroada.budget=0.1"),
    ],
)
def test_two_that_say_the_same_thing_are_refused(recipe_file: Path, one: str, other: str):
    keys = [each.partition("=")[0] for each in (one, other)]
    with pytest.raises(ConfigError, match=f"--set {keys[0]} and --set {keys[1]}: .* Give one of them"):
        load_recipe(recipe_file, [one, other])


def test_what_is_wrong_with_all_of_it_is_said_without_all_of_it(recipe_file: Path):
    with pytest.raises(ConfigError, match=r"mine\.yaml: regrowth\.every is for method neuroada.*Correct the recipe"):
        load_recipe(recipe_file, ["regrowth.every=2", "method=lora"])


def test_a_base_is_looked_for_beside_the_file_and_then_among_the_bundled(recipe_file: Path):
    recipe_file.write_text("base: quickstart\nseed: 5\n")
    assert load_recipe(recipe_file).model == load_recipe(find_recipe("quickstart")).model
    recipe_file.write_text("base: quikstart\n")
    with pytest.raises(ConfigError, match="Did you mean 'quickstart'"):
        load_recipe(recipe_file)


def test_a_base_that_leads_back_is_an_error(recipe_file: Path):
    recipe_file.write_text("base: other\n")
    recipe_file.with_name("other.yaml").write_text("base: mine\n")
    with pytest.raises(ConfigError, match=r"its base leads back to itself \(mine -> other -> mine\)"):
        load_recipe(recipe_file)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lerning_rate=1", r"unknown key 'training\.lerning_rate'. Did you mean 'learning_rate'\? Known: "),
        ("trainig.max_steps=1", r"unknown key 'trainig'. Did you mean 'training'\?"),
        ("neuroada.selecton=random", r"no setting 'selecton'. Did you mean 'selection'\?"),
        ("neuroada.peft_type=LORA", r"no setting 'peft_type'"),
        ("neuroada.k=0", r"k=0"),
        ("neuroada.selection=own", r"--set neuroada\.selection=own: a recipe cannot hold a function.*Known: magnitude"),
        ("method=neurada", r"no such method. Did you mean 'neuroada'\? Known: neuroada, neat, lora"),
        (
            "data={task: comonsense}",
            r"data\.task = 'comonsense': no such task. Did you mean 'commonsense'\? Known: text",
        ),
        ("data={task: glue}", r"'data\.name' is missing"),
        ("data={task: instruct}", r"give either file or dataset"),
        (
            "training={learning_rate: 1, max_steps: 2, num_train_epochs: 1}",
            r"give either max_steps or num_train_epochs",
        ),
        ("evaluation.test=boolq", r"unknown key 'evaluation\.test'. Did you mean 'tests'\?"),
        ("training.max_steps=many", r"training\.max_steps = 'many': Input should be a valid integer"),
        ("training.max_steps=0", r"training\.max_steps = 0: Input should be greater than 0"),
        ("data.held_out=1.5", r"data\.held_out = 1\.5: Input should be less than 1"),
        ("model.dtype=float8", r"model\.dtype = 'float8': Input should be 'float32' or 'bfloat16'"),
        ("data={text: a.txt, data_dir: b}", r"text and data_dir are both given; give one"),
        ("model.name.first=x", r"'name' is a value, not a section"),
        ("max_steps", r"--set max_steps: it is not of the form key=value. Write section\.key=value"),
        ("=3", r"it is not of the form key=value"),
        ("model.name={", r"--set model\.name=\{: it is not valid YAML"),
        ("seed=2024-13-45", r"--set seed=2024-13-45: it is not valid YAML \(month must be in 1\.\.12"),
    ],
)
def test_bad_set(recipe_file: Path, override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe_file, [override])


def test_missing_key():
    with pytest.raises(ConfigError, match=r"'training' is missing. Add 'training'"):
        check_recipe({key: MINIMAL[key] for key in ("model", "method")}, "recipe")


def test_a_file_that_is_no_text(tmp_path: Path):
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe bad")
    with pytest.raises(ConfigError, match=r"recipe .*/bad.yaml: it cannot be read as text \(.*Save it as UTF-8"):
        load_recipe(tmp_path / "bad.yaml")


def test_a_section_given_whole_is_laid_over_that_of_the_recipe(recipe_file: Path):
    content = yaml.safe_load(recipe_file.read_text())
    recipe_file.write_text(
        yaml.safe_dump(content | {"method": "neuroada", "neuroada": {"k": 3, "selection": "random"}})
    )
    for given in ({"overrides": ["neuroada={k: 4}"]}, {"values": {"neuroada": {"k": 4}}}):
        assert load_recipe(recipe_file, **given).neuroada == {"k": 4, "selection": "random"}
    assert load_recipe(recipe_file, ["neuroada={budget: 0.1}"]).neuroada == {"budget": 0.1, "selection": "random"}
    assert load_recipe(recipe_file, ["neuroada={k: 4}", "neuroada.k=5"]).neuroada["k"] == 5
    assert load_recipe(recipe_file, ["neuroada.k_pattern={a: 1}", "neuroada.k_pattern={b: 2}"]).neuroada[
        "k_pattern"
    ] == {"b": 2}, "what is no section is replaced"


def test_a_folder_of_pictures_takes_the_place_of_a_set_s_name(tmp_path: Path):
    recipe = load_recipe(find_recipe("dinov2-cifar10"), [f"data.folder={tmp_path}"])
    assert (recipe.data.folder, recipe.data.name) == (tmp_path, None)


@pytest.mark.parametrize(("content", "message"), [("a: [", "not valid YAML"), ("- a", "not a mapping of sections")])
def test_file_that_is_no_recipe(tmp_path: Path, content: str, message: str):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_unknown_recipe_lists_known_and_near_ones(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nor a file. Did you mean 'quickstart'\? There are \d+"):
        find_recipe("quikstart")
    with pytest.raises(ConfigError, match=r"no such file\. "):
        find_recipe(str(tmp_path / "absent.yaml"))


def test_recipe_by_path(recipe_file: Path):
    assert find_recipe(str(recipe_file)) == RecipeFile(recipe_file)


@pytest.mark.parametrize("method", ["neuroada", "mask"])
def test_what_is_drawn_is_drawn_by_the_recipe_s_seed(method):
    content = {"model": {"name": "m"}, "method": method, "training": {"max_steps": 1, "learning_rate": 0.1}, "seed": 3}
    assert check_recipe(content, "a recipe").seeded_settings == {"seed": 3}
    assert check_recipe(content | {method: {"seed": 5}}, "a recipe").seeded_settings == {"seed": 5}
    assert check_recipe(content | {"method": "lora"}, "a recipe").seeded_settings == {}
