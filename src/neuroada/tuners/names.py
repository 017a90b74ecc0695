"""Names of a configuration that match nothing in the model, beside others that do."""

from __future__ import annotations

import copy
import difflib
import re
import warnings
from collections.abc import Iterable
from typing import Any

from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from neuroada.errors import TargetError

PEFT_ADDS = ("classifier", "score", "qa_outputs")
"""Names that PEFT itself puts into `modules_to_save`, whether a model has them or not."""


def check_names(config: Any, model: nn.Module) -> None:
    """Look at every name of a configuration of any method of PEFT's; one that was saved with an adapter is trusted.

    A target or an exclusion that matches nothing is told by a warning: lists for several architectures are common.

    Raises:
        TargetError: a module to save, or a layer to transform, that the model does not have.
    """
    if getattr(config, "read_from_file", False):
        return
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for field in ("target_modules", "exclude_modules"):
        lost = [each for each in _listed(config, field) if not any(_ends(name, each) for name in names)]
        if lost and (field != "target_modules" or len(lost) < len(_listed(config, field))):
            warnings.warn(f"{field}: no module of the model is called {_with_hints(lost, names)}", stacklevel=6)
    saved = [each for each in _listed(config, "modules_to_save") if each not in PEFT_ADDS]
    lost = [each for each in saved if not any(name.endswith(each) for name in names)]
    if lost:
        raise TargetError(
            f"modules_to_save={saved}",
            f"no module of the model is called {_with_hints(lost, names)}",
            "Correct the name, or leave it out",
        )
    _require_layers(config, names)


def _listed(config: Any, field: str) -> list[str]:
    """Names that are given one by one; a regular expression or "all-linear" is none of them."""
    given = getattr(config, field, None)
    return sorted(given) if isinstance(given, Iterable) and not isinstance(given, str) else []


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _with_hints(lost: list[str], names: list[str]) -> str:
    """The names, each with those of the model that come near it."""
    known = sorted({name.rpartition(".")[2] for name in names} - {""})
    hints = {each: difflib.get_close_matches(each.rpartition(".")[2], known, n=3, cutoff=0.6) for each in lost}
    return ", ".join(f"{each!r}" + (f" (near: {', '.join(near)})" if near else "") for each, near in hints.items())


def _require_layers(config: Any, names: list[str]) -> None:
    asked = getattr(config, "layers_to_transform", None)
    if asked is None or isinstance(getattr(config, "target_modules", None), str):
        return
    numbers = [asked] if isinstance(asked, int) else list(asked)
    there = {int(number) for name in names for number in re.findall(r"\.(\d+)(?=\.|$)", f".{name}")}
    known = [number for number in sorted(there) if _has_layer(config, names, number)]
    lost = [number for number in numbers if number not in known]
    if lost and known:
        raise TargetError(
            f"layers_to_transform={asked!r}",
            f"the model has no such layer as {', '.join(map(str, lost))} with these targets",
            f"Layers count from 0; those with these targets are {_ranges(known)}",
        )


def _has_layer(config: Any, names: list[str], number: int) -> bool:
    one = copy.copy(config)
    one.layers_to_transform = [number]
    one.modules_to_save = one.exclude_modules = None
    return any(bool(check_target_module_exists(one, name)) for name in names)


def _ranges(numbers: list[int]) -> str:
    if numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 2:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))
