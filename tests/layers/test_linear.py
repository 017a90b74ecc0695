"""One adapted torch.nn.Linear: exact at birth, merged as promised, exact when undone (I1 to I3)."""

import copy

import pytest
import torch
from torch import nn

from neuroada import NeuroAdaConfig, NeuroAdaLinear
from neuroada.errors import MergeError
from neuroada.ops.sparse_delta.reference import merged_weight
from specimens import DTYPES, KINDS, MODES, NEAT_VARIANTS, every_kind, fill, same_bits, trained_parameters

SHAPES = [(1, 1, 1), (1, 7, 1), (13, 1, 1), (13, 7, 1), (13, 7, 5), (13, 7, 7), (64, 48, 3)]
"""O, I and size (K or R); K = 1 and K = I included."""

every_mode = pytest.mark.parametrize("mode", MODES)
every_variant = pytest.mark.parametrize("kind", KINDS + NEAT_VARIANTS, ids=str)


def linear(outputs: int = 13, inputs: int = 7, dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Linear(inputs, outputs, bias=bias).to(dtype).requires_grad_(False)


def wrap(base: nn.Linear, **config) -> NeuroAdaLinear:
    return NeuroAdaLinear(base, "default", NeuroAdaConfig(**config), "layer")


def inputs_for(base: nn.Linear, *batch: int) -> torch.Tensor:
    return torch.randn(*batch, base.in_features, generator=torch.Generator().manual_seed(1)).to(base.weight.dtype)


@torch.no_grad()
def dense(layer: nn.Module) -> torch.Tensor:
    """The weight that merging should give, by plain sums."""
    everywhere = torch.arange(layer.in_features).expand(layer.out_features, -1)
    return merged_weight(layer.base_layer.weight, everywhere, layer.get_delta_weight("default"))


@every_variant
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("outputs", "inputs", "size"), SHAPES)
def test_a_new_adapter_is_the_base_merged_is_unmerged_and_unmerging_undoes(outputs, inputs, size, dtype, bias, kind):
    base = linear(outputs, inputs, dtype, bias)
    original, x = base.weight.clone(), inputs_for(base, 20, 3)
    want = base(x)
    layer = kind.layer(base, size=size)
    assert same_bits(layer(x), want)

    fill(layer)
    trained, exact, merged = layer(x), copy.deepcopy(layer).double(), dense(layer)
    assert same_bits(base.weight, original)
    layer.merge()
    assert same_bits(base.weight, merged)
    assert kind.agrees(trained, layer(x), lambda: exact(x.double()))
    assert same_bits(base(x), layer(x))
    layer.unmerge()
    assert same_bits(base.weight, original)
    assert same_bits(layer(x), trained)


@every_variant
@pytest.mark.parametrize("batch", [(), (1,), (0,), (5,), (0, 3), (2, 3), (2, 1, 3)], ids=str)
def test_any_batch_shape(batch, kind):
    base = linear(dtype=torch.float64)
    layer, x = kind.layer(base), inputs_for(base, *batch)
    assert same_bits(layer(x), base(x))
    fill(layer)
    trained = layer(x)
    layer.merge()
    assert kind.agrees(trained, base(x), lambda: trained)


