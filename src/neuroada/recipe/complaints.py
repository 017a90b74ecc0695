"""What is wrong with a recipe, in words: by the keys that a person typed, where the fault is in one of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from neuroada.errors import ConfigError, NeuroAdaError, near
from neuroada.recipe.data import DATA
from neuroada.recipe.plain import shortened, shown
from neuroada.recipe.schema import Recipe, section_of

MANY = 4
"""Problems of one recipe that are told at a time."""

_WORDS = {
    "model_type": "a section of keys belongs here",
    "model_attributes_type": "a section of keys belongs here",
    "dict_type": "a section of keys belongs here",
    "invalid_key": "a key must be a text; put it in quotes",
}
"""In place of pydantic's words, which speak of its classes."""


@dataclass(frozen=True)
class Source:
    """Where a recipe comes from.

    file: as an error names it. typed: by dotted key, what set it on the command line, such as "--file" or
    "--set seed=1". keys: top-level keys of the file itself.
    """

    file: str
    typed: Mapping[str, str] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()

    def blamed(self, key: str, parts: bool = False) -> str | None:
        """What the person typed that set `key`, if anything did. parts: or a part of it that is not in the file."""
        for dotted in reversed(list(self.typed)):
            inside = key == dotted or key.startswith(f"{dotted}.")
            if inside or (parts and dotted.startswith(f"{key}.") and key not in self.keys):
                return self.typed[dotted]
        return None

    def within(self, key: str) -> str:
        """The file, and what was typed of a whole section of which the rules are broken."""
        given = [text for dotted, text in self.typed.items() if key and dotted.startswith(f"{key}.")]
        return f"{self.file} with {' and '.join(dict.fromkeys(given))}" if given else self.file


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. asked: what is blamed."""

    asked: str
    found: str
    do: str


def readable(error: ValidationError, source: Source) -> NeuroAdaError:
    """All that pydantic found, or the first of it, as one error."""
    return _joined([_problem(item, source) for item in error.errors()], source)


def typed_problems(error: ValidationError, source: Source) -> NeuroAdaError | None:
    """Of what pydantic found, the keys that a person typed and the recipe does not have."""
    unknown = [item for item in error.errors() if item["type"] == "extra_forbidden"]
    problems = [_problem(item, source) for item in unknown if source.blamed(_key(item), True)]
    return _joined(problems, source) if problems else None


def _joined(problems: list[Problem], source: Source) -> NeuroAdaError:
    told, more = problems[:MANY], len(problems) - MANY
    asked = {each.asked for each in told}
    if len(asked) == 1:
        found = "; ".join(each.found for each in told)
    else:
        found = "; ".join(each.found if each.asked == source.file else f"{each.asked}: {each.found}" for each in told)
    found += f"; and {more} more" if more > 0 else ""
    do = ". ".join(dict.fromkeys(each.do for each in told))
    return ConfigError(asked.pop() if len(asked) == 1 else source.file, found, shortened(do, 900))


def _key(item: Mapping[str, Any]) -> str:
    names = [str(name) for place, name in enumerate(item["loc"]) if place != 1 or str(name) not in DATA]
    return shortened(".".join([*names, "task"] if item["type"] == "union_tag_invalid" else names))


def _problem(item: Mapping[str, Any], source: Source) -> Problem:
    key, kind = _key(item), item["type"]
    if kind == "extra_forbidden":
        asked = source.blamed(key, True) or source.file
        return Problem(asked, f"unknown key {key!r}", _instead(item["loc"]))
    if kind == "missing":
        return Problem(source.within(key.rpartition(".")[0]), f"{key!r} is missing", f"Add {key!r}")
    asked = source.blamed(key, kind != "value_error") or source.within(key)
    if kind == "union_tag_invalid":
        tag = str(item["ctx"]["tag"])
        return Problem(asked, f"{key} = {shown(tag)}: no such task", near(tag, DATA))
    said = _WORDS.get(kind) or item["msg"].removeprefix("Value error, ")
    value = "" if isinstance(item["input"], dict) else f" = {shown(item['input'])}"
    if not key:
        return Problem(asked, shortened(said, 600), "Correct the recipe")
    return Problem(asked, f"{key}{value}: {shortened(said, 600)}", f"Correct {key!r}")


def _instead(location: tuple[int | str, ...]) -> str:
    """What to do about an unknown key: where it belongs, if it stands elsewhere, and what its section takes."""
    name, section = str(location[-1]), section_of(location[:-1])
    advice = near(name, section.model_fields)
    if location[0] != "data" or len(location) < 3:
        elsewhere = "" if advice.startswith("Did you mean") else _elsewhere(name)
        return elsewhere + advice
    hint, _, known = advice.rpartition("Known: ")
    tasks = [task for task, kind in DATA.items() if name in kind.model_fields]
    others = f". Tasks with {name!r}: {', '.join(tasks)}" if tasks else ""
    return f"{hint}The recipe's task {str(location[1])!r} takes {known}{others}"


def _elsewhere(key: str) -> str:
    """Which sections have a key that stands where it does not belong."""
    sections = {name: info.annotation for name, info in Recipe.model_fields.items()}
    owners = [f"{name}.{key}" for name, kind in sections.items() if key in getattr(kind, "model_fields", ())]
    owners += [f"data.{key} of task {task}" for task, kind in DATA.items() if not owners and key in kind.model_fields]
    return f"There is {' and '.join(owners[:2])}. " if owners else ""
