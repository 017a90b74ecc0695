"""Leave supports in parameters for many calls: one write at each end, and one after each optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from neuroada.errors import WeightError
from neuroada.ops.sparse_delta.backends.choice import uses_kernels
from neuroada.ops.sparse_delta.entries import entries, flat, shifted
from neuroada.ops.sparse_delta.registry import HELD, Held, memory_of
from neuroada.ops.sparse_delta.support import FrozenWeight, Support, version_of

if TYPE_CHECKING:
    from neuroada.ops.sparse_delta.backends.triton.swap_plan import SwapPlan


def hold(weight: FrozenWeight, support: Support) -> None:
    """Put a support into a parameter and leave it there until `release`.

    Deltas that change meanwhile without a new version (fused optimisers, `.data`) are not noticed here;
    `neuroada.held` takes care of optimisers.

    Raises:
        WeightError: another support is held in this parameter, or the weight has none.
    """
    memory = memory_of(_free_parameter(weight))
    with memory.lock:
        storage = flat(weight.alias())
        where, originals, values = entries(weight.alias(), support)
        held = Held(weight, support, originals, _copied(support))
        held.where()
        _register(held)
        storage.index_put_((where,), values)


def _free_parameter(weight: FrozenWeight) -> Tensor:
    asked = "Holding a support in a weight"
    if weight.parameter is None:
        raise WeightError(asked, "it is made afresh for each use", "Hold weights that are stored dense")
    if memory_of(weight.parameter).held is not None:
        raise WeightError(asked, "one is held there already", "Leave the outer neuroada.held(...) first")
    return weight.parameter


def _copied(support: Support) -> Support:
    neurons = None if support.neurons is None else support.neurons.clone()
    return replace(support, indices=support.indices.clone(), neurons=neurons)


def _register(held: Held) -> None:
    HELD[_free_parameter(held.weight)] = held
    held.memory.held = held


def _unregister(held: Held, parameter: Tensor) -> None:
    held.memory.held = None
    HELD.pop(parameter, None)


def refresh(weight: FrozenWeight, support: Support) -> None:
    """Put the present deltas of a held support in place of earlier ones; hold it if none is held, or another is."""
    held = None if weight.parameter is None else HELD.get(weight.parameter)
    if held is None or not held.is_at(support):
        release(weight)
        hold(weight, support)
        return
    with held.memory.lock:
        flat(weight.alias()).index_put_((held.where(),), shifted(held.originals, support.deltas))
        held.support = support  # only now: deltas that are not in yet must not be taken for held ones


def release(weight: FrozenWeight) -> None:
    """Take the held support, if there is one, out again, bit for bit.

    Raises:
        WeightError: the weight was written to in the meantime, so that the originals no longer belong to it; it stays
            as it is.
    """
    parameter = weight.parameter
    held = None if parameter is None else HELD.get(parameter)
    if parameter is None or held is None:
        return
    with held.memory.lock:
        unchanged = version_of(parameter) == held.version
        storage, where = flat(weight.alias()), held.where()
        originals = held.originals.to(storage)  # cast as the weight was, if it was
        held.memory.held = None
        if unchanged:
            storage.index_put_((where,), originals)
        HELD.pop(parameter, None)
    if not unchanged:
        raise WeightError(
            "Taking a held support out of a weight",
            "the weight was written to while the support was held",
            "Load the base weights again, outside neuroada.held(...)",
        )


class HeldTogether:
    """Supports of many weights, held from `hold` to `release`; on a GPU each of the three methods is one launch.

    Args:
        supports: for each parameter, a function that gives its support with the present deltas. The parameters lie
            apart in memory.
    """

    def __init__(self, supports: Sequence[tuple[FrozenWeight, Callable[[], Support]]]):
        self._supports = list(supports)
        self._planned: list[Held] = []
        self._plan: SwapPlan | None = None

    def hold(self) -> None:
        """Put all of them in."""
        pairs = [(weight, support()) for weight, support in self._supports]
        planned = [pair for pair in pairs if _can_be_planned(*pair)]
        if planned:
            from neuroada.ops.sparse_delta.backends.triton.swap_plan import SwapPlan

            placed = [(weight, _copied(support)) for weight, support in planned]
            self._plan = SwapPlan(placed)
            for (weight, support), (_, own), originals in zip(planned, placed, self._plan.originals(), strict=True):
                self._planned.append(Held(weight, support, originals, own))
                _register(self._planned[-1])
            self._plan.write()
        for weight, support in pairs:
            if not _can_be_planned(weight, support):
                hold(weight, support)

    def refresh(self) -> None:
        """Put present deltas in place of earlier ones."""
        pairs = [(weight, support()) for weight, support in self._supports]
        planned = [support for weight, support in pairs if _can_be_planned(weight, support)]
        if self._plan is not None and not _are_planned(self._planned, planned):
            self.release()  # deltas or indices were replaced
            self.hold()
            return
        if self._plan is not None:
            self._plan.refresh()
            for held, support in zip(self._planned, planned, strict=True):
                held.support = support
        for weight, support in pairs:
            if not _can_be_planned(weight, support):
                refresh(weight, support)

    def release(self) -> None:
        """Take all of them out, whatever happens on the way; may be called again after an interrupt.

        Raises:
            WeightError: weights were written to in the meantime; they stay as they are, and all others are restored.
        """
        failed: BaseException | None = None
        if self._plan is not None:
            try:
                self._plan.restore()
            except KeyboardInterrupt as interrupt:  # finish first
                self._plan.restore()
                failed = interrupt
            except BaseException as error:  # release the others all the same
                failed = error
            for held in self._planned:
                parameter = held.weight.parameter
                if parameter is not None and HELD.get(parameter) is held:
                    _unregister(held, parameter)
            self._planned, self._plan = [], None
        for weight, _ in self._supports:
            try:
                release(weight)
            except KeyboardInterrupt as interrupt:  # finish first
                release(weight)
                failed = interrupt
            except BaseException as error:  # release the others all the same
                failed = error
        if failed is not None:
            raise failed


def _can_be_planned(weight: FrozenWeight, support: Support) -> bool:
    parameter = weight.parameter
    planned = parameter is not None and uses_kernels(parameter)
    return planned and len(support.sources) == 1 and support.deltas is support.sources[0]


def _are_planned(held: list[Held], supports: list[Support]) -> bool:
    if len(held) != len(supports):
        return False
    return all(
        one.is_at(support) and support.deltas is one.placed.deltas for one, support in zip(held, supports, strict=True)
    )
