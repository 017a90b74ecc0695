"""Values that once passed and ended in tracebacks: each is refused when the recipe is read."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import SchedulerType, get_scheduler

from neuroada.errors import ConfigError
from neuroada.recipe.files import MAX_BASES
from neuroada.recipe.loading import check_recipe, load_recipe
from neuroada.recipe.methods import METHODS, known_settings
from neuroada.recipe.schedules import SCHEDULES
from neuroada.recipe.schema import Recipe

MINIMAL: dict[str, Any] = {
    "model": {"name": "somewhere"},
    "method": "neuroada",
    "training": {"max_steps": 2, "learning_rate": 1e-3},
}


def refusal(section: str | None = None, **values: Any) -> str:
    content = MINIMAL | values if section is None else MINIMAL | {section: MINIMAL.get(section, {}) | values}
    with pytest.raises(ConfigError) as caught:
        check_recipe(content, "recipe mine.yaml")
    return str(caught.value)


def can_train(schedule: SchedulerType) -> bool:
    """With an optimiser, the warm-up and the number of steps, which is all that a recipe gives."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=1e-3)
    try:
        built = get_scheduler(schedule, optimizer, num_warmup_steps=2, num_training_steps=10)
        optimizer.step()
        built.step()
    except (TypeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("schedule", SchedulerType)
def test_the_schedules_are_those_that_training_can_build(schedule: SchedulerType):
    assert (schedule.value in SCHEDULES) == can_train(schedule)
    if schedule.value in SCHEDULES:
        content = MINIMAL | {"training": MINIMAL["training"] | {"lr_scheduler_type": schedule.value}}
        assert check_recipe(content, "a recipe").training.lr_scheduler_type is schedule
    else:
        message = refusal("training", lr_scheduler_type=schedule.value)
        assert f"training.lr_scheduler_type = {schedule.value!r}: it needs more than a recipe can say" in message
        assert f"Choose one of {', '.join(SCHEDULES)}" in message


def test_a_schedule_that_is_none():
    message = refusal("training", lr_scheduler_type="cosin")
    assert f"no such schedule. Did you mean 'cosine'? Known: {', '.join(SCHEDULES)}" in message


def test_a_polynomial_schedule_cannot_rise():
    assert "ends at 1e-07" in refusal("training", lr_scheduler_type="polynomial", learning_rate=1e-7)


@pytest.mark.parametrize("seed", [-1, -(2**40), 2**32, 2**60, 10**20, 1.5, True, None, "", "a"])
def test_a_seed_is_one_that_numpy_takes(seed: Any):
    assert "seed" in refusal(seed=seed)
    if seed is not None:
        assert "mask.seed" in refusal(method="mask", mask={"seed": seed})


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_outermost_seeds_are_taken(seed: int):
    recipe = check_recipe(MINIMAL | {"seed": seed, "neuroada": {"seed": seed}}, "a recipe")
    assert recipe.seed == recipe.settings["seed"] == seed


WITH_TARGETS = [name for name, method in METHODS.items() if method.config and "target_modules" in known_settings(name)]


@pytest.mark.parametrize("method", [*WITH_TARGETS, "mask"])
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (5, "a whole number stands where a text or a list"),
        (True, "a truth value stands where"),
        ({"q_proj": 1}, "a mapping stands where"),
        ([["q_proj"]], "['q_proj'] in it is not a name"),
        ([1], "1 in it is not a name"),
        (["q_proj", None], "null in it is not a name"),
        ([""], "'' in it is not a name"),
        ("", "the text is empty"),
        ("(((", "'(((' is not a regular expression ("),
        ("[a-", "is not a regular expression ("),
        ("*", "is not a regular expression ("),
        ("(a{99999999999})", "is not a regular expression ("),
        ("(" * 5_000, "is not a regular expression ("),
    ],
)
def test_target_modules_are_names_or_one_expression(method: str, value: Any, found: str):
    message = refusal(**{"method": method, method: {"target_modules": value}})
    assert message.startswith(f"{method}.target_modules = ")
    assert found in message


COUNTED = [
    (name, key)
    for name, section in Recipe.model_fields.items()
    for key, field in getattr(section.annotation, "model_fields", {}).items()
    if field.annotation in (int, int | None, float, float | None)
]


@pytest.mark.parametrize(("section", "key"), COUNTED, ids=".".join)
@pytest.mark.parametrize("value", [10**20, 2**62, -1, True, float("nan"), float("inf"), -float("inf"), "many", [1]])
def test_numbers_are_finite_and_of_a_size_that_can_be_meant(section: str, key: str, value: Any):
    if section == "training" and value == 2**62 and key in ("learning_rate", "weight_decay", "max_grad_norm"):
        return  # a diverging training says so by itself
    if (section, key, value) == ("training", "head_learning_rate", 2**62) or (key, value) == ("warmup_steps", 2**62):
        return
    assert f"{section}.{key}" in refusal(section, **{key: value})


