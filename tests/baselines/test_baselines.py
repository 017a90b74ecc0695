"""The baselines train what NeuroAda trains: same support, same gradients."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from neuroada import NeuroAdaConfig
from neuroada.baselines import wrap_compact_mask, wrap_mask, wrap_scatter
from neuroada.baselines.mask import mask_at
from neuroada.errors import ConfigError
from neuroada.ops.sparse_delta import Support
from neuroada.selection import top_k

INPUTS, HIDDEN, OUTPUTS, TOKENS, K = 23, 19, 11, 7, 3
NAMES = ["0", "2"]


def mask_of(weight: torch.Tensor, k: int) -> torch.Tensor:
    """Where the k largest magnitudes of each neuron are."""
    return mask_at(weight, top_k(weight.abs(), k))


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, OUTPUTS, bias=False))
    return nn.Sequential(*layers).to(dtype).requires_grad_(False)


def backward(model: nn.Module, x: Tensor) -> None:
    model(x).square().sum().backward()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(TOKENS, INPUTS, dtype=torch.float64)


@pytest.fixture
def expected(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """NeuroAda's indices and gradients, each [O, K], of both layers."""
    model = get_peft_model(network(), NeuroAdaConfig(k=K, target_modules=NAMES))
    backward(model, x)
    layers = [model.get_submodule(f"base_model.model.{name}") for name in NAMES]
    return [(layer.neuroada_indices["default"].long(), layer.neuroada_deltas["default"].grad) for layer in layers]


def test_scatter_form_has_the_same_gradients(x, expected):
    model = network()
    deltas = wrap_scatter(model, NAMES, K, torch.float64)
    backward(model, x)
    for delta, (indices, gradient) in zip(deltas, expected, strict=True):
        torch.testing.assert_close(delta.grad.view_as(indices).float(), gradient)


def test_scatter_form_starts_as_the_base_and_is_bfloat16_as_published(x):
    model, x = network(torch.bfloat16), x.bfloat16()
    base = copy.deepcopy(model)
    deltas = wrap_scatter(model, NAMES, K)
    assert {delta.dtype for delta in deltas} == {torch.bfloat16}
    assert {model[0].positions.dtype, model[2].positions.dtype} == {torch.int64}
    assert torch.equal(model(x), base(x))
    with torch.no_grad():
        deltas[0][0] = 1.0
    assert not torch.equal(model(x), base(x))
    assert torch.equal(model[0].weight, base[0].weight)


def test_masked_gradient_is_the_dense_one_on_the_support(x, expected):
    dense = network().requires_grad_(True)
    backward(dense, x)
    model = network()
    weights = wrap_mask(model, NAMES, K)
    backward(model, x)
    for weight, name, (indices, gradient) in zip(weights, NAMES, expected, strict=True):
        mask = mask_of(weight.detach(), K)
        assert torch.equal(weight.grad, dense.get_submodule(name).weight.grad * mask)
        assert torch.equal(mask.nonzero()[:, 1].view_as(indices), indices)
        torch.testing.assert_close(weight.grad[mask].view_as(indices).float(), gradient)


def test_masked_training_changes_the_support_alone(x):
    model = network()
    before = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(wrap_mask(model, NAMES, K), lr=0.1, weight_decay=0)
    for _ in range(3):
        optimiser.zero_grad()
        backward(model, x)
        optimiser.step()
    for name in NAMES:
        weight, old = model.get_submodule(name).weight, before.get_submodule(name).weight
        assert torch.equal(weight != old, mask_of(old, K))
    assert torch.equal(model[0].bias, before[0].bias)


@pytest.mark.parametrize("wrap", [wrap_scatter, wrap_mask])
def test_nothing_else_is_trained(wrap):
    model = network().requires_grad_(True)
    trained = wrap(model, NAMES, K)
    assert {id(parameter) for parameter in model.parameters() if parameter.requires_grad} == {id(p) for p in trained}


def test_mask_of_given_supports_covers_just_those_entries():
    model = network()
    indices, neurons = torch.tensor([[1, 4], [0, 22]]), torch.tensor([3, 17])
    first = torch.zeros(OUTPUTS, 1, dtype=torch.int32)
    supports = {"0": Support(indices, torch.zeros(2, 2), neurons), "2": Support(first, torch.zeros(OUTPUTS, 1))}
    weights = wrap_mask(model, supports=supports)
    model(torch.ones(1, INPUTS, dtype=torch.float64)).sum().backward()
    assert [weight.shape for weight in weights] == [(HIDDEN, INPUTS), (OUTPUTS, HIDDEN)]
    assert weights[0].grad.nonzero().tolist() == [[3, 1], [3, 4], [17, 0], [17, 22]]
    assert weights[1].grad.nonzero().tolist() == [[row, 0] for row in range(OUTPUTS)]


def test_mask_of_a_weight_that_is_stored_transposed():
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(OUTPUTS, INPUTS))
    (weight,) = wrap_mask(model, ["0"], 1)
    model(torch.ones(1, INPUTS)).sum().backward()
    assert torch.equal(weight.grad.T != 0, mask_of(weight.detach().T, 1))
    assert (weight.grad != 0).sum(0).tolist() == [1] * OUTPUTS


@pytest.mark.parametrize("wrap", [wrap_mask, wrap_compact_mask])
def test_two_layers_that_share_a_weight_have_one_mask_at_most(wrap):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    with pytest.raises(ConfigError, match=r"Mask-based tuning: 0 and 1 share one weight\. Name one of them, or untie"):
        wrap(model, ["0", "1"], 1)
    assert type(model[0]) is nn.Linear
    assert all(parameter.requires_grad for parameter in model.parameters()), "it is as it was"


@pytest.mark.parametrize(("given", "found"), [({}, "neither"), ({"k": 1, "supports": {}}, "both")])
def test_mask_needs_one_way_to_choose_entries(given, found):
    with pytest.raises(ConfigError, match=rf"Mask-based tuning: .*{found}.* given. Give names and k, or supports"):
        wrap_mask(network(), **given)
