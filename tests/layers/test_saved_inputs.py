"""What layers keep of their input: all of it or the columns that are read, once for layers that share it."""

import copy
import threading

import pytest
import torch
from peft import get_peft_model
from torch.autograd.graph import saved_tensors_hooks

from neuroada import NeuroAdaConfig, NeuroAdaLinear
from neuroada.errors import ConfigError
from neuroada.layers.saved_inputs import PAYS_BELOW
from specimens import adapted, fill, tiny, token_ids

POLICIES = ("auto", "whole", "columns")


def skewed(**settings):
    """A tiny Llama whose large weights stand in few columns, so that keeping columns pays; two deltas a neuron."""
    model = tiny("llama", **settings)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight[:, : module.in_features // 3] *= 50
    return model


def with_policy(policy: str, **settings):
    model = get_peft_model(skewed(**settings), NeuroAdaConfig(k=2, saved_input=policy))
    fill(model, "default")
    return pinned(model.train())


def pinned(model):
    """The sampled product everywhere, which sums alike whatever the number of columns."""
    for layer in layers(model).values():
        layer.product = "sparse"
    return model


def layers(model) -> dict[str, NeuroAdaLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, NeuroAdaLinear)}


def attention(model) -> list[NeuroAdaLinear]:
    """q_proj, k_proj and v_proj of the first block."""
    block = model.base_model.model.model.layers[0].self_attn
    return [block.q_proj, block.k_proj, block.v_proj]


def gradients(model) -> list[torch.Tensor]:
    model.zero_grad()
    model(input_ids=token_ids(), labels=token_ids()).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]


def saved_bytes(model) -> int:
    """Of all storages that a forward pass saves, each once."""
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=token_ids(), labels=token_ids()).loss
    assert loss.requires_grad
    return sum(saved.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_do_not_depend_on_what_is_kept(dtype, autocast):
    found = {}
    for policy in POLICIES:
        model = with_policy(policy).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found[policy] = gradients(model)
    for policy in ("auto", "columns"):
        assert all(torch.equal(a, b) for a, b in zip(found["whole"], found[policy], strict=True))


def test_columns_are_kept_where_they_pay():
    sizes = {policy: saved_bytes(with_policy(policy)) for policy in POLICIES}
    assert sizes["auto"] < sizes["columns"] < sizes["whole"]


def test_an_input_that_attention_keeps_anyway_is_not_copied():
    """o_proj reads what scaled_dot_product_attention saves for itself; eager attention does not save it."""
    fused = {policy: saved_bytes(with_policy(policy)) for policy in POLICIES}
    eager = {policy: saved_bytes(with_policy(policy, attn_implementation="eager")) for policy in POLICIES}
    assert fused["auto"] < fused["columns"]
    assert eager["auto"] == eager["columns"] < eager["whole"]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_layers_that_share_an_input_keep_it_once(policy, autocast):
    model = with_policy(policy)
    q, k, v = attention(model)
    assert q.input_group is k.input_group is v.input_group
    x = torch.randn(3, 5, q.in_features)
    storages = set()
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        saved_tensors_hooks(lambda t: storages.add(t.untyped_storage().data_ptr()) or t, lambda t: t),
    ):
        outputs = [layer(x) for layer in (q, k, v)]
    deltas = {layer.neuroada_deltas["default"].untyped_storage().data_ptr() for layer in (q, k, v)}
    assert len(storages - deltas) == 1
    sum(output.float().sum() for output in outputs).backward()


