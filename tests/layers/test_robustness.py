"""What training loops do to models: autocast, checkpointing, casting, copying, loading, calling twice."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from neuroada.errors import MergeError, WeightError
from specimens import (
    METHODS,
    adapted_layers,
    base_weights,
    changed,
    every_kind,
    fill,
    logits,
    same_bits,
    tiny,
    token_ids,
    trained_parameters,
)


def gradients(model: nn.Module, loss: Tensor | None = None) -> list[Tensor]:
    loss = model(token_ids(), labels=token_ids()).loss if loss is None else loss
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


def all_same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(same_bits(*pair) for pair in zip(left, right, strict=True))


@pytest.fixture(params=["llama", "gpt2"])
def family(request) -> str:
    return request.param


@pytest.fixture
def model(family, kind):
    return kind.adapted(tiny(family))


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(model, family, dtype, kind):
    want, before = tiny(family), base_weights(model)
    with torch.autocast("cpu", dtype=dtype):
        with model.disable_adapter():
            assert same_bits(logits(model), logits(want))
        outside = logits(model)
        backward = gradients(model)
    assert changed(before, model) == []
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in backward)
    twin = copy.deepcopy(model)
    model.merge_adapter()
    with torch.autocast("cpu", dtype=dtype):
        merged = logits(model)
    assert kind.models_agree(outside, merged, twin)


@every_kind
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(model, reentrant, kind):
    model.train()
    want, before = gradients(model), base_weights(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    loss = model(token_ids(), labels=token_ids()).loss
    loss.backward()
    assert all_same([p.grad for p in model.parameters() if p.requires_grad], list(want))
    assert changed(before, model) == []


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("merged", [False, True])
def test_casting_the_model(model, family, dtype, merged, kind):
    if merged:
        model.merge_adapter()
    model.to(dtype)
    if merged:
        model.unmerge_adapter()
    assert changed(base_weights(tiny(family).to(dtype)), model) == []
    unmerged, twin = logits(model), copy.deepcopy(model)
    assert kind.models_agree(unmerged, logits(model.merge_and_unload()), twin)


@every_kind
@pytest.mark.parametrize("merged", [False, True])
def test_deepcopy_is_independent(model, merged, kind):
    before, outputs = base_weights(model), logits(model)
    if merged:
        model.merge_adapter()
    twin = copy.deepcopy(model)
    fill(twin, scale=2.0)
    twin.unmerge_adapter()
    assert changed(before, twin) == []
    assert not torch.equal(logits(twin), outputs)
    model.unmerge_adapter()
    assert changed(before, model) == []
    assert same_bits(logits(model), outputs)


@every_kind
@pytest.mark.parametrize("merged", [False, True])
def test_torch_save_and_load_of_the_whole_model(model, merged, kind):
    before = base_weights(model)
    if merged:
        model.merge_adapter()
    outputs = logits(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert same_bits(logits(loaded), outputs)
    for either in (model, loaded):
        either.unmerge_adapter()
        assert changed(before, either) == []
    assert all_same(gradients(loaded), gradients(model))


@every_kind
def test_state_dict_round_trip(model, family, kind):
    outputs, other = logits(model), kind.adapted(tiny(family, seed=1))
    other.load_state_dict(model.state_dict())
    assert same_bits(logits(other), outputs)


@pytest.mark.parametrize("kind", METHODS, ids=str)
def test_config_pickles_and_copies(kind):
    config = kind.config(3, target_modules=["q_proj"], verify_base=False)
    assert pickle.loads(pickle.dumps(config)) == config
    assert copy.deepcopy(config) == config


@every_kind
def test_a_module_called_many_times_in_one_graph(kind):
    """ALBERT runs the same layers at every depth."""
    config = {"num_hidden_layers": 3, "num_labels": 2}
    base = tiny("albert", **config)
    want = logits(base)
    model = kind.adapted(base, exclude_modules=["classifier"])
    dense = tiny("albert", **config).requires_grad_(False)
    inner = model.base_model.model
    layers = [(name, m) for name, m in inner.named_modules() if isinstance(m, kind.layer_class)]
    weights = {f"{name}.weight": m.base_layer.weight + m.get_delta_weight("default") for name, m in layers}
    trained = [p for _, layer in layers for p in trained_parameters(layer).values()]
    labels, before = torch.tensor([0, 1]), base_weights(model)
    loss = torch.func.functional_call(dense, weights, (token_ids(),), {"labels": labels}).loss
    plain = torch.autograd.grad(loss, trained)
    found = torch.autograd.grad(model(token_ids(), labels=labels).loss, trained)
    for ours, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert changed(before, model) == []
    outputs, twin = logits(model, 40), copy.deepcopy(model)
    with model.disable_adapter():
        assert same_bits(logits(model), want)
    assert kind.models_agree(outputs, logits(model.merge_and_unload(), 40), twin)


@every_kind
def test_base_weights_loaded_after_wrapping_are_used(model, family, kind):
    other = kind.adapted(tiny(family, seed=1))
    state = model.state_dict()
    adapter = {name: tensor for name, tensor in state.items() if kind.prefix in name}
    other.load_state_dict(adapter, strict=False)
    gradients(model)
    model.load_state_dict({name: tensor for name, tensor in other.state_dict().items() if name not in adapter}, False)
    assert changed(base_weights(other), model) == []
    assert same_bits(logits(model), logits(other))
    assert all_same(gradients(model), gradients(other))


@every_kind
def test_base_weights_written_between_forward_and_backward_are_refused(model, kind):
    loss = model(token_ids(), labels=token_ids()).loss
    with torch.no_grad():
        for layer in adapted_layers(model):
            layer.get_base_layer().weight.mul_(2)
    with pytest.raises(WeightError, match=r"written to after the forward pass .*between steps instead"):
        gradients(model, loss)


@every_kind
def test_base_weights_recreated_between_forward_and_backward(model, kind):
    """As accelerate's off-loading and sharding do: new Parameter objects, or new storage in the old ones."""
    want = gradients(model)
    for recreate in (_new_parameters, _new_storage, _there_and_back):
        loss = model(token_ids(), labels=token_ids()).loss
        recreate(model)
        assert all_same(gradients(model, loss), want)
        assert all_same(gradients(model), want)


