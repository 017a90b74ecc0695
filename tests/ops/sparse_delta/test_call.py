"""What the op accepts and refuses: frozen weights of one dtype, autocast, inference mode."""

import pytest
import torch
from torch.nn import functional as F

from neuroada.errors import ConfigError, NeuroAdaError, WeightError
from neuroada.ops.sparse_delta import hold, is_held, release, sparse_delta_linear, support_linear
from neuroada.ops.sparse_delta.reference import merged_weight

from ..cases import PRIMES, build, same_bits, storage_bytes

STORED = pytest.mark.parametrize("mode", ["inplace", "transient"])


@STORED
def test_a_weight_that_requires_a_gradient_is_refused(mode):
    problem = build(PRIMES, torch.float32)
    problem.weight.requires_grad_()
    with pytest.raises(WeightError) as caught:
        problem.output(mode)
    assert str(caught.value) == (
        "Training an adapter on a base weight: the weight itself has requires_grad=True, and this operation computes "
        "no gradient for it. Freeze the base weight with requires_grad_(False)."
    )
    with torch.no_grad():
        assert same_bits(problem.output(mode), problem.expected())


@STORED
def test_an_input_of_another_dtype_is_refused(mode):
    problem = build(PRIMES, torch.bfloat16)
    with pytest.raises(WeightError) as caught:
        problem.with_(x=problem.x.float()).output(mode)
    assert caught.value.found == "the input is torch.float32 and the weight torch.bfloat16"
    assert "torch.autocast" in caught.value.do


def test_a_weight_made_afresh_takes_the_dtype_of_the_input():
    problem = build(PRIMES, torch.float32)
    low = problem.with_(x=problem.x.bfloat16(), bias=problem.bias.bfloat16())
    assert same_bits(low.output("fresh"), F.linear(low.x, problem.merged().bfloat16(), low.bias))


@pytest.mark.parametrize(("argument", "known"), [("mode", "inplace, transient"), ("product", "auto, sparse, dense")])
def test_an_unknown_choice_lists_the_known_ones(argument, known):
    with pytest.raises(ConfigError) as caught:
        build(PRIMES, torch.float32).output(**{argument: "spares"})
    assert caught.value.asked == f"{argument}='spares'"
    assert known in caught.value.do


def test_a_weight_whose_rows_share_memory_is_refused_in_place_only():
    problem = build(PRIMES, torch.float32)
    shared = problem.with_(weight=problem.weight[:1].expand(13, 17))
    for each in (shared, shared.with_(neurons=torch.arange(13))):
        before = storage_bytes(each.weight)
        with pytest.raises(WeightError, match="share memory"):
            each.output("inplace")
        merged = merged_weight(each.weight, each.indices, each.deltas, each.neurons)
        assert same_bits(each.output("transient"), F.linear(each.x, merged, each.bias))
        assert torch.equal(storage_bytes(each.weight), before)


def test_an_inference_weight_is_refused_in_place_only():
    with torch.inference_mode():
        problem = build(PRIMES, torch.float32)
        assert same_bits(problem.output("inplace"), problem.expected())
    with pytest.raises(WeightError, match="inference tensor"):
        problem.output("inplace")
    assert same_bits(problem.output("transient"), problem.expected())


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad], ids=lambda context: context.__name__)
def test_forward_without_gradients(case, mode, context):
    problem = build(case, torch.float16)
    before = storage_bytes(problem.weight)
    with context():
        output = problem.output(mode)
    assert same_bits(output, problem.expected())
    assert output.is_inference() == (context is torch.inference_mode)
    assert torch.equal(storage_bytes(problem.weight), before)


def test_deltas_made_in_inference_mode_can_be_held():
    with torch.inference_mode():
        problem = build(PRIMES, torch.float32)
        hold(problem.frozen, problem.support)
        assert is_held(problem.weight)
        assert same_bits(problem.output(), F.linear(problem.x, problem.weight, problem.bias))
        release(problem.frozen)


@pytest.mark.parametrize(
    ("dtype", "result"),
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16), (torch.float64, torch.float64)],
    ids=str,
)
def test_forward_under_autocast_is_the_merged_layer_under_autocast(case, dtype, result, mode):
    problem = build(case, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        output = problem.output(mode)
        assert same_bits(output, problem.expected())
    assert output.dtype == result


@pytest.mark.parametrize("within", [torch.bfloat16, torch.float16], ids=str)
def test_backward_inside_autocast_changes_no_bit(mode, product, within):
    outside, inside = (build(PRIMES, torch.float32).with_gradients() for _ in range(2))
    outside.output(mode, product).square().sum().backward()
    output = inside.output(mode, product)
    with torch.autocast("cpu", within):
        output.square().sum().backward()
    for expected, found in zip(outside.leaves(), inside.leaves(), strict=True):
        assert same_bits(found.grad, expected.grad)


def test_delta_gradient_under_autocast_is_summed_in_float32(mode, product):
    problem = build(PRIMES, torch.float32).with_gradients()
    with torch.autocast("cpu", torch.bfloat16):
        output = problem.output(mode, product)
    dy = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    output.backward(dy)
    exact = (dy.double().T @ problem.x.detach().bfloat16().double())[problem.position]
    assert (problem.deltas.grad - exact).norm() < 2**-22 * exact.norm()
    assert [leaf.grad.dtype for leaf in problem.leaves()] == [torch.float32] * 3


def test_the_base_layer_is_a_support_of_none(problem):
    bare = support_linear(problem.x, problem.frozen, None, problem.bias)
    assert same_bits(bare, F.linear(problem.x, problem.dense, problem.bias))


def test_every_refusal_is_of_the_family():
    assert issubclass(WeightError, NeuroAdaError)
    assert issubclass(WeightError, ValueError)


def test_meta_tensors_give_shapes():
    x = torch.randn(2, 5, 7, device="meta", requires_grad=True)
    weight = torch.randn(3, 7, device="meta")
    indices, deltas = torch.zeros(3, 2, dtype=torch.int32, device="meta"), torch.zeros(3, 2, device="meta")
    y = sparse_delta_linear(x, weight, indices, deltas.requires_grad_())
    y.sum().backward()
    assert y.shape == (2, 5, 3)
    assert deltas.grad.shape == deltas.shape
    assert x.grad.shape == x.shape


@pytest.mark.parametrize(
    ("indices", "deltas", "neurons"),
    [((1, 2), (1, 2), None), ((3, 2), (3, 1), None), ((3,), (3,), None), ((3, 2), (3, 2), 2)],
)
def test_shapes_that_do_not_fit_are_refused(indices, deltas, neurons):
    neurons = None if neurons is None else torch.arange(neurons)
    with pytest.raises(ConfigError, match=r"indices have shape \[.*\] and deltas \[.*\] for [123] neurons"):
        sparse_delta_linear(
            torch.zeros(1, 7), torch.zeros(3, 7), torch.zeros(indices).int(), torch.zeros(deltas), neurons=neurons
        )