def test_a_wrong_guess_costs_memory_and_no_result():
    """Layers that are grouped but given different inputs, or the same tensor after a change in place."""
    model = with_policy("columns")
    q, k, v = attention(model)
    x, other = torch.randn(7, q.in_features), torch.randn(7, q.in_features)
    first = q(x).sum() + k(other).sum() + v(x).sum()
    first.backward()
    found = [layer.neuroada_deltas["default"].grad.clone() for layer in (q, k, v)]
    for layer, its, right in zip((q, k, v), (x, other, x), found, strict=True):
        layer.neuroada_deltas["default"].grad = None
        layer.saved_input = "whole"
        layer(its).sum().backward()
        assert torch.equal(layer.neuroada_deltas["default"].grad, right)
        layer.saved_input = "columns"
    model.zero_grad()
    k(2 * x).sum().backward()
    right = k.neuroada_deltas["default"].grad.clone()
    model.zero_grad()
    changing = x.clone()
    one = q(changing).sum()
    changing.mul_(2)
    (one + k(changing).sum()).backward()
    assert torch.equal(q.neuroada_deltas["default"].grad, found[0])
    assert torch.equal(k.neuroada_deltas["default"].grad, right)


def test_new_indices_are_noticed():
    model = with_policy("columns")
    gradients(model)
    for layer in layers(model).values():
        layer.neuroada_indices["default"].copy_(torch.tensor([0, layer.in_features - 1]))
    found = gradients(model)
    for layer in layers(model).values():
        layer.saved_input = "whole"
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), found, strict=True))


def test_several_and_switched_adapters():
    model = adapted(skewed(), "a")
    model.add_adapter("b", NeuroAdaConfig(k=3))
    fill(model, "b")
    pinned(model)
    for active in ("a", "b", ["a", "b"]):
        model.base_model.set_adapter(active)
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            if "neuroada_deltas" in name and name.rsplit(".", 1)[1] in active:
                parameter.requires_grad_()
        found = gradients(model)
        for layer in layers(model).values():
            layer.saved_input = "whole"
        assert all(torch.equal(a, b) for a, b in zip(gradients(model), found, strict=True))
        for layer in layers(model).values():
            layer.saved_input = "auto"


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_gradient_checkpointing(policy, reentrant):
    model = with_policy(policy)
    expected = gradients(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients(model)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_copies_form_groups_of_their_own():
    model = with_policy("columns")
    twin = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), gradients(twin), strict=True))
    originals = {id(layer) for layer in layers(model).values()}
    assert not any(id(member) in originals for layer in layers(twin).values() for member in layer.input_group.members)


def test_dense_use_of_columns_keeps_the_input_whole():
    model = get_peft_model(tiny("llama"), NeuroAdaConfig(k=40, saved_input="columns"))
    layer = next(iter(layers(model).values()))
    assert len(layer.neuroada_indices["default"].unique()) > PAYS_BELOW * layer.in_features
    x = torch.randn(3, layer.in_features)
    kept, places = layer.input_group.keep(layer, x, x, layer.support(["default"]))
    assert kept.data_ptr() == x.data_ptr()
    assert places is layer.neuroada_indices["default"]


def test_an_unknown_choice_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"saved_input='colums': not a known value. Did you mean 'columns'\? Known: "):
        NeuroAdaConfig(saved_input="colums")


def test_replicas_for_data_parallel_keep_inputs_by_themselves():
    layer = attention(with_policy("columns"))[0]
    replica = layer._replicate_for_data_parallel()
    assert replica.input_group.members == [replica]
    assert layer.input_group.members[0] is layer


def test_groups_serve_threads_that_start_together():
    model = with_policy("columns")
    q, k, v = attention(model)
    x = torch.randn(40, q.in_features)
    q(x).sum().backward()
    right = q.neuroada_deltas["default"].grad.clone()
    failures = []

    def work():
        try:
            for layer in (q, k, v) * 20:
                layer.input_group.keep(layer, x, x, layer.support(["default"]))
        except Exception as error:
            failures.append(error)

    for _ in range(20):
        layer = attention(model)[0]
        layer.input_group._union = type(layer.input_group._union)({}, None, {})
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    q.neuroada_deltas["default"].grad = None
    q(x).sum().backward()
    assert torch.equal(q.neuroada_deltas["default"].grad, right)
