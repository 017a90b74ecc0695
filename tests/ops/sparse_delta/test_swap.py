"""Supports that stay in a weight, that meet others there, and that two threads want at once."""

import sys
from threading import Event, Thread
from time import sleep

import pytest
import torch
from torch.nn import functional as F

from neuroada.errors import WeightError
from neuroada.ops.sparse_delta import (
    FrozenWeight,
    function,
    hold,
    holding,
    is_contended,
    is_held,
    release,
    support_linear,
    swap,
    with_support,
)

from ..cases import PRIMES, Case, Problem, build, same_bits, storage_bytes

STORED = pytest.mark.parametrize("mode", ["inplace", "transient"])
PATIENCE = 20
"""Seconds after which a thread that waits for another gives up, so that a failure ends."""


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def dtype(request) -> torch.dtype:
    return request.param


def others(problem: Problem) -> dict[str, Problem]:
    """The same weight with deltas that overlap the problem's, that do not, and that are zero."""
    return {
        "same-places": problem.with_(deltas=problem.deltas + 1),
        "overlapping": problem.with_(indices=problem.indices.roll(1, dims=0), deltas=problem.deltas - 1),
        "zero": problem.with_(deltas=torch.zeros_like(problem.deltas)),
        "one-neuron": problem.with_(
            indices=problem.indices[:1], deltas=problem.deltas[:1] + 2, neurons=problem.position[0][:1, 0]
        ),
    }


def test_a_held_support_stays_until_it_is_released(problem):
    merged, before = problem.merged(), storage_bytes(problem.weight)
    assert not is_held(problem.weight)
    hold(problem.frozen, problem.support)
    assert is_held(problem.weight)
    assert same_bits(problem.dense, merged)
    release(problem.frozen)
    assert not is_held(problem.weight)
    assert torch.equal(storage_bytes(problem.weight), before)


def test_release_without_a_held_support_does_nothing(problem):
    before = storage_bytes(problem.weight)
    release(problem.frozen)
    hold(problem.frozen, problem.support)
    release(problem.frozen)
    release(problem.frozen)
    release(FrozenWeight(lambda: problem.weight))
    assert torch.equal(storage_bytes(problem.weight), before)


