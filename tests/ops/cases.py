"""Problems for the op tests. Shapes are odd on purpose; everything outside a weight's own entries is NaN."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from neuroada.ops.sparse_delta import FrozenWeight, Support, sparse_delta_linear
from neuroada.ops.sparse_delta.reference import merged_weight

BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
DTYPES = tuple(BITS)
MODES = ("inplace", "transient", "fresh")
"""The last one hands the op a function that makes the weight, as a quantised base does."""
PRODUCTS = ("sparse", "dense")


@dataclass(frozen=True)
class Case:
    """O outputs, I inputs, K deltas for each of N covered neurons, x [*batch, I], and how the weight lies in memory."""

    name: str
    outputs: int
    inputs: int
    per_neuron: int
    batch: tuple[int, ...] = (5,)
    layout: str = "rows"
    bias: bool = True
    covered: int | None = None
    transposed: bool = False

    def __str__(self) -> str:
        return self.name


PRIMES = Case("primes", 13, 17, 3, (11,))
CASES = (
    PRIMES,
    Case("all-ones", 1, 1, 1, (1,)),
    Case("one-neuron", 1, 7, 1, (3,), bias=False),
    Case("one-input", 5, 1, 1, (2, 3)),
    Case("whole-rows", 5, 7, 7, (4,)),
    Case("one-delta", 31, 29, 1, (2, 3), bias=False),
    Case("vector", 7, 11, 2, ()),
    Case("no-tokens", 7, 11, 2, (0,)),
    Case("no-tokens-3d", 7, 11, 11, (2, 0, 3), bias=False),
    Case("columns", 13, 17, 3, layout="columns"),
    Case("slice", 13, 17, 3, (2, 3), layout="slice", bias=False),
    Case("strided", 61, 127, 2, (3,), layout="strided"),
    Case("offset", 7, 5, 2, layout="offset"),
    Case("covered", 13, 17, 3, covered=5),
    Case("covered-once", 13, 17, 17, covered=1, bias=False),
    Case("conv1d", 13, 17, 3, (2, 3), transposed=True),
    Case("conv1d-slice", 7, 11, 2, layout="slice", covered=4, transposed=True),
)


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal shape, dtype and bits: -0.0 differs from 0.0, and a NaN equals itself."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    left, right = (tensor.detach().contiguous().view(BITS[tensor.dtype]) for tensor in (left, right))
    return torch.equal(left, right)


def storage_bytes(tensor: Tensor) -> Tensor:
    """A copy of all the memory that a tensor is a view of."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).clone()


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout, with NaN between them."""
    rows, columns = values.shape
    nan = values.new_full((4 * rows * columns + 9 * rows + 9 * columns,), torch.nan)
    target = {
        "rows": lambda: values.clone(),
        "columns": lambda: values.T.clone(memory_format=torch.contiguous_format).T,
        "slice": lambda: nan[: rows * (columns + 5)].view(rows, columns + 5)[:, 2 : 2 + columns],
        "strided": lambda: nan[: 4 * rows * columns].view(2 * rows, 2 * columns)[::2, ::2],
        "offset": lambda: nan[3 : 3 + rows * columns].view(rows, columns),
    }[layout]()
    return target.copy_(values)


def like(values: Tensor, weight: Tensor) -> Tensor:
    """The same values with the strides of `weight`, so that a product with them takes the same path."""
    return torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype).copy_(values)


@dataclass(frozen=True)
class Problem:
    """The arguments of `sparse_delta_linear`; `weight` is [O, I], or [I, O] where it is stored transposed."""

    x: Tensor
    weight: Tensor
    indices: Tensor
    deltas: Tensor
    bias: Tensor | None
    neurons: Tensor | None
    transposed: bool

    @property
    def dense(self) -> Tensor:
        """The weight as [O, I]."""
        return self.weight.T if self.transposed else self.weight

    @property
    def frozen(self) -> FrozenWeight:
        return FrozenWeight(self.weight, self.transposed)

    @property
    def support(self) -> Support:
        return Support(self.indices, self.deltas, self.neurons)

    @property
    def position(self) -> tuple[Tensor, Tensor]:
        """The support as an index of `dense`."""
        rows = torch.arange(len(self.indices)) if self.neurons is None else self.neurons.long()
        return rows[:, None].expand(self.indices.shape), self.indices.long()

    def merged(self) -> Tensor:
        """What the specification says the merged weight is, in the layout of the weight."""
        return like(merged_weight(self.dense, self.indices, self.deltas.detach(), self.neurons), self.dense)

    def expected(self) -> Tensor:
        """The plain layer on the merged weight."""
        return F.linear(self.x, self.merged(), self.bias)

    def output(self, mode: str = "inplace", product: str = "auto") -> Tensor:
        weight = self.weight
        return sparse_delta_linear(
            self.x,
            (lambda: like(weight, weight)) if mode == "fresh" else weight,
            self.indices,
            self.deltas,
            self.bias,
            self.neurons,
            transposed=self.transposed,
            mode="transient" if mode == "fresh" else mode,
            product=product,
        )

    def with_(self, **changes) -> Problem:
        return replace(self, **changes)

    def leaves(self) -> list[Tensor]:
        """What can be trained or passed through, in the order of `with_gradients`."""
        return [tensor for tensor in (self.x, self.deltas, self.bias) if tensor is not None]

    def with_gradients(self) -> Problem:
        """The same values as fresh leaves that require gradients."""
        fresh = (t if t is None else t.detach().clone().requires_grad_() for t in (self.x, self.deltas, self.bias))
        return replace(self, **dict(zip(("x", "deltas", "bias"), fresh, strict=True)))


def build(case: Case, dtype: torch.dtype, seed: int = 0, delta_dtype: torch.dtype | None = None) -> Problem:
    """Random values of order 1, deltas of order 0.1, in float64 where the weight is, else in float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    count = case.covered or case.outputs
    indices = torch.stack([torch.randperm(case.inputs, generator=generator)[: case.per_neuron] for _ in range(count)])
    neurons = torch.randperm(case.outputs, generator=generator)[:count].sort().values.int() if case.covered else None
    delta_dtype = delta_dtype or torch.promote_types(dtype, torch.float32)
    values = normal(case.outputs, case.inputs).to(dtype)
    return Problem(
        x=normal(*case.batch, case.inputs).to(dtype),
        weight=laid_out(values.T if case.transposed else values, case.layout),
        indices=indices.sort(dim=1).values.int(),
        deltas=(0.1 * normal(count, case.per_neuron)).to(delta_dtype),
        bias=normal(case.outputs).to(dtype) if case.bias else None,
        neurons=neurons,
        transposed=case.transposed,
    )
