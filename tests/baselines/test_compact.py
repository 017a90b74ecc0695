"""The best form of mask-based training: the weights of the paper's form, from optimiser states of the support alone."""

import copy
import gc
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim import optimizer as optimisers
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from allocations import Allocations
from neuroada.baselines import MaskedLinear, unwrap_compact_mask, wrap_compact_mask, wrap_mask
from neuroada.errors import ConfigError
from neuroada.ops.sparse_delta import Support
from specimens import one_thread, same_bits

INPUTS, HIDDEN, OUTPUTS, TOKENS, K, STEPS = 23, 19, 11, 7, 3, 20
NAMES = ["0", "2"]
OPTIMISERS = {
    "sgd": partial(SGD, lr=0.01, foreach=False),
    "momentum": partial(SGD, lr=0.01, momentum=0.9, foreach=False),
    "adamw": partial(AdamW, lr=0.01, weight_decay=0, foreach=False),
}


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(INPUTS, HIDDEN), nn.Tanh(), Conv1D(OUTPUTS, HIDDEN))
    return nn.Sequential(*layers).to(dtype).requires_grad_(False)


def supports(layers: tuple[int, ...] = (0, 2)) -> dict[str, Support]:
    """Some neurons of the first layer, K inputs each; of the second single entries, with neurons that repeat."""
    covered, indices = torch.tensor([0, 5, 18]), torch.tensor([[0, 4, 22], [1, 2, 3], [7, 8, 21]])
    neurons, inputs = torch.tensor([2, 2, 10]), torch.tensor([[0], [18], [5]])
    both = {0: Support(indices, torch.zeros(3, 3), covered), 2: Support(inputs, torch.zeros(3, 1), neurons)}
    return {str(layer): both[layer] for layer in layers}


def batches(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(STEPS, TOKENS, INPUTS, generator=torch.Generator().manual_seed(1)).to(dtype)


def train(model: nn.Module, optimiser, dtype: torch.dtype = torch.float32, parts: int = 1) -> None:
    """parts: micro-batches that each step accumulates."""
    for batch in batches(dtype):
        for micro in batch.chunk(parts):
            model(micro).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()


def allowed(weight: Tensor, support: Support, transposed: bool) -> Tensor:
    mask = torch.zeros(weight.T.shape if transposed else weight.shape, dtype=torch.bool)
    assert support.neurons is not None
    mask[support.neurons[:, None], support.indices] = True
    return mask.T if transposed else mask


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_bit_for_bit_the_weights_of_the_papers_form(name, parts):
    full, compact = network(), network()
    train(full, OPTIMISERS[name](wrap_mask(full, supports=supports())), parts=parts)
    train(compact, OPTIMISERS[name](wrap_compact_mask(compact, supports=supports())), parts=parts)
    unwrap_compact_mask(compact)
    before = network().state_dict()
    assert compact.state_dict().keys() == before.keys()
    for key, weight in compact.state_dict().items():
        assert same_bits(weight, full.state_dict()[key])
        support = supports().get(key.removesuffix(".weight"))
        if support is None:
            assert same_bits(weight, before[key])
        else:
            assert torch.equal(weight != before[key], allowed(weight, support, transposed=key == "2.weight"))


def test_another_entry_gives_other_weights():
    full, compact = network(), network()
    other = supports()
    other["0"].indices[0, 0] = 1
    train(full, OPTIMISERS["adamw"](wrap_mask(full, supports=supports())))
    train(compact, OPTIMISERS["adamw"](wrap_compact_mask(compact, supports=other)))
    assert not torch.equal(compact[0].weight, full[0].weight)


def test_starts_as_the_base_bit_for_bit_and_trains_its_values_alone():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model, base, x = network(dtype), network(dtype), batches(dtype)[0]
        values = wrap_compact_mask(model, NAMES, K)
        assert [tuple(each.shape) for each in values] == [(HIDDEN, K), (OUTPUTS, K)]
        assert {each.dtype for each in values} == {torch.float64 if dtype is torch.float64 else torch.float32}
        assert same_bits(model(x), base(x))
        with torch.no_grad():
            assert same_bits(model(x), base(x))
        trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        assert trained == {id(each) for each in values}


def test_a_bfloat16_weight_is_the_float32_values_rounded_once():
    """So small a step leaves every weight as it is at first, and moves it once enough of them have come together."""
    model = network(torch.bfloat16)
    base = copy.deepcopy(model)
    values = wrap_compact_mask(model, supports=supports())
    optimiser = SGD(values, lr=1e-4)
    moved = []
    for _ in range(STEPS):
        for each in values:
            each.grad = torch.ones_like(each)
        optimiser.step()
        moved.append(int((model[0].weight != base[0].weight).sum()))
    assert moved[0] < moved[-1]
    for layer in (model[0], model[2]):
        assert same_bits(stored(layer), layer.values.to(torch.bfloat16))


def stored(layer: MaskedLinear) -> Tensor:
    assert layer.neurons is not None
    rows = layer.weight.T if layer.transposed else layer.weight
    return rows.detach()[layer.neurons.long()[:, None], layer.indices.long()]


@pytest.mark.parametrize(("wrap", "most"), [(wrap_compact_mask, 1), (wrap_mask, 6)])
def test_one_dense_gradient_lives_at_a_time_and_all_of_them_in_the_papers_form(wrap, most):
    width = 64
    dense = 4 * width * width
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(6)))
    wrap(model, [str(layer) for layer in range(6)], 1)
    loss = model(torch.randn(2, width)).square().sum()
    with Allocations() as allocations:
        loss.backward()
    assert most * dense <= allocations.peak < (most + 0.5) * dense
    assert sum(size >= dense for size in allocations.alive()) == (6 if wrap is wrap_mask else 0)
    assert all((layer.weight.grad is None) == (wrap is wrap_compact_mask) for layer in model)


