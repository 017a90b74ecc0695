"""A machine that plays with adapters of a small model in any order: the base weights always come back bit for bit, what
is computed is what a dense reference computes, and whatever is refused is refused by a named error.

`make test` plays a few games with fixed seeds, `make fuzz` others and many more.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from neuroada import NeatConfig, NeuroAdaConfig, held
from neuroada.errors import NeuroAdaError
from neuroada.layers import AdapterLayer

from .profiles import profile

INPUTS, HIDDEN, OUTPUTS = 7, 5, 3
NAMES = ("default", "b", "c")
LAYERS = ("first", "last")
names, seeds = st.sampled_from(NAMES), st.integers(0, 2**16)
STEPS = [0]
"""How many rules were played, for the report of a long run."""


class Small(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, HIDDEN, dtype=dtype)
        self.last = nn.Linear(HIDDEN, OUTPUTS, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x)))


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Adapters(RuleBasedStateMachine):
    """One game: a model in one dtype, up to three adapters of one method on it."""

    method = "neuroada"

    def __init__(self) -> None:
        super().__init__()
        self.context = ExitStack()
        self.pending: list[tuple[Tensor, dict[str, Tensor], tuple[Any, ...]]] = []

    @initialize(dtype=st.sampled_from([torch.float32, torch.bfloat16]), size=st.integers(1, 4), seed=seeds)
    def begin(self, dtype: torch.dtype, size: int, seed: int) -> None:
        torch.manual_seed(seed)
        base = Small(dtype)
        self.pristine = {name: value.detach().clone() for name, value in base.state_dict().items()}
        self.dtype, self.held, self.inside = dtype, False, ExitStack()
        self.model: Any = get_peft_model(base, self.config(size))

    def config(self, size: int, targets: tuple[str, ...] = LAYERS) -> Any:
        if self.method == "neat":
            return NeatConfig(r=size, target_modules=list(targets))
        return NeuroAdaConfig(k=size, target_modules=list(targets))

    # What is asked of a model at any time

    def layers(self) -> list[AdapterLayer]:
        return [module for module in self.model.modules() if isinstance(module, AdapterLayer)]

    def merged(self) -> bool:
        return any(layer.merged for layer in self.layers())

    def allowed(self, action: Callable[[], Any]) -> bool:
        """Whether an action was taken; refusing it by a named error is as right."""
        STEPS[0] += 1
        try:
            action()
        except NeuroAdaError:
            return False
        return True

    def weight(self, layer: AdapterLayer, active: bool) -> Tensor:
        """The weight that a layer is to compute with, dense."""
        original = self.pristine[f"{layer.name}.weight"]
        together = layer.merged_adapters or (layer.present(layer.active_adapters) if active else [])
        total = torch.zeros(original.shape)
        for name in together:
            total = total + self.delta(layer, name)
        return torch.where(total == 0, original, (original.float() + total).to(original.dtype))

    def delta(self, layer: Any, name: str) -> Tensor:
        if self.method == "neuroada":
            return layer.get_delta_weight(name).detach().float()
        theta, network = layer.theta(name), layer.networks[name]
        hidden = network.activation(self.pristine[f"{layer.name}.weight"].float() @ theta.first.detach().T)
        return network.scaling * hidden @ theta.last.detach().T

    def expected(self, x: Tensor, active: bool = True) -> Tensor:
        first, last = (self.weight(layer, active) for layer in self.layers())
        hidden = F.relu(F.linear(x, first, self.pristine["first.bias"]))
        return F.linear(hidden, last, self.pristine["last.bias"])

    def agrees(self, found: Tensor, expected: Tensor) -> bool:
        if self.method == "neuroada":
            return torch.equal(found, expected)
        slack = {torch.float32: 1e-3, torch.bfloat16: 0.1}[self.dtype]
        return bool((found.double() - expected.double()).norm() <= slack * (1 + expected.double().norm()))

    # Rules

    @rule(name=names, size=st.integers(1, 4), one=st.booleans())
    def add(self, name: str, size: int, one: bool) -> None:
        assume(name not in self.model.peft_config and len(self.model.peft_config) < 3)
        self.allowed(lambda: self.model.add_adapter(name, self.config(size, LAYERS[:1] if one else LAYERS)))

    @rule(name=names)
    def delete(self, name: str) -> None:
        assume(name in self.model.peft_config and len(self.model.peft_config) > 1)
        assume(not self.merged() and not self.held)
        if self.allowed(lambda: self.model.delete_adapter(name)):
            self.pending.clear()

    @rule(name=names)
    def switch(self, name: str) -> None:
        assume(name in self.model.peft_config and not self.merged())
        self.allowed(lambda: self.model.set_adapter(name))

    @rule(chosen=st.lists(names, min_size=1, max_size=3, unique=True))
    def activate(self, chosen: list[str]) -> None:
        assume(set(chosen) <= set(self.model.peft_config) and not self.merged() and not self.held)
        self.allowed(lambda: self.model.base_model.set_adapter(chosen))

    @rule(seed=seeds, scale=st.sampled_from([1e-6, 1e-2, 1.0, 1e4]))
    def step(self, seed: int, scale: float) -> None:
        """An optimiser step on whatever trains now."""
        assume(not self.merged() and (self.method == "neuroada" or scale <= 1e-2))
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        assume(parameters)
        for number, parameter in enumerate(parameters):
            parameter.grad = scale * drawn(seed + number, *parameter.shape).to(parameter.dtype)
        torch.optim.SGD(parameters, lr=1.0).step()
        self.model.zero_grad(set_to_none=True)
        self.pending.clear()
        STEPS[0] += 1

    @rule(safe=st.booleans(), chosen=st.none() | st.lists(names, min_size=1, unique=True))
    def merge(self, safe: bool, chosen: list[str] | None) -> None:
        assume(chosen is None or set(chosen) <= set(self.model.peft_config))
        x = drawn(1, 4, INPUTS, dtype=self.dtype)
        plain = not self.merged() and not self.held and chosen is None
        before = self.model(x).detach() if plain else None
        if self.allowed(lambda: self.model.merge_adapter(adapter_names=chosen, safe_merge=safe)):
            self.pending.clear()
            if before is not None:
                assert self.agrees(self.model(x).detach(), before), "merging changed the outputs (I2)"

    @rule()
    def unmerge(self) -> None:
        self.allowed(self.model.unmerge_adapter)
        self.pending.clear()

    @rule()
    @precondition(lambda self: not self.held)
    def hold(self) -> None:
        assume(not self.merged())
        if self.allowed(lambda: self.inside.enter_context(held(self.model))):
            self.held = True

    @rule()
    @precondition(lambda self: self.held)
    def let_go(self) -> None:
        self.inside.close()
        self.held = False
        STEPS[0] += 1

    @rule(seed=seeds, rows=st.integers(0, 5), value=st.sampled_from([None, torch.inf, torch.nan]))
    def forward(self, seed: int, rows: int, value: float | None) -> None:
        x = drawn(seed, rows, INPUTS, dtype=self.dtype)
        if value is not None and rows:
            x[0, 0] = value
        STEPS[0] += 1
        with torch.no_grad():
            found, expected = self.model(x), self.expected(x)
        if value is None:
            assert self.agrees(found, expected)
        else:
            assert torch.equal(found.isfinite(), expected.isfinite())

    @rule(seed=seeds)
    def disabled(self, seed: int) -> None:
        assume(not self.merged())
        x = drawn(seed, 3, INPUTS, dtype=self.dtype)
        STEPS[0] += 1
        with torch.no_grad(), self.model.disable_adapter():
            found = self.model(x)
        assert torch.equal(found, self.expected(x, active=False)), "a disabled adapter leaves the base model (I8)"

    @rule(seed=seeds)
    def forward_for_later(self, seed: int) -> None:
        assume(not self.merged() and len(self.pending) < 3)
        x = drawn(seed, 3, INPUTS, dtype=self.dtype)
        output = self.model(x)
        assume(output.requires_grad)
        STEPS[0] += 1
        self.pending.append((output.float().sum(), self.gradients(x), tuple(self.model.active_adapters)))

    def gradients(self, x: Tensor) -> dict[str, Tensor]:
        """Of the deltas, by autograd through dense weights, in float64."""
        weights = [self.weight(layer, True).double().requires_grad_() for layer in self.layers()]
        hidden = F.relu(F.linear(x.double(), weights[0], self.pristine["first.bias"].double()))
        F.linear(hidden, weights[1], self.pristine["last.bias"].double()).sum().backward()
        return {layer.name: weight.grad for layer, weight in zip(self.layers(), weights, strict=True)}

    @rule()
    @precondition(lambda self: self.pending)
    def backward(self) -> None:
        loss, expected, active = self.pending.pop(0)
        self.model.zero_grad(set_to_none=True)
        if not self.allowed(loss.backward) or self.method == "neat":
            return
        for layer in self.layers():
            for name in active:
                deltas = layer.neuroada_deltas.get(name)
                if deltas is None or deltas.grad is None:
                    continue
                wanted = expected[layer.name].gather(1, layer.neuroada_indices[name].long())
                slack = {torch.float32: 1e-4, torch.bfloat16: 5e-2}[self.dtype]
                assert torch.allclose(
                    deltas.grad.double(), wanted, rtol=slack, atol=slack * float(wanted.abs().max() + 1)
                )
        self.model.zero_grad(set_to_none=True)

    @rule()
    def save_and_load(self) -> None:
        assume(not self.held)
        name = self.model.active_adapters[0]
        with tempfile.TemporaryDirectory() as folder:
            if not self.allowed(lambda: self.model.save_pretrained(folder, selected_adapters=[name])):
                return
            place = folder if name == "default" else f"{folder}/{name}"
            base = Small(self.dtype)
            base.load_state_dict(self.pristine)
            loaded = PeftModel.from_pretrained(base, place, adapter_name=name)
        for ours, theirs in zip(
            self.layers(), (m for m in loaded.modules() if isinstance(m, AdapterLayer)), strict=False
        ):
            if ours.present([name]) and theirs.name == ours.name:
                assert torch.equal(self.delta(ours, name), self.delta(theirs, name)), "a file changed an adapter (I4)"

    @rule()
    def copied(self) -> None:
        """The game goes on with a copy."""
        copies: list[Any] = []
        if not self.held and self.allowed(lambda: copies.append(copy.deepcopy(self.model))):
            self.model = copies[0]
            self.pending.clear()

    # What always holds

    @invariant()
    def base_weights_are_the_pretrained_ones(self) -> None:
        if not hasattr(self, "model") or self.held:
            return
        for layer in self.layers():
            found = layer.base_layer.weight
            expected = self.weight(layer, active=False) if layer.merged else self.pristine[f"{layer.name}.weight"]
            assert self.agrees(found, expected) if layer.merged else torch.equal(found, expected), layer.name
            assert torch.equal(layer.base_layer.bias, self.pristine[f"{layer.name}.bias"])

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        self.inside.close()
        base = self.model.unload()
        assert all(torch.equal(value, self.pristine[name]) for name, value in base.state_dict().items())


class NeatAdapters(Adapters):
    """The same with NEAT."""

    method = "neat"


@pytest.mark.parametrize("machine", [Adapters, NeatAdapters], ids=["neuroada", "neat"])
def test_games_with_adapters(machine: type[Adapters]):
    with torch.random.fork_rng(devices=[]):
        run_state_machine_as_test(machine, settings=settings(profile(), deadline=None))
    print(f"{machine.__name__}: {STEPS[0]:,} rules played")
    assert STEPS[0] > 0
