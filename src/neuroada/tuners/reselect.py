"""Choosing inputs by data: gradients and input norms over calibration batches, a few layers at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftMixedModel, PeftModel
from torch import Tensor

from neuroada.config import NeuroAdaConfig
from neuroada.config.criteria import OWN, waits_for_data
from neuroada.config.neuroada import require_comparable
from neuroada.errors import ConfigError, MergeError, WeightError, near
from neuroada.layers import NeuroAdaLinear
from neuroada.ops.sparse_delta import is_held
from neuroada.selection import CRITERIA, Criterion, ScoreFunction
from neuroada.tuners.budget import allocate_budget
from neuroada.tuners.nested import require_unmerged_wrappers
from neuroada.tuners.statistics import MAX_MEMORY, Sums, as_batches, gathering


@torch.inference_mode(False)  # what is chosen is trained later
def reselect(
    model: PeftModel,
    batches: Iterable[Mapping[str, Any]] = (),
    criterion: str | Criterion | ScoreFunction | None = None,
    *,
    adapter_name: str | None = None,
    max_memory: int = MAX_MEMORY,
    progress: bool = True,
) -> None:
    """Choose the inputs of a NeuroAda adapter anew, by calibration data; its deltas have to be zero still.

    "gradient" takes for each neuron the inputs of largest |Σ dL/dW| over the batches, exactly, as the published code
    does (Section 4, Question 2); only the gradients of a few layers are held at a time, and the batches are passed
    through the model once for each such group. The model is in evaluation mode meanwhile, and therefore without
    Transformers' gradient checkpointing: where training needs it, give smaller batches.

    Where a budget is for the model (`budget_scope`), the same statistics spread it: the deltas of a weight then have
    another K, and the groups are gone through twice if there are several. The configuration's `selection` says
    afterwards what chose: the criterion's name, or "own" for a function.

    Args:
        model: with the adapter active, unmerged and not held.
        batches: what the model takes, labels included where the criterion needs gradients.
        criterion: a name in `neuroada.selection.CRITERIA`; or a function of rows of a weight [rows, I] and their
            `Statistics` (gradient and inputs, if there are batches) that returns scores [rows, I]; or a
            `neuroada.selection.Criterion`, which says which of the statistics the function needs. None for the
            configuration's `selection` where that needs data, and else "gradient".
        adapter_name: the active one if None.
        max_memory: bytes of float32 gradients that may be held at a time; a larger weight is a group of its own.
        progress: whether to show a bar.

    Raises:
        ConfigError: an unknown criterion, one that needs data without any, a function that does not return scores of
            its rows' shape, batches that are none or without a loss, a model without such an adapter, or a criterion
            that cannot spread its budget.
        MergeError: the adapter is merged, or held in the weights.
        WeightError: deltas are not zero; a layer gets no gradient from the batches; or scores are NaN. The adapter is
            as it was.
    """
    name = adapter_of(model, adapter_name, "Choosing inputs anew")
    layers = active_layers(model, name, f"Choosing inputs of adapter {name!r} anew")
    batches = as_batches(batches, "Choosing inputs anew")
    _require_untrained(layers, name)
    config: Any = model.peft_config[name]
    if criterion is None and config.selection == OWN:
        asked, found = f"Choosing inputs of adapter {name!r} anew", "its selection is a function, and none is given"
        raise ConfigError(asked, found, "Give criterion=, the function or a name")
    if criterion is None:
        criterion = config.selection if waits_for_data(config.selection) else "gradient"
    budget = config if config.budget_scope == "model" else None
    if budget is not None and isinstance(criterion, str):
        require_comparable(criterion)
    limits = {"max_memory": max_memory, "progress": progress}
    found = choose(model, name, layers, batches, criterion, config.seed, budget=budget, **limits)
    for layer, indices in found.items():
        layer.replace_indices(name, indices)
    config.selection = criterion if isinstance(criterion, str) else OWN


def choose(
    model: PeftModel,
    name: str,
    layers: Sequence[NeuroAdaLinear],
    batches: Sequence[Mapping[str, Any]],
    criterion: str | Criterion | ScoreFunction,
    seed: int,
    *,
    budget: NeuroAdaConfig | None = None,
    kept: Mapping[NeuroAdaLinear, Tensor] | None = None,
    together: bool = False,
    max_memory: int = MAX_MEMORY,
    progress: bool = False,
) -> dict[NeuroAdaLinear, Tensor]:
    """The inputs, int32 [N, K], that a criterion chooses for these layers; nothing is changed.

    budget: a configuration whose budget for the model gives each layer its K; K is as it is without. kept: of each
    layer, bool [N, K]: the present inputs that stay in any case. together: statistics are summed over the processes of
    a training, each of which gives its own batches.
    """
    with_data = bool(batches)
    if together:
        everywhere: list[bool] = [with_data] * dist.get_world_size()
        dist.all_gather_object(everywhere, with_data)
        with_data = all(everywhere)
    chosen = known_criterion(criterion, with_data)
    if chosen.needs_data and not with_data:
        raise ConfigError(f"Choosing inputs by {criterion!r}", "it needs data, and no batch is given", "Give batches")
    asked = name, criterion if isinstance(criterion, str) else chosen, seed
    with gathering(
        model,
        name,
        layers,
        chosen.needs,
        batches,
        together=together,
        twice=budget is not None,
        max_memory=max_memory,
        progress=progress,
    ) as (groups, summed):
        once = summed(groups[0]) if len(groups) == 1 else []

        def in_group(group: Sequence[NeuroAdaLinear], find: Callable[[Sums], Tensor]) -> dict[NeuroAdaLinear, Tensor]:
            return {each.layer: find(each) for each in once or summed(group)}

        def steps_of(each: Sums) -> Tensor:
            return each.layer.score_steps(*asked, each.gradient, each.inputs)

        def choice_of(each: Sums) -> Tensor:
            stay = None if kept is None else kept[each.layer]
            return each.layer.chosen_anew(*asked, each.gradient, each.inputs, sizes.get(each.layer), stay)

        sizes: dict[NeuroAdaLinear, int] = {}
        indices: dict[NeuroAdaLinear, Tensor] = {}
        if budget is not None:
            steps: dict[NeuroAdaLinear, Tensor] = {}
            for group in groups:
                steps |= in_group(group, steps_of)
            sizes = allocate_budget(budget, name, steps)
        for group in groups:
            indices |= in_group(group, choice_of)
    return indices


def known_criterion(criterion: str | Criterion | ScoreFunction, with_data: bool) -> Criterion:
    """That of a name, or ConfigError; a function is given gradients and inputs where there is data."""
    if isinstance(criterion, Criterion):
        return criterion
    if callable(criterion):
        return Criterion(criterion, frozenset({"gradient", "inputs"} if with_data else ()))
    if criterion not in CRITERIA:
        raise ConfigError(f"criterion={criterion!r}", "not a known one", near(str(criterion), CRITERIA))
    return CRITERIA[criterion]


def adapter_of(model: PeftModel | PeftMixedModel, adapter_name: str | None, asked: str) -> str:
    """The adapter that is meant: of this name, or the active one of NeuroAda; ConfigError where there is none."""
    if not isinstance(model, PeftModel | PeftMixedModel):
        do = "Give what peft.get_peft_model(model, NeuroAdaConfig(...)) returns"
        raise ConfigError(asked, f"this {type(model).__name__} is no PeftModel", do)
    if adapter_name is not None:
        return adapter_name
    active = model.active_adapters
    active = [each for each in active if isinstance(model.peft_config[each], NeuroAdaConfig)] or active
    if len(active) != 1:
        raise ConfigError(asked, f"which adapter is not said, and active is {active!r}", "Give adapter_name")
    return active[0]


def active_layers(model: PeftModel, name: str, asked: str) -> list[NeuroAdaLinear]:
    """Those with an adapter, which is active and unmerged on all of them, or an error about what was `asked`."""
    layers = [layer for layer in model.modules() if isinstance(layer, NeuroAdaLinear) and layer.present([name])]
    if not layers:
        names = {
            each for layer in model.modules() if isinstance(layer, NeuroAdaLinear) for each in layer.neuroada_deltas
        }
        found = "no layer has a NeuroAda adapter of that name"
        raise ConfigError(asked, found, near(name, sorted(names)) if names else "Add one with model.add_adapter")
    for layer in layers:
        if layer.neuroada_deltas[name].is_meta:
            found = f"{layer.name} is off-loaded, its deltas are on the meta device"
            raise ConfigError(
                asked, found, "Load the model whole, without device_map or cpu_offload, to choose by data"
            )
        if layer.merged:
            raise MergeError(asked, f"deltas are merged into the weight of {layer.name}", "Unmerge first")
        if layer.disable_adapters or name not in layer.active_adapters:
            raise ConfigError(asked, f"it is not active on {layer.name}", f"Call model.set_adapter({name!r})")
    require_unmerged_wrappers(model, layers, asked)
    return layers


def _require_untrained(layers: Sequence[NeuroAdaLinear], name: str) -> None:
    asked = f"Choosing inputs of adapter {name!r} anew"
    for layer in layers:
        if layer.quantization_backend is None and is_held(layer.stored_weight):
            raise MergeError(asked, f"deltas are in the weight of {layer.name}", "Leave neuroada.held")
        if name not in layer.awaiting and layer.neuroada_deltas[name].any():  # of init_weights=False
            found = f"deltas of {layer.name} are not zero"
            raise WeightError(asked, found, "Choose before training, train a new adapter, or call neuroada.regrow")
