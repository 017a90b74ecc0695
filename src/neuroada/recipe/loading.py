"""A recipe as one checked object: read, changed by `--set`, and what is wrong with it."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from neuroada.errors import ConfigError, NeuroAdaError, near
from neuroada.recipe.data import DATA
from neuroada.recipe.files import REPLACES, RecipeFile, parse_yaml, read_recipe, section_over
from neuroada.recipe.methods import check_settings
from neuroada.recipe.schema import Recipe, section_of


def load_recipe(
    source: Path | RecipeFile, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe, apply `overrides` ("section.key=value") and then dotted `values`, and check it all.

    Raises:
        ConfigError: no valid YAML, an unknown key, or a value that cannot be meant.
    """
    file = source if isinstance(source, RecipeFile) else RecipeFile(source)
    content, together = read_recipe(file), set[str]()
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set {override}", "it is not of the form key=value", "Write section.key=value")
        _assign(content, key.strip(), parse_yaml(value, f"--set {override}"), together)
    for key, value in (values or {}).items():
        _assign(content, key, value)
    return check_recipe(content, f"recipe {file}")


def check_recipe(content: Mapping[str, Any], asked: str) -> Recipe:
    """Validate the sections and the method's settings, so that errors come early."""
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise _readable(error, asked) from None
    check_settings(recipe.method, recipe.settings)
    return recipe


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to an equal one."""
    return yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True)


def _assign(content: dict[str, Any], key: str, value: Any, together: set[str] | None = None) -> None:
    """together: keys that were given before at the same place, which none may replace; this one is added."""
    *sections, last = key.split(".")
    for name in sections:
        inner = content.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {key}", f"{name!r} is a value, not a section", "Set the value itself")
        content = inner
    if not sections and isinstance(value, dict) and isinstance(content.get(last), dict):
        content[last] = section_over(content[last], value)
        return
    content[last] = deepcopy(value)  # a section may be changed by the next key
    if value is None or last not in REPLACES:
        return
    other = ".".join([*sections, REPLACES[last]])
    if together is not None:
        if other in together:
            raise ConfigError(f"--set {other} and --set {key}", "either says the same thing", "Give one of them")
        together.add(key)
    if content.get(REPLACES[last]) is not None:
        del content[REPLACES[last]]


def _elsewhere(key: str) -> str | None:
    """Where a key belongs that stands in another section."""
    sections = {name: field.annotation for name, field in Recipe.model_fields.items()}
    owners = [f"{name}.{key}" for name, kind in sections.items() if key in getattr(kind, "model_fields", ())]
    return f"Did you mean {owners[0]!r}? It is a key of that section" if owners else None


def _readable(error: ValidationError, asked: str) -> NeuroAdaError:
    problems, advice = [], []
    for item in error.errors():
        location = item["loc"]
        key = ".".join(str(name) for place, name in enumerate(location) if place != 1 or str(name) not in DATA)
        if item["type"] == "extra_forbidden":
            problems.append(f"unknown key {key!r}")
            elsewhere = _elsewhere(str(location[-1]))
            advice.append(elsewhere or near(str(location[-1]), section_of(location[:-1]).model_fields))
        elif item["type"] == "missing":
            problems.append(f"{key!r} is missing")
            advice.append(f"Add {key!r}")
        elif item["type"] == "union_tag_invalid":
            problems.append(f"data.task = {item['ctx']['tag']!r}: no such task")
            advice.append(near(str(item["ctx"]["tag"]), DATA))
        else:
            message = item["msg"].removeprefix("Value error, ")
            value = "" if isinstance(item["input"], dict) else f" = {item['input']!r}"
            problems.append(f"{key}{value}: {message}" if key else message)
            advice.append(f"Correct {key!r}" if key else "Correct the recipe")
    return ConfigError(asked, "; ".join(problems), ". ".join(dict.fromkeys(advice)))
