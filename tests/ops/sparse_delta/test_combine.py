"""Several supports on one weight as one: the dense sum, overlapping places included."""

import pytest
import torch
from torch.nn import functional as F

from neuroada.ops.sparse_delta import FrozenWeight, Support, combine, hold, release, support_linear, with_support

from ..cases import PRIMES, build, same_bits


def supports_of(dtypes: tuple[torch.dtype, ...]) -> list[Support]:
    """Four supports on one weight, each overlapping the next, the last one on some neurons only."""
    generator = torch.Generator().manual_seed(5)
    supports = []
    for count, per_neuron, dtype in zip((13, 13, 13, 4), (3, 17, 1, 5), dtypes, strict=True):
        indices = torch.stack([torch.randperm(17, generator=generator)[:per_neuron] for _ in range(count)])
        neurons = None if count == 13 else torch.randperm(13, generator=generator)[:count].int()
        deltas = torch.randn(count, per_neuron, generator=generator).to(dtype).requires_grad_()
        supports.append(Support(indices.sort(dim=1).values.int(), deltas, neurons))
    return supports


def dense_sum(supports: list[Support]) -> torch.Tensor:
    total = torch.zeros(13, 17, dtype=torch.float64)
    for support in supports:
        rows = torch.arange(13) if support.neurons is None else support.neurons.long()
        position = (rows[:, None].expand(support.indices.shape), support.indices.long())
        total = total.index_put(position, support.deltas.double(), accumulate=True)
    return total


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("dtype", "sum_error", "gradient_error"),
    [(torch.float64, 1e-14, 1e-14), (torch.float32, 1e-6, 1e-6), (torch.bfloat16, 1e-6, 2**-8)],
    ids=str,
)
def test_combined_supports_are_the_dense_sum(count, dtype, sum_error, gradient_error):
    problem = build(PRIMES, torch.float64)
    supports = supports_of((dtype,) * 4)[:count]
    whole = combine(supports, 17)
    rows = torch.arange(13)[:, None] if whole.neurons is None else whole.neurons[:, None]
    assert (rows * 17 + whole.indices).unique().numel() == whole.deltas.numel()
    torch.testing.assert_close(dense_sum([whole]), dense_sum(supports), rtol=sum_error, atol=sum_error)

    output = support_linear(problem.x, FrozenWeight(problem.weight), whole)
    dy = torch.randn(output.shape, dtype=torch.float64)
    found = torch.autograd.grad(output, [support.deltas for support in supports], dy)
    plain = F.linear(problem.x, problem.weight + dense_sum(supports))
    right = torch.autograd.grad(plain, [support.deltas for support in supports], dy)
    for mine, plain in zip(found, right, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - plain.double()).norm() <= gradient_error * plain.double().norm()


def test_combined_supports_of_several_dtypes_are_summed_in_the_widest():
    supports = supports_of((torch.bfloat16, torch.float32, torch.float64, torch.float16))
    torch.testing.assert_close(dense_sum([combine(supports, 17)]), dense_sum(supports), rtol=1e-14, atol=1e-14)


def test_combined_deltas_that_cancel_give_the_base_layer(mode):
    problem = build(PRIMES, torch.bfloat16)
    problem.weight[0] = -0.0
    opposite = Support(problem.indices, -problem.deltas)
    both = combine([problem.support, opposite], 17)
    cancelled = problem.with_(indices=both.indices, deltas=both.deltas, neurons=both.neurons)
    assert same_bits(cancelled.output(mode), F.linear(problem.x, problem.weight, problem.bias))
    assert same_bits(with_support(problem.frozen, both, torch.clone), problem.weight)


def test_a_held_combination_is_never_stale():
    problem = build(PRIMES, torch.float32)
    first, second, *_ = supports_of((torch.bfloat16,) * 4)
    hold(problem.frozen, combine([first, second], 17))
    with torch.no_grad():
        second.deltas.mul_(2)
    both = combine([first, second], 17)
    found = support_linear(problem.x, problem.frozen, both)
    release(problem.frozen)
    assert same_bits(found, support_linear(problem.x, problem.frozen, both))
