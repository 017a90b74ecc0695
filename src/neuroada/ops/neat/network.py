"""NEAT: a small network of the frozen weight is its update, ΔW = s · f(W; θ) (Eq. 5): network and specification.

f ends in a product of two thin matrices, so that ΔW = s · Q Pᵀ and y = base(x) + s · (x P) Qᵀ. Side "input" (Eq. 5)
reads W along its inputs: Q = H = act(W Θ1) [O, R], P = Θ2ᵀ [I, R]. Side "output" (Figure 6, PEFT's PEANuT) reads Wᵀ:
P = H = act(Wᵀ Θ1) [I, R], Q = Θ2ᵀ [O, R]. Between first and last layer stand L - 2 layers of R × R (`Network.finish`).

Letters: D is the width that the network reads and writes (I on side "input", O on "output"), M the other one: H [M, R].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


def sine(x: Tensor) -> Tensor:
    """sin 2πx, elementwise (the paper's σ_p)."""
    return torch.sin(2 * math.pi * x)


ACTIVATIONS: dict[str, Activation] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "tanh": F.tanh,
    "silu": F.silu,
    "sine": sine,
}
"""Functions, not modules, so that no module's hooks see what is computed of weights."""

T = TypeVar("T")


class Theta(NamedTuple):
    """What is trained, in any float dtype.

    first: [R, D], Θ1ᵀ ([R, M] for "nonlinear_lora"). hidden: [L-2, R, R], each applied as h Eᵀ, or None for L = 2.
    last: [D, R], Θ2ᵀ.
    """

    first: Tensor
    hidden: Tensor | None
    last: Tensor


@dataclass(frozen=True, eq=False)
class Network:
    """What is not trained.

    variant: "neat"; "nonlinear_lora" has Θ1 itself where NEAT has W Θ1; "multiplicative_lora" has no activation.
    """

    side: str = "input"
    variant: str = "neat"
    activation: Activation = F.relu
    scaling: float = 1.0

    def read(self, weight: Tensor) -> Tensor:
        """[M, D], a view of a weight [O, I]."""
        return weight if self.side == "input" else weight.T

    def finish(self, product: Tensor, hidden: Tensor | None) -> Tensor:
        """H [M, R] from W Θ1 [M, R]: the activation after each layer, and residuals nested as PEANuT nests them.

        The state before hidden layer i is added to the state after hidden layer L - 3 - i, its mirror image; with an
        odd number of hidden layers the one in the middle is its own. For L = 4 that is Appendix E's: the state after
        the first activation is added back before the last layer.
        """
        if self.variant == "multiplicative_lora":
            return product
        state, before = self.activation(product), []
        layers = () if hidden is None else hidden.to(product.dtype).unbind()
        for done, layer in enumerate(layers, start=1):
            before.append(state)
            state = self.activation(state @ layer.T)
            if 2 * done > len(layers):
                state = state + before[len(layers) - done]
        return state

    def factors(self, of_state: T, of_last: T) -> tuple[T, T]:
        """(P [I, R], Q [O, R]) from H and Θ2ᵀ, or what belongs to each."""
        return (of_last, of_state) if self.side == "input" else (of_state, of_last)


def delta_weight(weight: Tensor, theta: Theta, network: Network) -> Tensor:
    """The specification: ΔW [O, I] = s · f(W; θ), dense, differentiable in θ, in at least float32.

    weight: [O, I], any float dtype.
    """
    state = network.finish(_product(weight, theta.first, network), theta.hidden)
    down, up = network.factors(state, theta.last.to(state.dtype))
    return network.scaling * (up @ down.T)


def _product(weight: Tensor, first: Tensor, network: Network) -> Tensor:
    wide = widest(weight, first)
    if network.variant == "nonlinear_lora":
        return first.to(wide).T
    return network.read(weight).to(wide) @ first.to(wide).T


def multiplied_input(x: Tensor, seen: Tensor, theta: Theta, network: Network) -> Tensor:
    """x + s · (x Bᵀ) Aᵀ, on which the base layer gives (W + s · W A B) x: "multiplicative_lora" on side "input".

    x: [..., I]. seen: [..., I], x after dropout.
    """
    return x + network.scaling * (seen @ theta.last.to(seen.dtype)) @ theta.first.to(seen.dtype)


def multiplied_output(product: Tensor, theta: Theta, network: Network) -> Tensor:
    """(W + s · Bᵀ Aᵀ W) x from W x [..., O]: "multiplicative_lora" on side "output", where there is no bias.

    With one, W x is not at hand: taken off again, a large bias would leave its rounding to all outputs.
    """
    first, last = theta.first.to(product.dtype), theta.last.to(product.dtype)
    return product + network.scaling * (product @ first.T) @ last.T


def widest(*tensors: Tensor) -> torch.dtype:
    """The type that these are computed with: float32, or float64 where one of them has it."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
