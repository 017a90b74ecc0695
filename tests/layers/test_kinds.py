"""Every kind of module keeps the same contract, and adding one takes one file and one line."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from neuroada import NeuroAdaConfig
from neuroada.errors import TargetError
from neuroada.layers import NeuroAdaLinear, kinds
from neuroada.layers.kinds.dense import Dense
from neuroada.ops.sparse_delta import Support, entries

ROOT = Path(__file__).parents[2]


def packed() -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    layer = bnb.nn.Linear8bitLt(64, 32, has_fp16_weights=False)
    return layer.to("cpu")


KINDS_OF_MODULES: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(6, 4),
    "Transposed": lambda: Conv1D(4, 6),
    "Quantised": packed,
}


@pytest.fixture(params=KINDS_OF_MODULES)
def module(request: pytest.FixtureRequest) -> nn.Module:
    return KINDS_OF_MODULES[request.param]()


def test_every_kind_is_tried():
    assert {type(kind).__name__ for kind in kinds.KINDS} == set(KINDS_OF_MODULES)


def test_the_weight_is_seen_as_neurons_by_inputs(module: nn.Module):
    kind = kinds.kind_of(module, "layer")
    inputs, outputs = kind.size(module)
    assert kind.weight(module).alias().shape == (outputs, inputs)


def test_a_parameter_shares_memory_with_the_weight_seen(module: nn.Module):
    kind = kinds.kind_of(module, "layer")
    parameter = kind.parameter(module)
    if parameter is None:
        assert kind.merge_obstacle(module) is not None
        return
    kind.weight(module).alias()[1, 2] = 7.0
    assert (parameter == 7.0).sum() == 1
    assert kind.merge_obstacle(module) is None


def test_apply_without_a_support_is_what_the_module_computes(module: nn.Module):
    kind = kinds.kind_of(module, "layer")
    if kind.parameter(module) is None:
        return  # a packed weight has a product of its own
    x = torch.randn(3, kind.size(module)[0])
    with torch.no_grad():
        assert torch.equal(kind.apply(x, kind.weight(module), None, module.bias), kind.compute(module, x))
        assert torch.equal(kind.compute(module, x), module(x))


def test_apply_puts_the_support_into_the_weight_and_takes_it_out(module: nn.Module):
    kind = kinds.kind_of(module, "layer")
    if kind.parameter(module) is None:
        return  # nothing stands in a packed weight
    inputs, outputs = kind.size(module)
    before = kind.weight(module).alias().clone()
    support = Support(torch.arange(outputs)[:, None] % inputs, torch.ones(outputs, 1))
    x = torch.randn(5, inputs)
    with torch.no_grad():
        changed = kind.apply(x, kind.weight(module), support, module.bias)
    assert torch.equal(kind.weight(module).alias(), before)
    where, _, merged = entries(kind.weight(module).alias(), support)
    dense = before.clone()
    dense[torch.arange(outputs)[:, None], support.indices] = merged
    assert torch.allclose(changed, x @ dense.T + module.bias, atol=1e-5)
    assert where.unique().numel() == outputs


def test_an_unknown_module_is_refused_by_what_it_is():
    with pytest.raises(TargetError, match=r"it is a torch\.nn\.modules\.conv\.Conv2d"):
        kinds.kind_of(nn.Conv2d(1, 1, 1), "conv")


def test_a_new_kind_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch):
    class Doubling(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class DoublingKind(Dense):
        called = "Doubling"
        module_class = Doubling

        def apply(self, x, weight, support, bias, *rest):
            return 2 * super().apply(x, weight, support, bias, *rest)

    layer = Doubling(6, 4)
    with pytest.raises(TargetError, match=r"Supported are torch\.nn\.Linear and transformers' Conv1D"):
        kinds.kind_of(layer, "layer")
    monkeypatch.setattr(kinds, "KINDS", (*kinds.KINDS, DoublingKind()))
    adapted = NeuroAdaLinear(layer, "default", NeuroAdaConfig(k=2), "layer")
    x = torch.randn(3, 6)
    with torch.no_grad():
        assert torch.equal(adapted(x), layer(x))
        adapted.neuroada_deltas["default"].normal_()
        before = adapted(x)
        adapted.merge()
        assert torch.equal(adapted(x), before)
    assert not torch.equal(before, 2 * nn.functional.linear(x, torch.zeros(4, 6), layer.bias))


def test_the_page_shows_the_smallest_kind_as_it_is():
    text = (ROOT / "docs" / "adding-a-kind.md").read_text(encoding="utf-8")
    source = (ROOT / "src" / "neuroada" / "layers" / "kinds" / "transposed.py").read_text(encoding="utf-8")
    block = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert source.endswith(block)
    functions = re.findall(r"^\| `([a-z_]+)\(", text, re.MULTILINE)
    assert functions == [
        name for name in vars(kinds.Kind) if not name.startswith("_") and callable(vars(kinds.Kind)[name])
    ]
