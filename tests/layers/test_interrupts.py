"""Ctrl-C at every point where CPython looks at signals, one at a time: base bits and locks survive each (I3)."""

import sys
import threading
import traceback
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from neuroada import held
from neuroada.layers import AdapterLayer
from specimens import KINDS, NEUROADA_KINDS, fill, same_bits

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


def runs_in_another_thread(layer: AdapterLayer) -> bool:
    thread = threading.Thread(target=layer, args=(INPUT.detach(),), daemon=True)
    thread.start()
    thread.join(timeout=5)
    return not thread.is_alive()


@pytest.fixture
def layer(kind) -> AdapterLayer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        base = nn.Linear(5, 4).requires_grad_(False)
    layer = kind.layer(base)
    fill(layer)
    return layer


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("hooked", [False, True])
def test_forward_and_backward(layer, hooked, kind):
    if hooked:
        layer.base_layer.register_forward_hook(lambda module, args, output: output)
    original, want = layer.base_layer.weight.clone(), layer(INPUT)
    for _error in interrupts(lambda: layer(INPUT).sum().backward()):
        assert same_bits(layer.base_layer.weight, original)
        assert "forward" not in layer.base_layer.__dict__
        assert runs_in_another_thread(layer)
    assert same_bits(layer(INPUT), want)


@pytest.mark.parametrize("kind", NEUROADA_KINDS[:1], ids=str)
def test_held(layer, kind):
    original, want = layer.base_layer.weight.clone(), layer(INPUT)

    def work() -> None:
        with held(layer):
            layer(INPUT).sum().backward()

    for error in interrupts(work):
        assert same_bits(layer(INPUT), want)
        traceback.clear_frames(error.__traceback__)  # on the very edge of the context, undone when the error is dropped
        assert same_bits(layer.base_layer.weight, original)


@pytest.mark.parametrize("kind", [NEUROADA_KINDS[0], *KINDS[2:]], ids=str)
def test_merging_and_unmerging(layer, kind):
    original, want = layer.base_layer.weight.clone(), layer(INPUT)
    layer.merge()
    merged = layer(INPUT)
    layer.unmerge()

    def work() -> None:
        layer.merge()
        layer.unmerge()

    for _error in interrupts(work):
        assert same_bits(layer(INPUT), merged if layer.merged else want)
        layer.unmerge()
        assert same_bits(layer.base_layer.weight, original)
