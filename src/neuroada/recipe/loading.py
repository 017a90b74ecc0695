"""Recipes: where they are found, how one builds on another, how `--set` changes them, and what is wrong with them."""

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from neuroada.errors import ConfigError, NeuroAdaError, near
from neuroada.recipe.data import DATA
from neuroada.recipe.methods import check_settings
from neuroada.recipe.schema import Recipe, section_of

_EITHER = (("max_steps", "num_train_epochs"), ("k", "budget"), ("folder", "name"))
REPLACES = dict(_EITHER) | {other: one for one, other in _EITHER}
"""Keys of which the one that is set later takes the place of the other."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 7e-4 as a string; here it is the number that it looks like."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def bundled_recipes() -> dict[str, Path]:
    """Name and path of each recipe that comes with the package."""
    return bundled("recipes")


def bundled(folder: str) -> dict[str, Path]:
    """Name and path of each YAML file in a folder of the package."""
    return {path.stem: path for path in sorted(Path(str(files("neuroada")), folder).glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of a bundled recipe's name or of a path.

    Raises:
        ConfigError: neither is there; the message lists the bundled names, near ones first.
    """
    known = bundled_recipes()
    if name in known:
        return known[name]
    path = Path(name).expanduser()
    if path.is_file():
        return path
    looks_like_path = path.suffix in {".yaml", ".yml"} or len(path.parts) > 1
    found = "no such file" if looks_like_path else "neither a bundled recipe nor a file"
    raise ConfigError(f"recipe {name!r}", found, near(path.stem, known))


def load_recipe(path: Path, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None) -> Recipe:
    """Read `path`, apply `overrides` ("section.key=value") and then dotted `values`, and check it all.

    Raises:
        ConfigError: no valid YAML, an unknown key, or a value that cannot be meant.
    """
    asked = f"recipe {path}"
    content, together = _read(path), set[str]()
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set {override}", "it is not of the form key=value", "Write section.key=value")
        _assign(content, key.strip(), parse_yaml(value, f"--set {override}"), together)
    for key, value in (values or {}).items():
        _assign(content, key, value)
    return check_recipe(content, asked)


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


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a recipe, laid over that of the recipe named by its key `base`, section by section."""
    asked = f"recipe {path}"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(asked, f"it cannot be read as text ({error})", "Save it as UTF-8") from None
    content = parse_yaml(text, asked)
    if not isinstance(content, dict):
        raise ConfigError(asked, "it is not a mapping of sections", "Begin from a bundled recipe")
    base = content.pop("base", None)
    if base is None:
        return content
    if path in above:
        chain = " -> ".join(each.stem for each in (*above, path))
        raise ConfigError(asked, f"its base leads back to itself ({chain})", "Name another base")
    beside = path.parent / f"{base}.yaml"
    merged = _read(beside if beside.is_file() else find_recipe(str(base)), (*above, path))
    for key, value in content.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _laid_over(merged[key], value)
        else:
            merged[key] = value
    return merged


def _laid_over(section: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    replaced = {REPLACES[name] for name, given in value.items() if name in REPLACES and given is not None}
    return {name: kept for name, kept in section.items() if name not in replaced} | deepcopy(dict(value))


def parse_yaml(text: str, asked: str) -> Any:
    """The value that `text` says; `asked` is named in errors."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
        raise ConfigError(asked, f"it is not valid YAML ({error})", "Correct the syntax") from None


def _assign(content: dict[str, Any], key: str, value: Any, together: set[str] | None = None) -> None:
    """together: keys that were given before at the same place, which none may replace; this one is added."""
    *sections, last = key.split(".")
    for name in sections:
        inner = content.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {key}", f"{name!r} is a value, not a section", "Set the value itself")
        content = inner
    if not sections and isinstance(value, dict) and isinstance(content.get(last), dict):
        content[last] = _laid_over(content[last], value)
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
