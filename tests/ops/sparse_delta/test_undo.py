"""Exact undo (I3): whatever happens inside the op, the weight's memory is the same afterwards, byte for byte."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from neuroada.ops.sparse_delta import entries, flat, function, hold, release, swap, write

from ..cases import PRIMES, build, same_bits, storage_bytes

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.mv, aten.addmv, aten.bmm, aten.dot}


class AtDenseProduct(TorchDispatchMode):
    """Calls `do` before each matrix product that PyTorch computes inside this context."""

    def __init__(self, do):
        super().__init__()
        self.do = do

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in PRODUCTS:
            self.do()
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=[RuntimeError, KeyboardInterrupt], ids=lambda error: error.__name__)
def error(request) -> type[BaseException]:
    return request.param


def thrower(error: type[BaseException]):
    def throw(*args, **kwargs):
        raise error("inside the product")

    return throw


def test_forward_and_backward_leave_every_byte(problem, mode):
    problem = problem.with_gradients()
    before = storage_bytes(problem.weight)
    output = problem.output(mode)
    assert torch.equal(storage_bytes(problem.weight), before)
    output.sum().backward()
    assert torch.equal(storage_bytes(problem.weight), before)


def test_version_counter_does_not_move(mode):
    problem = build(PRIMES, torch.float32).with_gradients()
    version = problem.weight._version
    problem.output(mode).sum().backward()
    assert problem.weight._version == version


def test_exception_in_the_forward_product(case, mode, error, monkeypatch):
    problem = build(case, torch.bfloat16)
    before = storage_bytes(problem.weight)
    monkeypatch.setattr(function.F, "linear", thrower(error))
    with pytest.raises(error, match="inside the product"):
        problem.output(mode)
    assert torch.equal(storage_bytes(problem.weight), before)


def test_exception_in_the_backward_product(dtype, mode, error):
    problem = build(PRIMES, dtype).with_gradients()
    before = storage_bytes(problem.weight)
    output = problem.output(mode)
    with AtDenseProduct(thrower(error)), pytest.raises(error, match="inside the product"):
        output.sum().backward()
    assert torch.equal(storage_bytes(problem.weight), before)


def test_exception_of_the_product_itself(mode):
    problem = build(PRIMES, torch.float32)
    before = storage_bytes(problem.weight)
    with pytest.raises(RuntimeError):
        problem.with_(bias=torch.zeros(14)).output(mode)
    with pytest.raises(RuntimeError):
        problem.with_(x=problem.x[:, 1:]).output(mode)
    assert torch.equal(storage_bytes(problem.weight), before)


def test_exception_while_another_support_is_held(error, monkeypatch):
    problem = build(PRIMES, torch.bfloat16)
    other = problem.with_(deltas=problem.deltas + 1, indices=(problem.indices + 1) % 17)
    before = storage_bytes(problem.weight)
    hold(problem.frozen, problem.support)
    while_held = storage_bytes(problem.weight)
    with monkeypatch.context() as patch:
        patch.setattr(function.F, "linear", thrower(error))
        with pytest.raises(error):
            other.output()
    assert torch.equal(storage_bytes(problem.weight), while_held)
    assert not torch.equal(while_held, before)
    release(problem.frozen)
    assert torch.equal(storage_bytes(problem.weight), before)


def test_the_next_call_after_an_exception_is_right(error, mode, monkeypatch):
    problem = build(PRIMES, torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(function.F, "linear", thrower(error))
        with pytest.raises(error):
            problem.output(mode)
    assert same_bits(problem.output(mode), problem.expected())


@pytest.mark.parametrize("mode", ["inplace", "transient"])
def test_the_weight_itself_changes_during_a_product_in_place_only(dtype, mode):
    problem = build(PRIMES, dtype)
    problem.x.requires_grad_()
    before, unchanged = storage_bytes(problem.weight), []
    with AtDenseProduct(lambda: unchanged.append(torch.equal(storage_bytes(problem.weight), before))):
        problem.output(mode).sum().backward()
    assert unchanged == [mode == "transient"] * 2


def test_twin_that_does_not_undo_is_noticed(mode, monkeypatch):
    def forgetful(weight, support, compute):
        write(weight, support)
        return compute(weight)

    monkeypatch.setattr(swap, "_swapped", forgetful)
    problem = build(PRIMES, torch.float32)
    before = storage_bytes(problem.weight)
    problem.output(mode)
    assert torch.equal(storage_bytes(problem.weight), before) == (mode != "inplace")


def test_write_then_restore_gives_every_byte_back(problem):
    before = storage_bytes(problem.weight)
    where, originals, _ = entries(problem.dense, problem.support)
    write(problem.dense, problem.support)
    flat(problem.dense).index_put_((where,), originals)
    assert torch.equal(storage_bytes(problem.weight), before)
