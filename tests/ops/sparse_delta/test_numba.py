"""The compiled product on the CPU; that its gradients are right is tested with all others in test_gradients.py."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from neuroada.ops.sparse_delta import sparse_delta_linear
from neuroada.ops.sparse_delta.backends import choice as backend
from neuroada.ops.sparse_delta.backends import numba
from neuroada.ops.sparse_delta.gradient import delta_gradient

from ..cases import same_bits

COMPILED = (torch.float32, torch.bfloat16)


def made(tokens: int, inputs: int, outputs: int, per_neuron: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    indices = torch.rand(outputs, inputs).argsort(1)[:, :per_neuron].sort(1).values.int()
    return torch.randn(tokens, inputs).to(dtype), torch.randn(tokens, outputs).to(dtype), indices


@pytest.mark.parametrize("dtype", COMPILED, ids=str)
@pytest.mark.parametrize("tokens", [1, 65, 1025, 4099])
def test_any_number_of_threads_gives_the_same_bits(dtype, tokens):
    x, dy, indices = made(tokens, 37, 131, 3, dtype)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(numba.sampled_product(x, dy, indices))
    finally:
        torch.set_num_threads(before)
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])
    expected = (dy.double().T @ x.double()).gather(1, indices.long())
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-6 * tokens**0.5 * 4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200), st.integers(1, 40), st.integers(1, 300), st.data())
def test_equals_plain_torch_for_any_shape(tokens, inputs, outputs, data):
    per_neuron = data.draw(st.integers(1, inputs))
    x, dy, indices = made(tokens, inputs, outputs, per_neuron, data.draw(st.sampled_from(COMPILED)))
    neurons = torch.randint(outputs, (outputs,)) if data.draw(st.booleans()) else None
    rows = dy if neurons is None else dy[:, neurons]
    expected = torch.einsum("bn,bnj->nj", rows.double(), x.double()[:, indices.long()])
    found = numba.sampled_product(x, dy, indices, neurons)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_counters_and_fake_tensors_know_its_cost():
    x, dy, indices = made(64, 37, 131, 3, torch.bfloat16)
    with FlopCounterMode(display=False) as flops:
        delta_gradient(x, dy, indices, product="sparse")
    assert flops.get_total_flops() == 2 * 64 * 131 * 3
    with FakeTensorMode() as fake:
        shape = delta_gradient(*(fake.from_tensor(tensor) for tensor in (x, dy, indices)), product="sparse")
    assert shape.shape == (131, 3)
    assert shape.dtype == torch.float32


def test_without_numba_the_gradient_is_made_in_plain_torch(monkeypatch):
    monkeypatch.setitem(backend._CHECKS, "numba", lambda: "numba is not installed")
    backend._resolved.cache_clear()
    monkeypatch.setattr(numba, "sampled_product", None)
    try:
        indices, deltas = torch.arange(10).view(5, 2), torch.zeros(5, 2, requires_grad=True)
        sparse_delta_linear(torch.ones(2, 300), torch.ones(5, 300), indices, deltas).sum().backward()
    finally:
        backend._resolved.cache_clear()
    assert torch.equal(deltas.grad, torch.full((5, 2), 2.0))


def test_numba_is_loaded_with_the_first_gradient_only():
    script = """
import sys, torch, neuroada
assert "numba" not in sys.modules
indices, deltas = torch.arange(10).view(5, 2), torch.zeros(5, 2, requires_grad=True)
neuroada.sparse_delta_linear(torch.ones(2, 300), torch.ones(5, 300), indices, deltas).sum().backward()
assert "numba" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