def test_release_can_be_repeated_after_an_interrupt(problem, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = storage_bytes(problem.weight)
    hold(problem.frozen, problem.support)
    with monkeypatch.context() as patch:
        patch.setattr(holding, "version_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            release(problem.frozen)
    release(problem.frozen)
    assert torch.equal(storage_bytes(problem.weight), before)


@pytest.mark.parametrize("overwrite", [torch.Tensor.zero_, torch.nn.init.ones_], ids=["zero", "init"])
def test_a_weight_loaded_while_a_support_is_held_stays_as_loaded(problem, overwrite):
    hold(problem.frozen, problem.support)
    overwrite(problem.weight)
    loaded = storage_bytes(problem.weight)
    with pytest.raises(WeightError) as caught:
        release(problem.frozen)
    assert str(caught.value) == (
        "Taking a held support out of a weight: the weight was written to while the support was held. Load the base "
        "weights again, outside neuroada.held(...)."
    )
    assert not is_held(problem.weight)
    assert torch.equal(storage_bytes(problem.weight), loaded)


def test_a_second_support_cannot_be_held(problem):
    hold(problem.frozen, problem.support)
    held = storage_bytes(problem.weight)
    with pytest.raises(WeightError) as caught:
        hold(problem.frozen, problem.support)
    assert str(caught.value) == (
        "Holding a support in a weight: one is held there already. Leave the outer neuroada.held(...) first."
    )
    assert torch.equal(storage_bytes(problem.weight), held)
    release(problem.frozen)


def test_a_weight_that_is_made_afresh_cannot_hold():
    problem = build(PRIMES, torch.float32)
    with pytest.raises(WeightError, match="made afresh for each use"):
        hold(FrozenWeight(problem.weight.clone), problem.support)


@STORED
@pytest.mark.parametrize("other", [None, "same-places", "overlapping", "zero", "one-neuron"])
def test_calls_while_a_support_is_held(case, dtype, mode, other):
    problem = build(case, dtype)
    asked = (others(problem)[other] if other else problem).with_gradients()
    expected, merged = asked.expected(), asked.merged()
    hold(problem.frozen, problem.support if other else asked.support)
    held = storage_bytes(problem.weight)
    output = asked.output(mode)
    assert same_bits(output, expected)
    assert torch.equal(storage_bytes(problem.weight), held)
    dy = torch.randn(output.shape).to(dtype)
    output.backward(dy)
    assert same_bits(asked.x.grad, (dy.reshape(-1, case.outputs) @ merged).reshape(asked.x.shape))
    assert torch.equal(storage_bytes(problem.weight), held)
    release(problem.frozen)
    assert same_bits(asked.merged(), merged)


def test_a_held_support_is_used_as_it_stands(problem, monkeypatch):
    problem, expected = problem.with_gradients(), problem.expected()
    hold(problem.frozen, problem.support)
    with monkeypatch.context() as patch:
        patch.delattr(swap, "flat")
        output = problem.output()
        assert same_bits(output, expected)
        output.sum().backward()
        with pytest.raises(NameError):
            problem.with_(deltas=problem.deltas + 1).output()
    release(problem.frozen)


@STORED
def test_the_bare_layer_while_a_support_is_held(problem, mode):
    bare = F.linear(problem.x, problem.dense, problem.bias)
    base = problem.dense.clone()
    weight = FrozenWeight(problem.weight, problem.transposed, mode)
    hold(weight, problem.support)
    held = storage_bytes(problem.weight)
    assert same_bits(support_linear(problem.x, weight, None, problem.bias), bare)
    assert same_bits(with_support(weight, None, torch.clone), base)
    assert same_bits(with_support(weight, problem.support, torch.clone), problem.dense)
    assert torch.equal(storage_bytes(problem.weight), held)
    release(weight)


@STORED
def test_deltas_changed_while_they_are_held(problem, mode):
    before = storage_bytes(problem.weight)
    changed = problem.with_(deltas=problem.deltas * 3 - 1).expected()
    hold(problem.frozen, problem.support)
    problem.deltas.mul_(3).sub_(1)
    assert same_bits(problem.output(mode), changed)
    release(problem.frozen)
    assert torch.equal(storage_bytes(problem.weight), before)


def test_a_weight_recreated_while_a_support_is_held(problem):
    before = storage_bytes(problem.weight)
    hold(problem.frozen, problem.support)
    held = storage_bytes(problem.weight)
    moved = torch.empty(0, dtype=problem.weight.dtype).set_(held.untyped_storage())
    layout = problem.weight.shape, problem.weight.stride(), problem.weight.storage_offset()
    problem.weight.data = moved.as_strided(*layout)
    release(problem.frozen)
    assert torch.equal(storage_bytes(problem.weight), before)


@pytest.mark.parametrize("modes", [("inplace", "inplace"), ("inplace", "transient"), ("transient", "transient")])
@pytest.mark.parametrize("held", [False, True])
def test_two_threads_on_one_weight(modes, held):
    problem = build(Case("threads", 61, 67, 5, (7,)), torch.float32)
    problems = [problem, others(problem)["overlapping"]]
    expected = [each.expected() for each in problems]
    before, wrong, finished = storage_bytes(problem.weight), [], []
    if held:
        hold(problem.frozen, problem.support)

    def work(each: Problem, mode: str, right: torch.Tensor) -> None:
        wrong.extend(count for count in range(300) if not same_bits(each.output(mode), right))
        finished.append(mode)

    threads = [Thread(target=work, args=arguments) for arguments in zip(problems, modes, expected, strict=True)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    release(problem.frozen)
    assert len(finished) == 2
    assert not wrong
    assert torch.equal(storage_bytes(problem.weight), before)


def test_two_threads_at_once_are_noticed(monkeypatch):
    """The first stays inside its product until the second has knocked."""
    problem = build(PRIMES, torch.float32)
    problems = [problem, others(problem)["overlapping"]]
    expected = [each.expected() for each in problems]
    linear, inside, outputs = F.linear, Event(), {}

    def linear_until_contended(*arguments):
        inside.set()
        for _ in range(PATIENCE * 1000):
            if is_contended(problem.weight):
                break
            sleep(0.001)
        return linear(*arguments)

    monkeypatch.setattr(function.F, "linear", linear_until_contended)
    first = Thread(target=lambda: outputs.update(first=problems[0].output()))
    first.start()
    assert inside.wait(PATIENCE)
    assert not is_contended(problem.weight)
    outputs["second"] = problems[1].output()
    first.join()
    assert is_contended(problem.weight)
    assert same_bits(outputs["first"], expected[0])
    assert same_bits(outputs["second"], expected[1])


def test_one_thread_never_contends(mode):
    problem = build(PRIMES, torch.float32).with_gradients()
    hold(problem.frozen, problem.support)
    problem.output(mode).sum().backward()
    with_support(problem.frozen, None, torch.clone)
    release(problem.frozen)
    assert not is_contended(problem.weight)
