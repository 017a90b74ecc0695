"""Gradients (I5): at most twice the error of the plain layer in the same dtype, and twins that show the check can fail.

Error is the norm of the difference to the exact gradient (80-bit floats), as a fraction of the exact norm.
"""

import numpy as np
import pytest
import torch
from torch.autograd.gradcheck import GradcheckError, gradcheck

from neuroada.ops.sparse_delta import FrozenWeight, Support, function, gradient, support_linear
from neuroada.ops.sparse_delta.backends import choice as backends
from neuroada.ops.sparse_delta.backends import torch as pieces
from neuroada.ops.sparse_delta.reference import sparse_delta_linear as reference

from ..cases import PRIMES, Case, Problem, build, like

LONG = tuple(Case(f"{batch}-tokens-k{k}", 13, 17, k, (batch,)) for batch in (61, 397, 401, 4099) for k in (1, 2, 17))


def exact(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy().astype(np.longdouble)


def exact_gradients(problem: Problem, dy: torch.Tensor) -> list[np.ndarray]:
    """Of x, deltas and bias."""
    x, rows = exact(problem.x).reshape(-1, problem.x.shape[-1]), exact(dy).reshape(-1, dy.shape[-1])
    neurons, indices = (part.numpy() for part in problem.position)
    gradients = [(rows @ exact(problem.merged())).reshape(problem.x.shape), (rows.T @ x)[neurons, indices]]
    return gradients if problem.bias is None else [*gradients, rows.sum(0)]


def plain_gradients(problem: Problem, dy: torch.Tensor) -> list[torch.Tensor]:
    """Autograd through the specification, in its own dtype: a dense gradient, gathered."""
    plain = problem.with_(weight=like(problem.weight, problem.weight)).with_gradients()
    output = reference(plain.x, plain.dense, plain.indices, plain.deltas, plain.bias, plain.neurons)
    return list(torch.autograd.grad(output, plain.leaves(), dy))


def error_of(found: torch.Tensor, right: np.ndarray) -> float:
    scale = float(np.linalg.norm(right))
    distance = float(np.linalg.norm(exact(found) - right))
    return distance / scale if scale else distance


def require_good_gradients(problem: Problem, mode: str, product: str) -> None:
    """The floor under the plain error is half a rounding step, what a single correct rounding may cost."""
    ours = problem.with_gradients()
    output = ours.output(mode, product)
    dy = torch.randn(output.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(output.dtype)
    found = torch.autograd.grad(output, ours.leaves(), dy)
    half_a_step = torch.finfo(problem.x.dtype).eps / 2
    for name, mine, plain, right in zip(
        ("x", "deltas", "bias"), found, plain_gradients(problem, dy), exact_gradients(problem, dy), strict=False
    ):
        error, allowed = error_of(mine, right), 2 * max(error_of(plain, right), half_a_step)
        assert error <= allowed, f"gradient of {name}: error {error:.2e}, allowed {allowed:.2e}"


def test_gradients_of_all_shapes(problem, mode, product):
    require_good_gradients(problem, mode, product)


@pytest.mark.parametrize("long", LONG, ids=str)
def test_gradients_of_many_tokens(long, dtype, product):
    require_good_gradients(build(long, dtype), "inplace", product)


@pytest.mark.parametrize("scale", [2.0**-10, 2.0**6])
def test_gradients_of_any_magnitude(scale, dtype, product):
    problem = build(PRIMES, dtype)
    require_good_gradients(problem.with_(x=problem.x * scale), "inplace", product)


@pytest.mark.parametrize("entries", [1, 40, 200])
def test_gradients_made_in_blocks(case, entries, product, monkeypatch):
    monkeypatch.setattr(pieces, "BLOCK_ENTRIES", entries)
    require_good_gradients(build(case, torch.float32), "inplace", product)


@pytest.mark.parametrize("delta_dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_low_precision_deltas_are_rounded_once(delta_dtype, product):
    problem = build(PRIMES, torch.float32, delta_dtype=delta_dtype).with_gradients()
    problem.output(product=product).sum().backward()
    unrounded = gradient.delta_gradient(problem.x.detach(), torch.ones(11, 13), problem.indices, product=product)
    assert torch.equal(problem.deltas.grad, unrounded.to(delta_dtype))


@pytest.mark.parametrize(
    "dy",
    [torch.ones(1, 1).expand(11, 13), torch.randn(13, 11).T, torch.randn(22, 26)[::2, ::2]],
    ids=["expanded", "columns", "strided"],
)
@pytest.mark.parametrize("columns", [True, False])
def test_gradients_from_tensors_of_any_layout(dy, columns, product):
    problem = build(PRIMES, torch.float32)
    expected = gradient.delta_gradient(problem.x, dy.contiguous(), problem.indices, product=product)
    x = problem.x.T.contiguous().T if columns else problem.x
    found = gradient.delta_gradient(x, dy, problem.indices, product=product)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize(("over", "chosen"), [(0, "sparse"), (1, "dense")])
def test_auto_is_dense_above_the_crossover(backend, over, chosen, monkeypatch):
    monkeypatch.setattr(backends, "_pinned", backend)
    per_neuron = int(512 * gradient.DENSE_ABOVE[backend]) + over
    problem = build(Case("wide", 5, 512, per_neuron, (7,)), torch.float32)
    dy = torch.randn(7, 5)
    calls = []
    for product in ("dense_product", "sampled_product"):
        right = getattr(pieces, product)
        monkeypatch.setattr(pieces, product, lambda *a, right=right, name=product: calls.append(name) or right(*a))
    auto, same = (gradient.delta_gradient(problem.x, dy, problem.indices, product=p) for p in ("auto", chosen))
    assert torch.equal(auto, same)
    expected = {("sparse", "torch"): ["sampled_product"] * 2, ("sparse", "numba"): []}
    assert calls == expected.get((chosen, backend), ["dense_product"] * 2)


SIXTEEN_BITS = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("entries", [1, 40, 1 << 20])
@pytest.mark.parametrize("emulated", [True, False])
@pytest.mark.parametrize("half", SIXTEEN_BITS, ids=str)
def test_input_gradients_with_and_without_instructions(case, mode, half, emulated, entries, monkeypatch):
    monkeypatch.setattr(gradient, "lacks_instructions", lambda device, dtype: emulated)
    monkeypatch.setattr(gradient, "WIDENED_FROM", 0)
    monkeypatch.setattr(pieces, "BLOCK_ENTRIES", entries)
    require_good_gradients(build(case, half), mode, "sparse")


@pytest.mark.parametrize("half", SIXTEEN_BITS, ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(301, 7), (7, 301)])
def test_an_emulated_product_is_made_in_float32_from_sixteen_tokens_on(outputs, inputs, half, monkeypatch):
    monkeypatch.setattr(gradient, "lacks_instructions", lambda device, dtype: True)
    calls, right = [], pieces.widened_product
    monkeypatch.setattr(pieces, "widened_product", lambda *a: calls.append(a) or right(*a))
    dy = torch.randint(-3, 4, (16, outputs)).to(half)
    weight = torch.randint(-3, 4, (outputs, inputs)).to(half)
    exact_once = (dy.double() @ weight.double()).to(half)  # sums of small integers are exact in float32
    assert torch.equal(gradient.input_gradient(dy, weight), exact_once)
    assert len(calls) == 1
    gradient.input_gradient(dy[:15], weight)
    assert len(calls) == 1


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(301, 7), (7, 301)])
def test_products_do_not_depend_on_the_default_dtype(outputs, inputs, default):
    dy, weight = torch.randn(16, outputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()
    expected = pieces.widened_product(dy, weight)
    torch.set_default_dtype(default)
    try:
        assert torch.equal(pieces.widened_product(dy, weight), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("per_neuron", [1, 3])
def test_many_small_blocks_of_tokens_add_no_error(per_neuron, dtype, monkeypatch):
    monkeypatch.setattr(pieces, "BLOCK_ENTRIES", 64)
    require_good_gradients(build(Case("long", 13, 17, per_neuron, (4099,)), dtype), "inplace", "sparse")


def test_gradcheck(case, mode, product):
    problem = build(case, torch.float64).with_gradients()

    def output(x, deltas, bias=None):
        return problem.with_(x=x, deltas=deltas, bias=bias).output(mode, product)

    assert gradcheck(output, problem.leaves(), fast_mode=True)


# The twins: each fault, injected into the backward pass, must fail the very check above.

right_gradient, right_support = function.delta_gradient, function.with_support


def in_bfloat16(x, dy, indices, neurons=None, product="auto"):
    total = torch.zeros(indices.shape, dtype=torch.bfloat16)
    for token, row in zip(x.bfloat16(), dy.bfloat16(), strict=True):
        total += row[:, None] * token[indices.long()]
    return total.to(torch.promote_types(x.dtype, torch.float32))


GRADIENT_FAULTS = {
    "next-input": lambda x, dy, indices, *rest: right_gradient(x, dy, (indices + 1) % x.shape[1], *rest),
    "dropped-token": lambda x, dy, *rest: right_gradient(x[:-1], dy[:-1], *rest),
    "swapped-neurons": lambda *arguments: right_gradient(*arguments)[[1, 0, *range(2, 13)]],
    "forgotten-block": lambda *arguments: right_gradient(*arguments).index_fill(0, torch.tensor([12]), 0),
    "bfloat16-sum": in_bfloat16,
}
WEIGHT_FAULTS = {
    "unmerged": lambda support: None,
    "other-deltas": lambda support: Support(support.indices, 2 * support.deltas),
    "next-input": lambda support: Support((support.indices + 1) % 17, support.deltas),
}


@pytest.mark.parametrize("scale", [2.0**-10, 1.0, 2.0**6])
@pytest.mark.parametrize("fault", GRADIENT_FAULTS)
def test_twin_with_a_wrong_delta_gradient_fails(fault, scale, dtype, product, monkeypatch):
    problem = build(Case("twin", 13, 17, 3, (397,)), dtype)
    monkeypatch.setattr(function, "delta_gradient", GRADIENT_FAULTS[fault])
    with pytest.raises(AssertionError, match="gradient of deltas"):
        require_good_gradients(problem.with_(x=problem.x * scale), "inplace", product)


@pytest.mark.parametrize("fault", WEIGHT_FAULTS)
def test_twin_with_a_wrong_weight_in_backward_fails(fault, dtype, monkeypatch):
    calls = []

    def wrong_the_second_time(weight, support, compute):
        calls.append(support)
        return right_support(weight, WEIGHT_FAULTS[fault](support) if len(calls) == 2 else support, compute)

    monkeypatch.setattr(function, "with_support", wrong_the_second_time)
    with pytest.raises(AssertionError, match="gradient of x"):
        require_good_gradients(build(PRIMES, dtype), "inplace", "sparse")


def test_twin_of_gradcheck_fails(monkeypatch):
    monkeypatch.setattr(function, "delta_gradient", GRADIENT_FAULTS["dropped-token"])
    problem = build(PRIMES, torch.float64)

    def output(deltas):
        return support_linear(problem.x, FrozenWeight(problem.weight), Support(problem.indices, deltas))

    with pytest.raises(GradcheckError):
        gradcheck(output, (problem.deltas.requires_grad_(),), fast_mode=True)
