"""Keep supports swapped in across many calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from neuroada.layers.neuroada import NeuroAdaLinear
from neuroada.layers.storage import storage_uses
from neuroada.ops.sparse_delta import HeldTogether, is_held

_FOLLOWERS: list[Callable[[Iterable[Tensor]], None]] = []
"""One for each `held` that is on."""


def follow(deltas: Iterable[Tensor]) -> None:
    """Let every `held` take out and put in again what these deltas, written to or moved to other inputs, stand for."""
    deltas = list(deltas)
    for follower in list(_FOLLOWERS):
        follower(deltas)


@contextmanager
def held(model: nn.Module) -> Iterator[None]:
    """Keep the active NeuroAda deltas of a model in its base weights until the context is left, by exception too.

    For many calls with the same deltas, such as generation or all micro-batches of one optimiser step: each call then
    costs what the base layer costs. Calls with another adapter or with adapters disabled are right inside as well, only
    slower; an optimiser step inside takes effect at once, while deltas written through `.data` do not. Inside,
    `state_dict` shows the changed weights. Layers that are merged, disabled,
    quantised, in transient mode, or whose weight another module shares (tied embeddings) work as they do outside.

    Args:
        model: a PeftModel, or any module that contains adapted layers; one without them stays as it is.

    Raises:
        WeightError: on leaving, base weights turn out to have been loaded inside.
    """
    layers = _layers_to_hold(model)
    together = HeldTogether([(layer.frozen_weight(names), partial(layer.support, names)) for layer, names in layers])

    def keep_up(deltas: Iterable[Tensor]) -> None:
        written = {id(each) for each in deltas}
        sources = [source for layer, names in layers for source in layer.support(names).sources]
        changed = [source for source in sources if id(source) in written]
        if changed:
            increment_version(changed)  # fused optimisers do not
            together.refresh()

    def after_optimiser_step(optimiser: Optimizer, *_: object) -> None:
        keep_up(parameter for group in optimiser.param_groups for parameter in group["params"])

    hook = register_optimizer_step_post_hook(after_optimiser_step)
    _FOLLOWERS.append(keep_up)
    try:
        together.hold()
        yield
    finally:
        try:
            together.release()
        except KeyboardInterrupt:  # finish first
            together.release()
            raise
        finally:
            _FOLLOWERS.remove(keep_up)
            hook.remove()


def _layers_to_hold(model: nn.Module) -> list[tuple[NeuroAdaLinear, list[str]]]:
    """Layers whose active deltas can stand in a weight of their own, with the names of their adapters."""
    uses = storage_uses(model)
    found = []
    for layer in model.modules():
        if not isinstance(layer, NeuroAdaLinear) or layer.merged or layer.disable_adapters:
            continue
        names = layer.present(layer.active_adapters)
        weight = layer.frozen_weight(names)
        parameter = weight.parameter
        if not names or weight.mode != "inplace" or type(parameter) is not nn.Parameter or parameter.is_meta:
            continue
        if uses[parameter.untyped_storage().data_ptr()] == 1 and not is_held(parameter):
            found.append((layer, names))
    return found
