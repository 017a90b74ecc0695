"""Transformers' Conv1D, which stores its weight transposed: the same neurons, the same bits as the equal Linear."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from neuroada import NeuroAdaConfig, NeuroAdaLinear
from specimens import DTYPES, KINDS, NEAT_VARIANTS, fill, same_bits, trained_parameters

INPUTS, OUTPUTS = 7, 12
every_kind = pytest.mark.parametrize("kind", KINDS + NEAT_VARIANTS, ids=str)


def pair(dtype: torch.dtype = torch.float32) -> tuple[Conv1D, nn.Linear]:
    """A Conv1D and a Linear that hold the same weight and bias."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        linear = nn.Linear(INPUTS, OUTPUTS).to(dtype).requires_grad_(False)
    conv1d = Conv1D(OUTPUTS, INPUTS).to(dtype).requires_grad_(False)
    conv1d.weight.copy_(linear.weight.T)
    conv1d.bias.copy_(linear.bias)
    return conv1d, linear


def wrap(base: nn.Module, **config) -> NeuroAdaLinear:
    return NeuroAdaLinear(base, "default", NeuroAdaConfig(**config), "layer")


@pytest.mark.parametrize("coverage", [1.0, 0.5])
@pytest.mark.parametrize("k", [1, 3, INPUTS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_support_and_same_merged_weight_as_linear(dtype, k, coverage):
    conv1d, linear = (wrap(base, k=k, coverage=coverage) for base in pair(dtype))
    assert conv1d.in_features == INPUTS
    assert conv1d.out_features == OUTPUTS
    assert torch.equal(conv1d.neuroada_indices["default"], linear.neuroada_indices["default"])
    for layer in (conv1d, linear):
        fill(layer)
        layer.merge()
    assert same_bits(conv1d.base_layer.weight, linear.base_layer.weight.T)


@every_kind
@pytest.mark.parametrize("batch", [(), (1,), (0,), (5,), (2, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_new_adapter_is_the_base_merged_is_unmerged_and_unmerging_undoes(dtype, batch, kind):
    base, _ = pair(dtype)
    layer, original = kind.layer(base), base.weight.clone()
    many = torch.randn(40, INPUTS, generator=torch.Generator().manual_seed(2)).to(dtype)
    x = torch.randn(*batch, INPUTS, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert same_bits(layer(x), base(x))
    fill(layer)
    trained, rows, exact = layer(many), layer(x), copy.deepcopy(layer).double()
    assert same_bits(base.weight, original)
    layer.merge()
    assert kind.agrees(trained, base(many), lambda: exact(many.double()))
    assert rows.shape == base(x).shape
    if kind.exact:
        assert same_bits(base(x), rows)
    layer.unmerge()
    assert same_bits(base.weight, original)


@every_kind
def test_gradients_equal_those_of_linear(kind):
    gradients = []
    for base in pair(torch.float64):
        layer = kind.layer(base, size=3)
        fill(layer)
        x = torch.randn(5, INPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        trained = trained_parameters(layer).values()
        gradients.append(torch.autograd.grad(layer(x).square().sum(), (x, *trained)))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@every_kind
def test_delta_weight_is_laid_out_as_the_weight_is_stored(kind):
    conv1d, linear = (kind.layer(base) for base in pair())
    for layer in (conv1d, linear):
        fill(layer)
    assert conv1d.get_delta_weight("default").shape == (INPUTS, OUTPUTS)
    torch.testing.assert_close(conv1d.get_delta_weight("default"), linear.get_delta_weight("default").T)