def _new_parameters(model: nn.Module) -> None:
    for layer in adapted_layers(model):
        base = layer.get_base_layer()
        base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)


def _new_storage(model: nn.Module) -> None:
    for layer in adapted_layers(model):
        weight = layer.get_base_layer().weight
        weight.data = weight.data.clone()


def _there_and_back(model: nn.Module) -> None:
    for layer in adapted_layers(model):
        layer.get_base_layer().to(torch.float64).to(torch.float32)


@every_kind
def test_base_weights_cast_between_forward_and_backward_are_refused(model, kind):
    loss = model(token_ids(), labels=token_ids()).loss
    for layer in adapted_layers(model):
        layer.get_base_layer().to(torch.bfloat16)
    with pytest.raises(WeightError, match=r"torch.bfloat16.*between steps instead"):
        gradients(model, loss)


@every_kind
def test_base_weights_loaded_while_merged_are_kept_and_unmerging_is_refused(model, family, kind):
    new = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in base_weights(model).items()}
    model.merge_adapter()
    for name, parameter in model.get_base_model().named_parameters():
        if kind.prefix not in name:
            parameter.detach().copy_(new[name.replace(".base_layer.", ".")])
    with pytest.raises(MergeError, match=r"written to while the adapter was merged"):
        model.unmerge_adapter()
    assert changed(new, model) == []


@every_kind
def test_training_the_base_weight_too_is_refused(model, kind):
    adapted_layers(model)[0].get_base_layer().weight.requires_grad_(True)
    with pytest.raises(WeightError, match=r"requires_grad=True.*Freeze the base weight"):
        gradients(model)
    logits(model)


@every_kind
def test_an_input_of_another_dtype_is_refused(kind):
    layer = adapted_layers(kind.adapted(tiny("llama").to(torch.bfloat16)))[0]
    with pytest.raises(WeightError, match=r"the input is torch.float32 and the weight torch.bfloat16"):
        layer(torch.ones(2, layer.in_features))


@every_kind
@pytest.mark.parametrize("reference_gradients", [False, True])
@pytest.mark.parametrize("reference", ["disabled", "another adapter"])
def test_policy_then_reference_then_backward(model, reference, reference_gradients, kind):
    """As DPO does with the adapter's own base, or with a second adapter, as its reference (I8)."""
    model.add_adapter("reference", kind.config(3))
    fill(model, "reference")
    before, want = base_weights(model), gradients(model)
    policy = model(token_ids(), labels=token_ids()).loss
    with torch.set_grad_enabled(reference_gradients):
        if reference == "disabled":
            with model.disable_adapter():
                second = model(token_ids(), labels=token_ids()).loss
        else:
            model.set_adapter("reference")
            second = model(token_ids(), labels=token_ids()).loss
            model.set_adapter("default")
    assert not torch.equal(policy, second)
    assert all_same(gradients(model, policy - second.detach()), want)
    assert changed(before, model) == []