@every_kind
@pytest.mark.parametrize("layout", ["transposed", "every other column", "part of a larger one"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_of_any_layout_are_changed_and_restored_in_place(layout, dtype, kind):
    base = linear(dtype=dtype)
    larger = torch.full((20, 20), torch.nan, dtype=dtype)
    view = {
        "transposed": larger[:7, :13].T,
        "every other column": larger[:13, :14:2],
        "part of a larger one": larger[3:16, 5:12],
    }[layout]
    view.copy_(base.weight)
    base.weight = nn.Parameter(view, requires_grad=False)
    storage, x = larger.clone(), inputs_for(base, 40)
    layer = kind.layer(base, size=3)
    assert same_bits(layer(x), base(x))
    fill(layer)
    trained, exact = layer(x), copy.deepcopy(layer).double()
    assert same_bits(larger, storage)
    layer.merge()
    assert kind.agrees(trained, base(x), lambda: exact(x.double()))
    layer.unmerge()
    assert same_bits(larger, storage)


@every_variant
def test_gradients_reach_what_is_trained_the_input_and_the_bias_and_nothing_else(kind):
    base = linear(dtype=torch.float64)
    base.bias.requires_grad_(True)
    layer, x = kind.layer(base, size=3), inputs_for(base, 4).requires_grad_()
    fill(layer)
    wanted = (x, base.bias, *trained_parameters(layer).values())
    fast = torch.autograd.grad(layer(x).square().sum(), wanted)
    weight = base.weight + layer.get_delta_weight("default")
    plain = torch.autograd.grad(nn.functional.linear(x, weight, base.bias).square().sum(), wanted)
    for ours, theirs in zip(fast, plain, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    layer(x).square().sum().backward()
    assert base.weight.grad is None


@every_mode
@pytest.mark.parametrize(("coverage", "neurons"), [(0.01, 1), (0.5, 6), (0.99, 13), (1.0, 13)])
def test_coverage_leaves_other_neurons_alone(coverage, neurons, mode):
    base = linear()
    original = base.weight.clone()
    layer = wrap(base, k=2, coverage=coverage, mode=mode)
    fill(layer)
    layer.merge()
    touched = (base.weight != original).any(dim=1)
    assert layer.neuroada_deltas["default"].shape == (neurons, 2)
    assert int(touched.sum()) == neurons
    if coverage < 1:
        assert touched.nonzero().flatten().tolist() == layer.neuroada_neurons["default"].tolist()
    layer.unmerge()
    assert same_bits(base.weight, original)


@every_mode
@pytest.mark.parametrize(
    ("budget", "coverage", "k"), [(1.0, 1.0, 48), (0.25, 1.0, 12), (0.25, 0.5, 24), (1e-6, 1.0, 1), (1.0, 0.5, 48)]
)
def test_budget_is_a_share_of_the_weight(budget, coverage, k, mode):
    layer = wrap(linear(16, 48), budget=budget, coverage=coverage, mode=mode)
    assert layer.neuroada_deltas["default"].shape == (16 * coverage, k)


@every_mode
def test_deltas_are_float32_or_as_asked_whatever_the_weight_is(mode):
    for dtype in DTYPES:
        deltas = wrap(linear(dtype=dtype), mode=mode).neuroada_deltas["default"]
        assert deltas.dtype == torch.float32
        assert deltas.requires_grad
    assert wrap(linear(), delta_dtype="bfloat16", mode=mode).neuroada_deltas["default"].dtype == torch.bfloat16


@every_variant
def test_delta_weight_is_what_merging_adds(kind):
    base = linear(dtype=torch.float64)
    original = base.weight.clone()
    layer = kind.layer(base, **({"coverage": 0.5} if kind.exact else {}))
    fill(layer)
    delta = layer.get_delta_weight("default")
    assert delta.shape == base.weight.shape
    if kind.exact:
        assert delta.count_nonzero() == layer.neuroada_deltas["default"].numel()
    else:
        assert torch.linalg.matrix_rank(delta) == 2
    layer.merge()
    assert same_bits(base.weight, original + delta.double())
    torch.testing.assert_close(layer.get_delta_weight("default"), delta)


@every_variant
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e38])
def test_safe_merge_refuses_what_is_not_finite_and_changes_nothing(poison, kind):
    base = linear(dtype=torch.float16)
    layer = kind.layer(base)
    original = base.weight.clone()
    fill(layer)
    for parameter in trained_parameters(layer).values():
        parameter.data[1, 1] = poison
    with pytest.raises(MergeError, match=r"Merging default into layer with safe_merge=True: .* NaN or infinity"):
        layer.merge(safe_merge=True)
    assert not layer.merged
    assert same_bits(base.weight, original)


@every_kind
def test_safe_merge_of_a_sound_adapter_is_a_merge(kind):
    plain, safe = (kind.layer(linear()) for _ in range(2))
    for layer in (plain, safe):
        fill(layer)
    plain.merge()
    safe.merge(safe_merge=True)
    assert same_bits(plain.base_layer.weight, safe.base_layer.weight)


@every_variant
def test_bits_of_zeros_survive(kind):
    """An update of zero leaves -0.0 what it is."""
    base = linear()
    base.weight.zero_().neg_()
    original, layer = base.weight.clone(), kind.layer(base, size=7)
    assert original.signbit().all()
    layer(inputs_for(base, 2))
    layer.merge()
    assert same_bits(base.weight, original)


@every_mode
def test_automatic_mode_says_why(mode):
    layer = wrap(linear(), mode="auto")
    assert layer.resolved_mode() == ("inplace", "no copy of the weight is needed")
    assert wrap(linear(), mode=mode).resolved_mode() == (mode, "as asked")
    layer.base_layer.weight = nn.Parameter(torch.ones(1, 7).expand(13, 7), requires_grad=False)
    resolved, reason = layer.resolved_mode()
    assert resolved == "transient"
    assert "cannot be written in place" in reason
