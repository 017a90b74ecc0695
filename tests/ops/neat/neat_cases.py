"""Problems for NEAT's op tests: odd shapes, every variant, side and depth, values of order 1; and the error allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from neuroada.ops.neat import (
    ACTIVATIONS,
    Network,
    Theta,
    delta_weight,
    multiplied_input,
    multiplied_output,
    updated,
)
from neuroada.ops.neat.network import _product
from neuroada.ops.sparse_delta import FrozenWeight

SIDES = ("input", "output")
FORMS = tuple(
    (variant, side, depth)
    for variant, depths in (("neat", (2, 3, 4, 5, 6)), ("nonlinear_lora", (2, 3, 4)), ("multiplicative_lora", (2,)))
    for side in SIDES
    for depth in depths
)
"""(variant, side, depth)."""

every_form = pytest.mark.parametrize(("variant", "side", "depth"), FORMS)
every_side = pytest.mark.parametrize("side", SIDES)


@dataclass(frozen=True)
class NeatProblem:
    """x [*batch, I], a frozen weight [O, I] as it lies in memory, bias [O] or None, and a network with its values."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    theta: Theta
    network: Network

    def output(self) -> Tensor:
        """What the operation says, with the base layer computed plainly."""
        frozen = FrozenWeight(self.weight)
        base = F.linear(self.x, self.weight, self.bias)
        return updated(base, self.x, frozen, self.weight, self.theta, self.network)

    def short_output(self) -> Tensor:
        """The same for "multiplicative_lora" in its own, shorter form."""
        if self.network.side == "input":
            return F.linear(multiplied_input(self.x, self.x, self.theta, self.network), self.weight, self.bias)
        output = multiplied_output(F.linear(self.x, self.weight), self.theta, self.network)
        return output if self.bias is None else output + self.bias

    def expected(self) -> Tensor:
        """The plain layer on the weight with the specification's update added, rounded once to the weight's dtype."""
        delta = delta_weight(self.weight, self.theta, self.network)
        return F.linear(self.x, (self.weight.to(delta.dtype) + delta).to(self.weight.dtype), self.bias)

    def factored(self) -> Tensor:
        """The same maths in plain operations, differentiated by autograd."""
        state = self.network.finish(_product(self.weight, self.theta.first, self.network), self.theta.hidden)
        down, up = (factor.to(self.x.dtype) for factor in self.network.factors(state, self.theta.last))
        base, rows = F.linear(self.x, self.weight, self.bias), self.x.reshape(-1, self.x.shape[-1])
        output = torch.addmm(base.reshape(-1, base.shape[-1]), rows @ down, up.T, alpha=self.network.scaling)
        return output.reshape(base.shape)

    def leaves(self) -> list[Tensor]:
        """What gradients are asked of."""
        return [tensor for tensor in (self.x, self.bias, *self.theta) if tensor is not None]

    def with_leaves(self, *leaves: Tensor) -> NeatProblem:
        """Other values for `leaves()`, in its order."""
        rest = list(leaves)
        x, bias = rest.pop(0), None if self.bias is None else rest.pop(0)
        first, hidden = rest.pop(0), None if self.theta.hidden is None else rest.pop(0)
        return replace(self, x=x, bias=bias, theta=Theta(first, hidden, rest.pop(0)))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> NeatProblem:
        """Every tensor changed alike."""
        changed = self.with_leaves(*map(change, self.leaves()))
        return replace(changed, weight=change(self.weight).detach())

    def with_gradients(self) -> NeatProblem:
        """The same values as fresh leaves that require gradients."""
        return self.with_leaves(*(leaf.detach().clone().requires_grad_() for leaf in self.leaves()))


def build_neat(
    variant: str = "neat",
    side: str = "input",
    depth: int = 2,
    activation: str = "relu",
    dtype: torch.dtype = torch.float64,
    shape: tuple[int, int, int] = (13, 17, 3),
    batch: tuple[int, ...] = (5,),
    bias: bool = True,
    scaling: float = 0.7,
    seed: int = 0,
) -> NeatProblem:
    """shape: O, I, R. The network's values are float64 where the weight is, else float32."""
    outputs, inputs, rank = shape
    generator = torch.Generator().manual_seed(seed)
    own = torch.promote_types(dtype, torch.float32)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    width, other = (inputs, outputs) if side == "input" else (outputs, inputs)
    reads = other if variant == "nonlinear_lora" else width
    theta = Theta(
        (normal(rank, reads) / reads**0.5).to(own),
        (normal(depth - 2, rank, rank) / rank**0.5).to(own) if depth > 2 else None,
        (normal(width, rank) / rank**0.5).to(own),
    )
    return NeatProblem(
        x=normal(*batch, inputs).to(dtype),
        weight=normal(outputs, inputs).to(dtype),
        bias=normal(outputs).to(dtype) if bias else None,
        theta=theta,
        network=Network(side, variant, ACTIVATIONS[activation], scaling),
    )


def error_of(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right).norm() / right.norm().clamp(min=1e-300))


def require_good(problem: NeatProblem) -> None:
    """Output and gradients have at most twice the error of plain operations in the same dtype, dense or factored."""
    exact = problem.mapped(lambda tensor: tensor.double())
    right, dense, factored, ours = (
        _gradients(each, form)
        for each, form in (
            (exact, NeatProblem.expected),
            (problem, NeatProblem.expected),
            (problem, NeatProblem.factored),
            (problem, NeatProblem.output),
        )
    )
    half_a_step = torch.finfo(problem.x.dtype).eps / 2
    for want, first, second, mine in zip(right, dense, factored, ours, strict=True):
        assert mine.dtype == first.dtype
        error, allowed = error_of(mine, want), 2 * max(error_of(first, want), error_of(second, want), half_a_step)
        assert error <= allowed, f"error {error:.2e} of a tensor {list(want.shape)}, allowed {allowed:.2e}"


def _gradients(problem: NeatProblem, form: Callable[[NeatProblem], Tensor] = NeatProblem.output) -> list[Tensor]:
    """The output, and gradients for the same errors each time."""
    leaves = problem.with_gradients()
    output = form(leaves)
    dy = torch.randn(output.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(output.dtype)
    return [output, *torch.autograd.grad(output, leaves.leaves(), dy)]