def test_a_step_between_forward_and_backward_is_noticed():
    model = network()
    values = wrap_compact_mask(model, NAMES, K)
    loss = model(batches()[0].requires_grad_()).square().sum()
    for each in values:
        each.grad = torch.ones_like(each)
    SGD(values, lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified inplace"):
        loss.backward()
    del loss
    gc.collect()  # what the traceback held


def test_clipping_sees_what_it_sees_with_the_papers_form():
    full, compact = network(), network()
    weights, values = wrap_mask(full, supports=supports()), wrap_compact_mask(compact, supports=supports())
    for model in (full, compact):
        model(batches()[0]).square().sum().backward()
    norms = [nn.utils.clip_grad_norm_(each, 0.1) for each in (weights, values)]
    torch.testing.assert_close(*norms)
    for weight, layer in zip(weights, (compact[0], compact[2]), strict=True):
        rows = weight.grad.T if layer.transposed else weight.grad
        torch.testing.assert_close(rows[layer.neurons.long()[:, None], layer.indices.long()], layer.values.grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_gradient_checkpointing(reentrant):
    plain, model = network(), network()
    expected = wrap_compact_mask(plain, NAMES, K)
    plain(batches()[0]).square().sum().backward()
    found = wrap_compact_mask(model, NAMES, K)
    x = batches()[0].requires_grad_(reentrant)
    checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    assert all(same_bits(left.grad, right.grad) for left, right in zip(found, expected, strict=True))


def test_interrupted_and_loaded_again_it_goes_on_bit_for_bit():
    whole = network(torch.bfloat16)
    train(whole, OPTIMISERS["adamw"](wrap_compact_mask(whole, supports=supports())), torch.bfloat16)
    state, moments = None, None
    for part in batches(torch.bfloat16).split(STEPS // 2):
        model = network(torch.bfloat16)
        optimiser = OPTIMISERS["adamw"](wrap_compact_mask(model, supports=supports()))
        if state is not None:
            model.load_state_dict(state)
            optimiser.load_state_dict(moments)
        for batch in part:
            model(batch).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
        state, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(optimiser.state_dict())
    assert all(same_bits(tensor, state[key]) for key, tensor in whole.state_dict().items())


def test_an_optimiser_of_something_else_writes_nothing_and_nothing_outlives_the_layers():
    model = network()
    hooks = len(optimisers._global_optimizer_post_hooks)
    wrap_compact_mask(model, NAMES, K)
    assert len(optimisers._global_optimizer_post_hooks) == hooks + 1
    before = model[0].weight.clone()
    with torch.no_grad():
        model[0].values += 1
    other = nn.Parameter(torch.ones(1))
    other.grad = torch.ones(1)
    SGD([other], lr=1.0).step()
    assert torch.equal(model[0].weight, before)
    del model
    gc.collect()
    assert len(optimisers._global_optimizer_post_hooks) == hooks


def test_a_layer_of_an_empty_support_stays_as_it_is():
    empty = {"0": Support(torch.zeros(0, 1).int(), torch.zeros(0, 1), torch.zeros(0).int())}
    for wrap in (wrap_mask, wrap_compact_mask):
        model = network()
        assert len(wrap(model, supports=supports((2,)) | empty)) == 1
        assert type(model[0]) is nn.Linear
        assert not model[0].weight.requires_grad


def test_it_needs_one_way_to_choose_entries():
    with pytest.raises(ConfigError, match=r"Mask-based tuning: neither k nor supports is given. Give names and k, or"):
        wrap_compact_mask(network())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps], ids=["copied", "pickled"])
def test_a_copy_that_would_not_train_is_refused(duplicate):
    model = network()
    wrap_compact_mask(model, NAMES, K)
    with pytest.raises(ConfigError, match=r"a copy would not train\. Copy after unwrap_compact_mask"):
        duplicate(model)
    unwrap_compact_mask(model)
    duplicate(model)
