"""Which modules a configuration means, and errors that say why there are none."""

from __future__ import annotations

import copy
import difflib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from neuroada.config import AdapterConfig
from neuroada.errors import TargetError

ALL_LINEAR = "all-linear"

HEADS = ("classifier", "score", "qa_outputs")
"""What Transformers calls the output layers of tasks at the top of a model. They begin at random: `modules_to_save`
trains and saves them whole, and an adapter on one would not fit the next model."""

NARROWING = ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
"""Fields of PEFT's that take modules out of what `target_modules` names."""


def include_all_linear(config: Any, model: nn.Module) -> None:
    """Put names in the place of "all-linear", as PEFT does, but without heads and within `layers_to_transform`."""
    asked = config.target_modules
    if not isinstance(asked, str) or asked.lower() != ALL_LINEAR:
        return
    _maybe_include_all_linear_layers(config, model)
    names = {name for name in config.target_modules if name.partition(".")[0] not in HEADS}
    if config.layers_to_transform is not None:  # PEFT takes a name in full wherever it is
        names = {name for name in names if _in_layers(config, name)}
        if not names:
            raise TargetError(
                f"target_modules={asked!r} with layers_to_transform={config.layers_to_transform!r}",
                "no such layer has a linear module",
                "Layers count from 0; layers_pattern names the list of them where PEFT does not find it",
            )
    config.target_modules = names


def _in_layers(config: Any, name: str) -> bool:
    by_end = copy.copy(config)
    by_end.target_modules = {name.rpartition(".")[2]}
    return bool(check_target_module_exists(by_end, f"model.{name}"))


def find_targets(tuner: BaseTuner, peft_config: AdapterConfig, model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model that a configuration means, by name; of nested adapter layers the outermost.

    Raises:
        TargetError: there is none, or one of them has several names.
    """
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    inner = tuple(f"{name}." for name, module in modules.items() if isinstance(module, BaseTunerLayer))
    modules = {name: module for name, module in modules.items() if not name.startswith(inner)}
    targets = {name: module for name, module in modules.items() if _matches(tuner, peft_config, name)}
    _require_one_name_each(targets, modules)
    if not targets:
        raise _nothing_matched(tuner, peft_config, modules)
    return targets


def _matches(tuner: BaseTuner, config: AdapterConfig, name: str) -> bool:
    return bool(tuner._check_target_module_exists(config, name))


def _require_one_name_each(targets: dict[str, nn.Module], modules: dict[str, nn.Module]) -> None:
    names = Counter(id(module) for module in modules.values())
    for name, module in targets.items():
        if names[id(module)] > 1:
            others = [other for other, same in modules.items() if same is module and other != name]
            raise TargetError(
                f"Adapting the module {name}",
                f"the very same module is also called {', '.join(others)}, where it would stay as it is",
                "Leave it out with exclude_modules, or give each place a module of its own",
            )


def require_apart(config: AdapterConfig, model: nn.Module, targets: Iterable[str]) -> None:
    """Raise TargetError where one adapter would be inside a module that another one saves whole."""
    modules = dict(model.named_modules())
    for name in targets:
        for end in range(len(name)):
            if name[end] == "." and isinstance(modules.get(name[:end]), AuxiliaryTrainingWrapper):
                raise TargetError(
                    f"Adapting the module {name}",
                    f"it is inside {name[:end]}, which another adapter trains and saves whole (modules_to_save)",
                    "Delete that adapter first, or choose modules outside",
                )
    adapted = [name for name, module in modules.items() if isinstance(module, BaseTunerLayer)]
    for saved in config.modules_to_save or ():
        for name in adapted:
            around = next((each for each in modules if each.endswith(saved) and name.startswith(f"{each}.")), None)
            if around is not None and not isinstance(modules[around], AuxiliaryTrainingWrapper):
                raise TargetError(
                    f"modules_to_save=[{saved!r}]",
                    f"{name} inside {around} has another adapter",
                    "Delete that adapter first, or save a module outside",
                )


def _nothing_matched(tuner: BaseTuner, config: AdapterConfig, modules: dict[str, nn.Module]) -> TargetError:
    asked = config.target_modules
    names = [asked] if isinstance(asked, str) else sorted(asked or ())
    given = {field: getattr(config, field) for field in NARROWING if getattr(config, field) is not None}
    narrowing = ", ".join(f"{field}={value!r}" for field, value in given.items())
    request = f"target_modules={names}" + (f" with {narrowing}" if given else "")
    wider = copy.copy(config)
    for field in given:
        setattr(wider, field, None)
    meant = [name for name in modules if _matches(tuner, wider, name)]
    if meant:
        found = f"nothing is left of {meant[0]}" + (f" and {len(meant) - 1} more" if meant[1:] else "")
        return TargetError(request, found, "Widen the targets or the layers, or exclude less")
    known = sorted({name.rpartition(".")[2] for name, module in modules.items() if hasattr(module, "weight")})
    near = [match for name in names for match in difflib.get_close_matches(name, [ALL_LINEAR, *known], n=3, cutoff=0.5)]
    hint = (
        f"Did you mean {', '.join(dict.fromkeys(near))}" if near else f"Modules with a weight: {', '.join(known[:20])}"
    )
    return TargetError(request, "no module of the model has such a name", hint)
