"""A recipe as one checked object: read, changed by `--set`, and checked."""

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from neuroada.errors import ConfigError
from neuroada.recipe.complaints import Source, readable, typed_problems
from neuroada.recipe.files import REPLACES, RecipeFile, read_recipe, section_over
from neuroada.recipe.methods import check_settings
from neuroada.recipe.plain import require_plain, shortened
from neuroada.recipe.schema import Recipe
from neuroada.recipe.yaml_text import parse_yaml


def load_recipe(
    source: Path | RecipeFile,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    options: Mapping[str, str] | None = None,
) -> Recipe:
    """Read a recipe, apply `overrides` ("section.key=value") and then dotted `values`, and check it all.

    options: of the keys of `values` that came from the command line, the option of each, such as "--file".

    Raises:
        ConfigError: no valid YAML, an unknown key, or a value that cannot be meant. It names what was typed, where the
            fault is in that, or the file.
    """
    return _checked(*_read(source, overrides, values or {}, options or {}))


def check_typed(
    source: Path | RecipeFile, overrides: Iterable[str], values: Mapping[str, Any], options: Mapping[str, str]
) -> None:
    """Raise ConfigError if a key that was typed is none of the recipe's; all else may be wrong or not yet there.

    Arguments are those of `load_recipe`.
    """
    content, came_from = _read(source, overrides, values, options)
    require_plain(content, came_from.file)
    try:
        Recipe.model_validate(content)
    except ValidationError as error:
        problems = typed_problems(error, came_from)
        if problems is not None:
            raise problems from None


def check_recipe(content: Mapping[str, Any], asked: str) -> Recipe:
    """Validate the sections and the method's settings, so that errors come early."""
    return _checked(content, Source(shortened(asked, 300)))


def _read(
    source: Path | RecipeFile, overrides: Iterable[str], values: Mapping[str, Any], options: Mapping[str, str]
) -> tuple[dict[str, Any], Source]:
    file = source if isinstance(source, RecipeFile) else RecipeFile(source)
    content, together = read_recipe(file), set[str]()
    keys, typed = frozenset(content), dict[str, str]()
    for override in overrides:
        key, sign, value = override.partition("=")
        asked = f"--set {shortened(override, 200)}"
        if not sign or not key.strip():
            raise ConfigError(asked, "it is not of the form key=value", "Write section.key=value")
        _assign(content, key.strip(), parse_yaml(value, asked), asked, together)
        typed[key.strip()] = asked
    for key, value in values.items():
        _assign(content, key, value, options.get(key, f"--set {key}"))
        typed.pop(key, None)
    return content, Source(f"recipe {shortened(str(file), 200)}", typed | dict(options), keys)


def _checked(content: Mapping[str, Any], source: Source) -> Recipe:
    if not isinstance(content, Mapping):
        raise ConfigError(source.file, "it is not a mapping of sections", "Begin from a bundled recipe")
    require_plain(content, source.file)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise readable(error, source) from None
    try:
        check_settings(recipe.method, recipe.settings)
    except ConfigError as error:
        raise _of_settings(error, recipe.method, recipe.settings, source) from None
    return recipe


def _of_settings(error: ConfigError, method: str, settings: Mapping[str, Any], source: Source) -> ConfigError:
    """The same, under the name of what was typed if that set the key that it is about."""
    key = re.match(r"\w*", error.asked.removeprefix(f"{method}."))
    typed = source.blamed(f"{method}.{key[0]}") if key and key[0] in settings else None
    if typed is None:
        return error
    several = re.search(" (with|and) ", error.asked) is not None
    return ConfigError(typed, f"{error.asked}: {error.found}" if several else error.found, error.do)


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to an equal one."""
    return yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True)


def _assign(content: dict[str, Any], key: str, value: Any, asked: str, together: set[str] | None = None) -> None:
    """asked: what an error names.

    together: keys that were given before at the same place, which none may replace; this one is added.
    """
    *sections, last = key.split(".")
    for name in sections:
        inner = content.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(asked, f"{shortened(name)!r} is a value, not a section", "Set the value itself")
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
