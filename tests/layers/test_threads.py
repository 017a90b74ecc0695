"""Two threads on one model: right outputs, intact base bits, and "auto" takes a copy once it has seen them."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from neuroada import held
from neuroada.layers import AdapterLayer
from specimens import (
    KINDS,
    NEUROADA_KINDS,
    base_weights,
    changed,
    fill,
    logits,
    same_bits,
    tiny,
    trained_parameters,
)

AUTO = replace(NEUROADA_KINDS[0], name="neuroada-auto", settings={"mode": "auto"})
every_kind = pytest.mark.parametrize("kind", [*KINDS, AUTO], ids=str)


def at_once(work: Callable[[], bool], times: int) -> bool:
    """Whether `work` was true every time, in two threads at once."""
    wrong, together = [], threading.Barrier(2)

    def run() -> None:
        together.wait()
        wrong.extend(time for time in range(times) if not work())

    threads = [threading.Thread(target=run, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return not wrong and not any(thread.is_alive() for thread in threads)


@pytest.fixture
def layer(kind) -> AdapterLayer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        base = nn.Linear(64, 96).requires_grad_(False)
    layer = kind.layer(base, size=8)
    fill(layer)
    return layer


@every_kind
@pytest.mark.parametrize("hooked", [False, True])
def test_inference(layer, hooked, kind):
    if hooked:
        layer.base_layer.register_forward_hook(lambda module, args, output: output)
    x, original = torch.randn(32, 64), layer.base_layer.weight.clone()
    want = layer(x)
    assert at_once(lambda: same_bits(layer(x), want), times=300)
    assert same_bits(layer.base_layer.weight, original)


@every_kind
def test_forward_and_backward(layer, kind):
    x, original = torch.randn(32, 64, requires_grad=True), layer.base_layer.weight.clone()
    trained = trained_parameters(layer).values()

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(layer(x).square().sum(), (x, *trained))

    want = gradients()
    assert at_once(lambda: all(same_bits(*pair) for pair in zip(gradients(), want, strict=True)), times=100)
    assert same_bits(layer.base_layer.weight, original)


@pytest.mark.parametrize("kind", [*NEUROADA_KINDS, AUTO], ids=str)
def test_inference_while_held(layer, kind):
    x, original = torch.randn(32, 64), layer.base_layer.weight.clone()
    want = layer(x)
    with held(layer):
        assert at_once(lambda: same_bits(layer(x), want), times=100)
    assert same_bits(layer.base_layer.weight, original)


@every_kind
def test_whole_models(kind):
    model = kind.adapted(tiny("llama"))
    before, want = base_weights(model), logits(model)
    assert at_once(lambda: same_bits(logits(model), want), times=10)
    assert changed(before, model) == []


@pytest.mark.parametrize("kind", [AUTO], ids=str)
def test_automatic_mode_takes_a_copy_once_threads_have_met(layer, kind):
    assert layer.resolved_mode()[0] == "inplace"
    entered, leave, inside = threading.Event(), threading.Event(), torch.randn(2, 64)

    class Waiting(torch.Tensor):
        """Stops in the middle of the product, while the deltas are in the weight."""

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is nn.functional.linear:
                entered.set()
                leave.wait(timeout=10)
            return super().__torch_function__(function, types, args, kwargs or {})

    first = threading.Thread(target=layer, args=(inside.as_subclass(Waiting),), daemon=True)
    second = threading.Thread(target=layer, args=(inside,), daemon=True)
    first.start()
    assert entered.wait(timeout=10)
    second.start()
    second.join(timeout=0.2)
    leave.set()
    for thread in (first, second):
        thread.join(timeout=10)
    assert layer.resolved_mode() == ("transient", "several threads run this layer at once")
