"""What a kind of module supplies, so that methods, merging and undo can be written once for all kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from neuroada.ops.sparse_delta import FrozenWeight, Support, support_linear
from neuroada.ops.sparse_delta.function import keep_whole


class Kind(ABC):
    """One sort of base module, and its weight seen as [O, I]: a row a neuron. It has no state: one object serves all.

    called: as messages call such modules; "" for kinds that they leave out. transposed: the weight is stored as [I, O].
    traceable: torch.compile can take the operation on such a module into a graph.
    """

    called: ClassVar[str] = ""
    transposed: ClassVar[bool] = False
    traceable: ClassVar[bool] = False

    @abstractmethod
    def claims(self, module: nn.Module) -> bool:
        """Whether a module is of this kind, sound or not."""

    @abstractmethod
    def obstacle(self, module: nn.Module) -> str | None:
        """Why one that is of this kind cannot be adapted all the same, in words; None if it can."""

    @abstractmethod
    def size(self, module: nn.Module) -> tuple[int, int]:
        """(I, O)."""

    @abstractmethod
    def parameter(self, module: nn.Module) -> nn.Parameter | None:
        """The parameter that holds the weight and is written to; None where a dense weight is made for each use."""

    @abstractmethod
    def weight(self, module: nn.Module, mode: str = "inplace") -> FrozenWeight:
        """The weight as operations take it. mode: where a support stands in it meanwhile (see `FrozenWeight`)."""

    @abstractmethod
    def merge_obstacle(self, module: nn.Module) -> tuple[str, str] | None:
        """Why nothing can be merged into the weight, and what to do instead; None if it can."""

    def prepare(self, module: nn.Module) -> None:  # noqa: B027 (most kinds need nothing)
        """Called once, when a layer is put around the module."""

    def compute(self, module: nn.Module, x: Tensor) -> Tensor:
        """What the module itself makes of x [..., I], without its hooks: [..., O]."""
        return type(module).forward(module, x)

    def apply(
        self,
        x: Tensor,
        weight: FrozenWeight,
        support: Support | None,
        bias: Tensor | None,
        product: str = "auto",
        keep: Callable[[Tensor, Tensor, Support], tuple[Tensor, Tensor]] = keep_whole,
    ) -> Tensor:
        """The same given the weight, with a support in it: x [..., I] → [..., O]. The arguments are those of
        `support_linear`."""
        return support_linear(x, weight, support, bias, product, keep)
