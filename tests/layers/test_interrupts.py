"""Ctrl-C at every point where CPython looks at signals, one at a time: base bits and locks survive each (I3)."""

import sys
import threading
import traceback
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from neuroada import NeuroAdaConfig, NeuroAdaLinear, held
from specimens import MODES, fill, same_bits

INPUT = torch.ones(2, 5, requires_grad=True)


class _Interrupt:
    """A profile function that raises KeyboardInterrupt once: on the n-th function entry or return from C."""

    def __init__(self, at: int):
        self.remaining = at

    def __call__(self, frame, event, argument) -> None:
        if event in ("call", "c_return"):
            self.remaining -= 1
            if self.remaining == 0:
                raise KeyboardInterrupt


def interrupts(work: Callable[[], None]) -> Iterator[KeyboardInterrupt]:
    """Run `work` again and again, interrupted at its first, second, ... point, until it gets through."""
    for at in range(1, 10_000):
        interrupt = _Interrupt(at)
        sys.setprofile(interrupt)
        try:
            work()
        except KeyboardInterrupt as error:
            yield error  # alive while the caller looks, as a notebook keeps its last error
        finally:
            sys.setprofile(None)
            torch.set_grad_enabled(True)  # torch.no_grad itself may be left half-way
        if interrupt.remaining > 0:
            return
    pytest.fail("never got through")


def runs_in_another_thread(layer: NeuroAdaLinear) -> bool:
    thread = threading.Thread(target=layer, args=(INPUT.detach(),), daemon=True)
    thread.start()
    thread.join(timeout=5)
    return not thread.is_alive()


@pytest.fixture
def layer(mode) -> NeuroAdaLinear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        base = nn.Linear(5, 4).requires_grad_(False)
    layer = NeuroAdaLinear(base, "default", NeuroAdaConfig(k=2, mode=mode), "layer")
    fill(layer)
    return layer


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hooked", [False, True])
def test_forward_and_backward(layer, hooked, mode):
    if hooked:
        layer.base_layer.register_forward_hook(lambda module, args, output: output)
    original, want = layer.base_layer.weight.clone(), layer(INPUT)
    for _error in interrupts(lambda: layer(INPUT).sum().backward()):
        assert same_bits(layer.base_layer.weight, original)
        assert "forward" not in layer.base_layer.__dict__
        assert runs_in_another_thread(layer)
    assert same_bits(layer(INPUT), want)


@pytest.mark.parametrize("mode", ["inplace"])
def test_held(layer, mode):
    original, want = layer.base_layer.weight.clone(), layer(INPUT)

    def work() -> None:
        with held(layer):
            layer(INPUT).sum().backward()

    for error in interrupts(work):
        assert same_bits(layer(INPUT), want)
        traceback.clear_frames(error.__traceback__)  # on the very edge of the context, undone when the error is dropped
        assert same_bits(layer.base_layer.weight, original)


@pytest.mark.parametrize("mode", ["inplace"])
def test_merging_and_unmerging(layer, mode):
    original, want = layer.base_layer.weight.clone(), layer(INPUT)

    def work() -> None:
        layer.merge()
        layer.unmerge()

    for _error in interrupts(work):
        assert same_bits(layer(INPUT), want)
        layer.unmerge()
        assert same_bits(layer.base_layer.weight, original)
