"""Values of a method's settings, checked against the fields of its PEFT configuration before it is made.

PEFT's configurations take anything, and what cannot be meant ends training with a traceback.
"""

import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from peft import PeftConfig

from neuroada.errors import ConfigError
from neuroada.recipe.kinds import MAX_REAL
from neuroada.recipe.plain import shortened, shown

SEEDS = ("seed", "random_seed")

PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules")
"""Settings that are names, or one regular expression; those below are by such expressions."""

BY_PATTERN = ("rank_pattern", "alpha_pattern")

LEAST = {"r": 1, "num_virtual_tokens": 1, "lora_alpha": 0, "depth": 0, "qalora_group_size": 1, "layers_to_transform": 0}
MOST = {"r": 2**16, "depth": 1000, "num_virtual_tokens": 2**16, "layers_to_transform": 10**5} | dict.fromkeys(
    SEEDS, 2**32 - 1
)
"""Beyond these no model can be adapted; a choice. Other whole numbers end at `ANY`."""

ANY = 10**9

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
    type(None): "null",
}


def require_values(
    name: str, config: type[PeftConfig], settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Raise ConfigError where a value is of a type that its field does not have, out of bounds, or no pattern.

    settings: all of them fields of `config`. defaults: of the method; null is no value for these.
    """
    known, hints = {field.name: field for field in fields(config)}, get_type_hints(config)
    for key, value in settings.items():
        asked, annotation = f"{name}.{key} = {shown(value)}", hints[key]
        takes = _kinds(annotation) | _more_kinds(known[key], key in defaults and defaults[key] is not None)
        if not _fits(value, takes):
            words = " or ".join(word for kind, word in _WORDS.items() if kind in takes)
            raise ConfigError(asked, f"{_word_of(value)} stands where {words} belongs", f"Correct {f'{name}.{key}'!r}")
        _require_members(asked, value, annotation)
        _require_bounds(asked, key, value)
        _require_patterns(asked, key, value)


def _more_kinds(field: Field, has_own_default: bool) -> set[type]:
    """Types that a field takes besides those of its annotation."""
    more: set[type] = {float} if field.name == "lora_alpha" else set()
    if field.default is None and not has_own_default:
        more.add(type(None))
    if field.default is not MISSING and field.default is not None:
        more |= _kinds(type(field.default))
    return more


def _kinds(annotation: Any) -> set[type]:
    """The plain types that a field's annotation takes."""
    origin = get_origin(annotation)
    if annotation is Any:
        return set(_WORDS)
    if origin in (Union, types.UnionType):
        return set().union(*map(_kinds, get_args(annotation)))
    if origin is Literal:
        return {type(member) for member in get_args(annotation)}
    kind = origin or annotation
    if kind in (list, tuple, set, frozenset):
        return {list}
    return {kind} if kind in _WORDS else {dict}


def _fits(value: Any, takes: set[type]) -> bool:
    kind = list if isinstance(value, list | tuple | set | frozenset) else type(value)
    return kind in takes or (kind is int and float in takes) or (issubclass(kind, str) and str in takes)


def _word_of(value: Any) -> str:
    if isinstance(value, bool):
        return "a truth value"
    return next((word for kind, word in _WORDS.items() if isinstance(value, kind)), "a value of another type")


def _require_members(asked: str, value: Any, annotation: Any) -> None:
    """Texts of a list of names, and those of a field that has a fixed choice of them."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    if isinstance(value, str):
        if not value.strip():
            raise ConfigError(asked, "the text is empty", "Give a name, or leave the key out")
        known = [each for part in parts if get_origin(part) is Literal for each in get_args(part)]
        begins = tuple(str(each).partition("[")[0] for each in known if "[" in str(each))  # "pissa_niter_[number]"
        if known and str not in parts and value not in known and not (begins and value.startswith(begins)):
            raise ConfigError(asked, "no such value", f"Choose one of {', '.join(map(str, known))}")
    if not isinstance(value, list | tuple | set):
        return
    for part in parts:
        if get_origin(part) in (list, set) and get_args(part)[0] in (str, int):
            member = get_args(part)[0]
            if wrong := [each for each in value if not _fits(each, {member}) or each == ""]:
                found = f"{shown(wrong[0])} in it is not {'a name' if member is str else _WORDS[member]}"
                raise ConfigError(asked, found, "Correct the list")
            return


def _require_bounds(asked: str, key: str, value: Any) -> None:
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, bool) or not isinstance(each, int | float):
            continue
        most = MOST.get(key, ANY if isinstance(each, int) else MAX_REAL)
        least = 0 if key in SEEDS else LEAST.get(key, -most)
        if not least <= each <= most:
            found = f"{each} is not between {least} and {most}"
            raise ConfigError(asked, found, f"Give {'a number' if isinstance(each, float) else 'one'} in between")
        if key.endswith("dropout") and not 0 <= each < 1:
            raise ConfigError(
                asked, "a probability of dropping must be at least 0 and below 1", "Give one, such as 0.05"
            )


def _require_patterns(asked: str, key: str, value: Any) -> None:
    """Raise ConfigError where a name or one of its parts is no regular expression."""
    patterns = [value] if key in PATTERNS and isinstance(value, str) else []
    if key in BY_PATTERN and isinstance(value, dict):
        patterns = list(value)
        if wrong := [each for each in value.values() if isinstance(each, bool) or not isinstance(each, int | float)]:
            raise ConfigError(asked, f"{shown(wrong[0])} in it is not a number", "Write it as {q_proj: 4}")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError, TypeError) as error:
            found = f"{shown(pattern)} is not a regular expression ({shortened(str(error))})"
            raise ConfigError(asked, found, "Correct it, or give a list of names") from None
