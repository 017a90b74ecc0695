"""Leave supports in parameters for many calls: one write at each end, and one after each optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from neuroada.errors import WeightError
from neuroada.ops.backend import uses_kernels
from neuroada.ops.sparse_delta.registry import HELD, Held, memory_of
from neuroada.ops.sparse_delta.support import FrozenWeight, Support, version_of
from neuroada.ops.sparse_delta.torch import entries, flat, shifted

if TYPE_CHECKING:
    from neuroada.ops.sparse_delta.triton_plan import SwapPlan


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
        _register(weight, support, originals)
        storage.index_put_((where,), values)


def _free_parameter(weight: FrozenWeight) -> Tensor:
    asked = "Holding a support in a weight"
    if weight.parameter is None:
        raise WeightError(asked, "it is made afresh for each use", "Hold weights that are stored dense")
    if memory_of(weight.parameter).held is not None:
        raise WeightError(asked, "one is held there already", "Leave the outer neuroada.held(...) first")
    return weight.parameter


def _register(weight: FrozenWeight, support: Support, originals: Tensor) -> None:
    parameter = _free_parameter(weight)
    memory = memory_of(parameter)
    held = Held(weight, support, originals, version_of(parameter), memory)
    HELD[parameter] = held
    memory.held = held


def refresh(weight: FrozenWeight, support: Support) -> None:
    """Put the present deltas of a held support in place of earlier ones; hold it if none is held, or another is."""
    parameter = weight.parameter
    held = None if parameter is None else HELD.get(parameter)
    if parameter is None or held is None or not _is_for(held, parameter, support):
        release(weight)
        hold(weight, support)
        return
    with held.memory.lock:
        flat(weight.alias()).index_put_((held.where(),), shifted(held.originals, support.deltas))
        held.support = support  # only now: deltas that are not in yet must not be taken for held ones


def _is_for(held: Held, parameter: Tensor, support: Support) -> bool:
    unchanged = held.memory is memory_of(parameter) and held.version == version_of(parameter)
    return unchanged and held.support.indices is support.indices and held.support.neurons is support.neurons


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
        self._planned = [pair for pair in supports if _can_be_planned(pair[0], pair[1]())]
        self._single = [pair for pair in supports if not any(pair is planned for planned in self._planned)]
        self._plan: SwapPlan | None = None

    def hold(self) -> None:
        """Put all of them in."""
        if self._planned:
            from neuroada.ops.sparse_delta.triton_plan import SwapPlan

            plan = SwapPlan([(weight, support()) for weight, support in self._planned])
            for (weight, support), originals in zip(self._planned, plan.originals(), strict=True):
                _register(weight, support(), originals)
            self._plan = plan
            plan.write()
        for weight, support in self._single:
            hold(weight, support())

    def refresh(self) -> None:
        """Put present deltas in place of earlier ones."""
        if self._plan is not None:
            self._plan.refresh()
            for weight, support in self._planned:
                held = HELD.get(weight.parameter)
                if held is not None:
                    held.support = support()
        for weight, support in self._single:
            refresh(weight, support())

    def release(self) -> None:
        """Take all of them out, whatever happens on the way; may be called again after an interrupt.

        Raises:
            WeightError: weights were written to in the meantime; they stay as they are, and all others are restored.
        """
        failed: BaseException | None = None
        if self._plan is not None:
            try:
                self._plan.restore()
            except WeightError as error:
                failed = error
            for weight, _ in self._planned:
                held = HELD.pop(weight.parameter, None)
                if held is not None:
                    held.memory.held = None
            self._plan = None
        for weight, _ in self._single:
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
