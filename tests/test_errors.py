"""What an error says of names: a near one only where it was surely meant."""

import pytest

from neuroada.errors import LISTED, near
from neuroada.recipe.schema import EvaluationSection, Recipe, TrainingSection

TRAINING, TOP = list(TrainingSection.model_fields), list(Recipe.model_fields)


def hint(name: str, known: list[str]) -> str | None:
    said = near(name, known)
    return said.partition("?")[0].removeprefix("Did you mean ") if said.startswith("Did you mean") else None


@pytest.mark.parametrize(
    "known", [TRAINING, TOP, list(EvaluationSection.model_fields)], ids=["training", "top", "eval"]
)
def test_one_letter_wrong_is_found_for_every_key(known: list[str]):
    for name in known:
        for place in range(len(name)):
            without, other = name[:place] + name[place + 1 :], name[:place] + "§" + name[place + 1 :]
            more, swapped = (
                name[:place] + "§" + name[place:],
                without[:place] + name[place : place + 1] + without[place:],
            )
            for typo in (without, other, more, swapped, name.upper()):
                if typo not in known and len(name) > 2:
                    found = hint(typo, known)
                    assert found is not None, (typo, name)
                    assert repr(name) in found, (typo, found)


@pytest.mark.parametrize(
    "name",
    [
        *("eval_steps", "eval_strategy", "warmup_ratio", "max_epochs", "optim", "batch_size", "lr", "fp16", "epochs"),
        *("save_total_limit", "logging_dir", "data", "model", "", "steps", "learning", "group_by_length", "a", "§" * 5),
    ],
)
def test_another_key_of_the_same_shape_is_not_offered(name: str):
    assert hint(name, TRAINING) is None


def test_of_two_as_near_both_are_offered():
    assert hint("per_device_batch_size", TRAINING) == "'per_device_eval_batch_size' or 'per_device_train_batch_size'"


def test_an_abbreviation_is_taken_for_the_only_name_that_it_fits():
    assert hint("bf16", ["float32", "bfloat16", "float16"]) == "'bfloat16'"
    assert hint("ft16", ["float16", "front16"]) is None


def test_long_lists_have_an_end():
    names = [f"name-{number:04}" for number in range(500)]
    said = near("else", names)
    assert len(said) < LISTED + 40
    assert said.endswith(f"and {500 - said.count('name-')} more")
