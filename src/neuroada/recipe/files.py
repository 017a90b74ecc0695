"""Recipe files: where they are found, how one builds on another, and the variants that one file may hold."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from neuroada.errors import ConfigError, near
from neuroada.recipe.plain import shortened, shown
from neuroada.recipe.yaml_text import parse_yaml

_EITHER = (("max_steps", "num_train_epochs"), ("k", "budget"), ("folder", "name"))
REPLACES = dict(_EITHER) | {other: one for one, other in _EITHER}
"""Keys of which the one that is set later takes the place of the other."""

DESCRIPTION = ("about", "reaches", "note")
"""Keys of a variant that are for people."""


MAX_BASES = 20
"""Recipes that build on one another; a choice."""


@dataclass(frozen=True)
class RecipeFile:
    """A recipe: a file of its own, or one of the `variants` of a file, each laid over what the file says for all."""

    path: Path
    variant: str | None = None

    @property
    def name(self) -> str:
        """What the recipe is called on the command line."""
        return self.variant or self.path.stem

    def __str__(self) -> str:
        return f"{self.path}#{self.variant}" if self.variant else str(self.path)

    def described(self) -> str:
        """The comment that the file begins with, and what it says of the variant."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        comment = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
        if self.variant is None:
            return "\n".join(comment)
        body = _content(self.path)["variants"][self.variant]
        return "\n".join([body["about"], f"Reaches: {body['reaches']}", body.get("note", ""), *comment])


def bundled_recipes() -> dict[str, RecipeFile]:
    """By name, each recipe that comes with the package."""
    found = [each for path in bundled("recipes").values() for each in _recipes_in(path)]
    return {each.name: each for each in sorted(found, key=lambda each: each.name)}


def _recipes_in(path: Path) -> list[RecipeFile]:
    variants = _content(path).get("variants")
    return [RecipeFile(path)] if variants is None else [RecipeFile(path, name) for name in variants]


def bundled(folder: str) -> dict[str, Path]:
    """Name and path of each YAML file in a folder of the package."""
    return {path.stem: path for path in sorted(Path(str(files("neuroada")), folder).glob("*.yaml"))}


def find_recipe(name: str) -> RecipeFile:
    """The recipe of a bundled name, of a path, or of FILE#VARIANT.

    Raises:
        ConfigError: none of them is there; the message lists the bundled names, near ones first.
    """
    known = bundled_recipes()
    if name in known:
        return known[name]
    path = _file_at(name)
    if path is not None:
        return RecipeFile(path)
    file, _, variant = name.rpartition("#")
    path = _file_at(file) if file else None
    if path is not None:
        return RecipeFile(path, variant)
    path = Path(name)
    looks_like_path = path.suffix in {".yaml", ".yml"} or len(path.parts) > 1
    found = "no such file" if looks_like_path else "neither a bundled recipe nor a file"
    raise ConfigError(f"recipe {shown(name)}", found, f"{near(path.stem, known)}; `neuroada recipes` lists them")


def _file_at(name: str | Path) -> Path | None:
    """The file of that name, if there is one; a name that no file can have is none."""
    try:
        path = Path(name).expanduser()
        return path if path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, the home of nobody
        return None


def read_recipe(file: RecipeFile, above: tuple[RecipeFile, ...] = ()) -> dict[str, Any]:
    """What a recipe says, laid over the recipe that its key `base` names, section by section.

    Raises:
        ConfigError: it cannot be read, has no such variant, or its base leads back to itself.
    """
    asked, content = _asked(file), _content(file.path)
    variants = content.pop("variants", None)
    if file.variant is not None or variants is not None:
        content = laid_over(content, _variant(file, variants, asked))
    base = content.pop("base", None)
    if base is None:
        return content
    if file in above or len(above) >= MAX_BASES:
        chain = shortened(" -> ".join(each.name for each in (*above, file)), 300)
        found = (
            "its base leads back to itself" if file in above else f"more than {MAX_BASES} bases lie below one another"
        )
        raise ConfigError(asked, f"{found} ({chain})", "Name another base")
    return laid_over(read_recipe(_base_of(file, base, asked), (*above, file)), content)


def _base_of(file: RecipeFile, base: Any, asked: str) -> RecipeFile:
    """The recipe that the key `base` names: beside the file, bundled, or by its path."""
    if not isinstance(base, str) or not base.strip():
        found = f"base = {shown(base)} is not the name of a recipe"
        raise ConfigError(asked, found, "Give a bundled name, a path, or leave the key out")
    beside = _file_at(file.path.parent / f"{base}.yaml")
    return RecipeFile(beside) if beside is not None else find_recipe(base)


def _asked(file: RecipeFile) -> str:
    return f"recipe {shortened(str(file), 200)}"


def _variant(file: RecipeFile, variants: Any, asked: str) -> dict[str, Any]:
    known = {str(name): body for name, body in variants.items()} if isinstance(variants, dict) else {}
    if file.variant not in known or not isinstance(known[file.variant], dict):
        found = "it holds several variants" if file.variant is None else f"it has no variant {shown(file.variant)}"
        as_in = shortened(str(file.path), 200)
        raise ConfigError(asked, found, f"Name one as in {as_in}#NAME. {near(file.variant or '', known)}")
    return {key: value for key, value in known[file.variant].items() if key not in DESCRIPTION}


def laid_over(below: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """One recipe's sections with another's over them; a section keeps the keys that the other does not have."""
    merged = deepcopy(dict(below))
    for key, value in content.items():
        section = merged.get(key)
        both = isinstance(value, dict) and isinstance(section, dict)
        merged[key] = section_over(section, value) if both else deepcopy(value)
    return merged


def section_over(section: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """A section's keys with others over them; of two that say the same thing the later one counts."""
    replaced = {REPLACES[name] for name, given in value.items() if name in REPLACES and given is not None}
    return {name: kept for name, kept in section.items() if name not in replaced} | deepcopy(dict(value))


def _content(path: Path) -> dict[str, Any]:
    asked = _asked(RecipeFile(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # no UTF-8, or a name with a NUL byte
        why = shortened(str(error), 200)
        raise ConfigError(asked, f"it cannot be read as text ({why})", "Save it as UTF-8") from None
    content = parse_yaml(text, asked)
    if not isinstance(content, dict):
        raise ConfigError(asked, "it is not a mapping of sections", "Begin from a bundled recipe")
    return content
