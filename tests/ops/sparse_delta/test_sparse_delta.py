"""Values of the forward product: the specification, the base layer at zero deltas (I1), the merged layer (I2)."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from neuroada.ops.sparse_delta import Support, entries, read, with_support, write
from neuroada.ops.sparse_delta.reference import merged_weight, sparse_delta_linear

from ..cases import PRIMES, build, same_bits, storage_bytes


def test_forward_is_the_plain_product_with_the_merged_weight(problem, mode):
    assert same_bits(problem.output(mode), problem.expected())


def test_specification_changes_the_support_and_nothing_else(problem):
    merged = merged_weight(problem.dense, problem.indices, problem.deltas, problem.neurons)
    expected = problem.dense.clone()
    exact = np.float64 if problem.dense.dtype == torch.float64 else np.float32
    neurons = range(len(problem.indices)) if problem.neurons is None else problem.neurons.tolist()
    for row, neuron in enumerate(neurons):
        for index, delta in zip(problem.indices[row].tolist(), problem.deltas[row].tolist(), strict=True):
            total = exact(problem.dense[neuron, index].item()) + exact(delta)
            expected[neuron, index] = torch.tensor(total).to(expected.dtype)
    assert same_bits(merged, expected)


def test_sum_is_made_in_float32_and_rounded_once():
    weight, index = torch.ones(1, 1, dtype=torch.bfloat16), torch.zeros(1, 1, dtype=torch.int32)
    above_half_a_step = torch.tensor([[2.0**-8 + 2.0**-16]])
    assert weight + above_half_a_step.bfloat16() == 1
    assert merged_weight(weight, index, above_half_a_step) == 1 + 2.0**-7
    write(weight, Support(index, above_half_a_step))
    assert weight == 1 + 2.0**-7


def test_reference_is_the_plain_product_with_the_merged_weight():
    problem = build(PRIMES, torch.float64)
    arguments = problem.x, problem.dense, problem.indices, problem.deltas, problem.bias
    assert torch.equal(sparse_delta_linear(*arguments), problem.expected())


def test_zero_deltas_give_the_base_layer(problem, mode):
    problem = problem.with_(deltas=torch.zeros_like(problem.deltas))
    assert same_bits(problem.output(mode), F.linear(problem.x, problem.dense, problem.bias))


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_deltas_keep_the_sign_of_zero_weights(dtype, zero):
    problem = build(PRIMES, dtype)
    problem = problem.with_(deltas=torch.full_like(problem.deltas, zero))
    problem.weight[::2] = -0.0
    merged = with_support(problem.frozen, problem.support, torch.clone)
    assert same_bits(merged, problem.weight)
    assert torch.signbit(merged[::2]).all()


def test_output_is_the_same_after_a_merge(problem, mode):
    before = problem.output(mode)
    write(problem.dense, problem.support)
    assert same_bits(F.linear(problem.x, problem.dense, problem.bias), before)


def test_merge_writes_to_the_support_and_nowhere_else(problem):
    before, originals = storage_bytes(problem.weight), problem.dense[problem.position]
    expected = problem.merged()[problem.position]
    where, kept, _ = entries(problem.dense, problem.support)
    write(problem.dense, problem.support)
    assert same_bits(kept, originals)
    assert same_bits(read(problem.dense, problem.support), expected)
    assert where.dtype == torch.int64
    problem.dense[problem.position] = originals
    assert torch.equal(storage_bytes(problem.weight), before)


@pytest.mark.parametrize("mode", ["inplace", "transient"])
@pytest.mark.parametrize("integer", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64])
def test_indices_and_neurons_may_be_of_any_integer_type(integer, mode, product):
    problem = build(PRIMES, torch.float32).with_gradients()
    narrow = problem.with_(indices=problem.indices.to(integer), neurons=torch.arange(13).to(integer))
    output = narrow.output(mode, product)
    assert same_bits(output, problem.expected())
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(output.sum(), narrow.leaves()))


@pytest.mark.parametrize("delta_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_deltas_may_be_of_any_type(dtype, delta_dtype, mode):
    problem = build(PRIMES, dtype, delta_dtype=delta_dtype)
    assert same_bits(problem.output(mode), problem.expected())


def test_neurons_may_come_in_any_order(mode):
    problem = build(PRIMES, torch.float32)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    shuffled = problem.with_(indices=problem.indices[order], deltas=problem.deltas[order], neurons=order)
    assert same_bits(shuffled.output(mode), problem.expected())