@pytest.mark.parametrize("key", ["calibration_records", "calibration_batch_size"])
@pytest.mark.parametrize("value", [10**20, 10**12, 0, -1, True, "many"])
def test_calibration_too(key: str, value: Any):
    assert key in refusal(**{key: value})


BAD_NAMES = {"empty": "", "blank": "  ", "NUL": "a\0b", "long": "a" * 300, "deep": "ab/" * 3_000, "half": "\ud800"}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
@pytest.mark.parametrize(
    ("section", "key", "others"),
    [
        ("model", "name", {}),
        ("data", "text", {}),
        ("data", "data_dir", {}),
        ("data", "file", {"task": "instruct"}),
        ("data", "dataset", {"task": "instruct"}),
        ("data", "train_set", {"task": "arithmetic"}),
        ("data", "name", {"task": "glue"}),
        ("data", "folder", {"task": "images"}),
        ("data", "label", {"task": "images", "name": "dtd"}),
    ],
)
def test_names_and_places_are_ones_that_a_file_can_have(section: str, key: str, others: dict[str, str], name: str):
    assert f"{section}.{key}" in refusal(section, **others, **{key: name})


@pytest.mark.parametrize("section", ["model", "data", "evaluation", "training", "regrowth", *METHODS])
@pytest.mark.parametrize("value", [None, 5, "a", [1]])
def test_a_section_is_one(section: str, value: Any):
    assert "a section of keys belongs here" in refusal(**{section: value})


@pytest.mark.parametrize(
    ("method", "key", "value", "found"),
    [
        ("lora", "r", "many", "a text stands where a whole number belongs"),
        ("lora", "r", 0, "0 is not between 1 and 65536"),
        ("lora", "r", None, "null stands where"),
        ("lora", "lora_dropout", 1.5, "a probability of dropping"),
        ("lora", "bias", "some", "no such value. Choose one of none, all, lora_only"),
        ("lora", "init_lora_weights", "gausian", "no such value"),
        ("lora", "rank_pattern", {"(": 1}, "is not a regular expression"),
        ("lora", "rank_pattern", {"q_proj": "a"}, "'a' in it is not a number"),
        ("lora", "modules_to_save", "classifier", "a text stands where a list or null belongs"),
        ("neat", "depth", 10**9, "is not between 0 and 1000"),
        ("prefix", "num_virtual_tokens", None, "null stands where a whole number belongs"),
        ("prefix", "num_virtual_tokens", -1, "-1 is not between 1"),
        ("neuroada", "layers_to_transform", [-1], "-1 is not between 0"),
        ("neuroada", "k", 10**15, "is not between"),
        ("peanut", "act_fn", "", "the text is empty"),
    ],
)
def test_settings_that_peft_takes_and_training_does_not(method: str, key: str, value: Any, found: str):
    message = refusal(**{"method": method, method: {key: value}})
    assert message.startswith(f"{method}.{key} = ")
    assert found in message


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("lora", {"lora_alpha": 0.5, "init_lora_weights": "pissa_niter_4", "rank_pattern": {"q_proj": 4}}),
        ("lora", {"init_lora_weights": False, "target_modules": ["q_proj"], "layers_to_transform": [0, 1]}),
        ("supertuning", {"r": None, "sparsity": 0.9}),
        ("neuroada", {"k_pattern": {"q_proj": 2}, "target_modules": None, "exclude_modules": r".*\.q_proj"}),
        ("prefix", {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": None}),
    ],
)
def test_settings_that_can_be_meant_stay(method: str, values: dict[str, Any]):
    assert check_recipe(MINIMAL | {"method": method, method: values}, "a recipe").settings == values


@pytest.mark.parametrize("base", ["a" * 5_000, "/" + "a" * 5_000, "a\0b", "~nobody-of-this-name/a", "../" * 3_000, "#"])
def test_a_base_that_no_file_can_be_called(base: str, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"base": base}))
    with pytest.raises(ConfigError, match=r"^recipe ") as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 2_000


@pytest.mark.parametrize("base", [1, True, "", " ", [], ["quickstart"], {"a": 1}])
def test_a_base_is_a_name(base: Any, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"base": base}))
    with pytest.raises(ConfigError, match=r"mine\.yaml: base = .* is not the name of a recipe\. Give a bundled name"):
        load_recipe(path)


def test_bases_below_bases_have_an_end(tmp_path: Path):
    for n in range(MAX_BASES + 5):
        (tmp_path / f"r{n}.yaml").write_text(f"base: r{n + 1}\n")
    with pytest.raises(ConfigError, match=f"more than {MAX_BASES} bases lie below one another"):
        load_recipe(tmp_path / "r0.yaml")


@pytest.mark.parametrize("path", ["a\0b.yaml", "a" * 5_000, "/", "/none/there.yaml"])
def test_a_path_that_cannot_be_read(path: str):
    with pytest.raises(ConfigError, match="it cannot be read as text"):
        load_recipe(Path(path))
