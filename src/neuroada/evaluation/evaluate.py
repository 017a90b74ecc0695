"""Score a run, an adapter or any model on any tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console

from neuroada.config.shared import require_known
from neuroada.errors import ConfigError, MissingInputError, near
from neuroada.evaluation.harness import HarnessTests
from neuroada.evaluation.loading import Trained, load_trained, recipe_of
from neuroada.evaluation.progress import progress_bars
from neuroada.inputs.data import open_tests
from neuroada.inputs.models import DTYPES
from neuroada.inputs.tests import FAMILIES, GenerativeTests, ImageTest, Scored, Tests
from neuroada.recipe.data import GlueData, ImagesData
from neuroada.recipe.schema import EvaluationSection, Recipe
from neuroada.tasks import glue
from neuroada.tasks.generative import Family


def evaluate(
    target: str,
    tests: Sequence[str],
    data_dir: Path | None,
    settings: EvaluationSection,
    console: Console,
    *,
    dtype: str = "bfloat16",
    seed: int | None = None,
    harness: Sequence[str] = (),
    shots: int | None = None,
    strict: bool = False,
) -> Scored:
    """Scores of what `target` names: a run folder, an adapter's folder, or a model's directory or hub id.

    tests: names of tests, averages or families; none for those of the run's recipe. settings, seed: where they say
    nothing, tests of the task that a run was trained on take the run's. data_dir: of the tests; None for the run's own,
    or else the hub. dtype: of the weights, where no recipe says it. seed: of the choice of records.
    strict: refuse a picture that cannot be decoded, as the run's recipe may do anyway, instead of leaving it out.

    Raises:
        ConfigError: an unknown test or dtype, none named and no recipe to take them from, or a test that wants words of
            a model that gives classes.
        MissingInputError: a part of the model or the data is not there.
    """
    require_known("--dtype", dtype, DTYPES)
    recipe = recipe_of(target)
    if (tests or harness) and recipe is not None and isinstance(recipe.data, GlueData | ImagesData):
        found = f"the run's task is {recipe.data.task}: its model gives classes, not words"
        raise ConfigError(f"--tasks or --harness of {target}", found, "Leave it out: the run's own test is scored")
    if not tests and not harness and recipe is None:
        path = Path(target)
        if not path.exists() and path.parent != Path() and path.parent.is_dir():
            raise MissingInputError(f"run {target}", "no such folder", "Name a run's folder, or tests with --tasks")
        known = ", ".join(FAMILIES)
        raise ConfigError(
            f"evaluating {target}", "it is no run, and no tests are named", f"Give --tasks, as in {known}"
        )
    chosen: list[Tests] = [
        _named(family, names, data_dir, settings, seed, recipe) for family, names in _by_family(tests)
    ]
    if harness:
        chosen.append(HarnessTests.load(harness, settings, shots))
    trained = load_trained(target, dtype, console)
    if not chosen:
        chosen = [_of_recipe(trained, data_dir, settings, seed, strict)]
    if torch.accelerator.is_available():
        trained.model.to(torch.accelerator.current_accelerator())
    console.print(f"Scoring {sum(each.records for each in chosen):,} records", style="dim")
    scored = Scored([], [])
    with progress_bars(console) as progress:
        for each in chosen:
            bar = progress.add_task("Tests", total=each.records, loss="")
            found = each.score(
                trained.model,
                trained.processor,
                lambda test, done, bar=bar: progress.update(bar, advance=done, loss=test),
            )
            scored += found
    return scored


def read_settings(values: Mapping[str, Any]) -> EvaluationSection:
    """The section with these values; None stands for its default, and "all" for no limit.

    Raises:
        ConfigError: a value that cannot be meant.
    """
    try:
        given: dict[str, Any] = {
            name: None if value == "all" else value for name, value in values.items() if value is not None
        }
        return EvaluationSection(**given)
    except ValidationError as error:
        problems = [
            f"--{str(item['loc'][0]).replace('_', '-')} {item['input']}: {item['msg']}" for item in error.errors()
        ]
        raise ConfigError("neuroada eval", "; ".join(problems), "Correct the value") from None


def _by_family(tests: Sequence[str]) -> list[tuple[Family, list[str]]]:
    """Each family that is named, or has a test that is, with the names of its tests; none for its main average."""
    found: dict[str, list[str]] = {}
    for name in tests:
        if name in FAMILIES:
            found.setdefault(name, [])
            continue
        owners = [family for family in FAMILIES.values() if name in _names(family)]
        if name in glue.TASKS:
            reason = "a test of GLUE, which needs the head that a run has trained"
            raise ConfigError(f"test {name!r}", reason, "Score the run folder, without --tasks")
        if not owners:
            known = dict.fromkeys(each for family in FAMILIES.values() for each in _names(family))
            raise ConfigError(f"test {name!r}", "no such test", near(name, [*FAMILIES, *known]))
        found.setdefault(owners[0].name, []).append(name)
    return [(FAMILIES[family], names) for family, names in found.items()]


def _names(family: Family) -> list[str]:
    return [*family.tests, *family.aliases, *family.averages]


def _named(
    family: Family,
    names: list[str],
    data_dir: Path | None,
    settings: EvaluationSection,
    seed: int | None,
    recipe: Recipe | None,
) -> Tests:
    if recipe is not None:
        data_dir = data_dir or getattr(recipe.data, "data_dir", None)
        if recipe.data.task == family.name:
            settings = _over(recipe.evaluation, settings)
            seed = recipe.seed if seed is None else seed
    return GenerativeTests.load(family, settings.model_copy(update={"tests": names}), data_dir, seed or 0)


def _over(section: EvaluationSection, settings: EvaluationSection) -> EvaluationSection:
    """A recipe's section, but for what `settings` says."""
    return section.model_copy(update=settings.model_dump(exclude_unset=True))


def _of_recipe(
    trained: Trained, data_dir: Path | None, settings: EvaluationSection, seed: int | None, strict: bool
) -> Tests:
    recipe = trained.recipe
    assert recipe is not None
    place = "folder" if getattr(recipe.data, "folder", None) else "data_dir"
    data = recipe.data if data_dir is None else recipe.data.model_copy(update={place: data_dir})
    if strict and isinstance(data, ImagesData):
        data = data.model_copy(update={"strict": True})
    evaluation, seed = _over(recipe.evaluation, settings), recipe.seed if seed is None else seed
    tests = open_tests(data, evaluation, seed, trained.processor)
    if isinstance(tests, ImageTest) and isinstance(data, ImagesData):
        _require_labels(trained.model, tests.task.labels, data.folder or data.name)
    if tests is None:
        raise ConfigError(f"evaluating task {data.task!r}", "it has no tests of its own", "Name some with --tasks")
    return tests


def _require_labels(model: Any, labels: Sequence[str], name: Any) -> None:
    """Raise ConfigError unless the data has just the classes that the model was trained to tell apart."""
    known = [name for _, name in sorted(model.config.id2label.items())]
    if list(labels) != known:
        found = f"its classes are {', '.join(labels)}, and those of the model are {', '.join(known)}"
        raise ConfigError(f"evaluating on {name}", found, "Give pictures of the same classes")
