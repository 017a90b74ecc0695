"""NeuroAda or NEAT together with LoRA on the same layers, through PEFT's mixed models, added in either order.

What LoRA does around a base model into which ours is merged is the measure: there PEFT alone computes.
"""

import copy

import torch
from peft import LoraConfig, PeftMixedModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from neuroada import HybridModel, NeuroAdaConfig, held, reselect
from neuroada.layers import AdapterLayer
from specimens import adapted_layers, every_method, fill, logits, same_bits, tiny

from .mixing import (
    NEUROADA,
    TARGETS,
    both_orders,
    fill_lora,
    lora_on,
    mixed,
    ours_alone,
    plain_weights,
    same_weights,
    two_dtypes,
)


@every_method
@both_orders
@two_dtypes
def test_at_first_it_is_the_base_model_bit_for_bit(kind, order, dtype):
    base = tiny("llama").to(dtype)
    model = mixed(base, kind, order, trained=False)
    assert isinstance(model.base_model, HybridModel)
    assert same_bits(logits(model), logits(base))
    for layer in adapted_layers(model):
        assert isinstance(layer.base_layer, nn.Linear), "inside LoRA's, whatever the order"
    assert sum(isinstance(layer, LoraLayer) for layer in model.modules()) == len(adapted_layers(model)) == 6


@every_method
@both_orders
@two_dtypes
def test_lora_computes_and_merges_as_on_a_base_with_ours_merged(kind, order, dtype):
    base = tiny("llama").to(dtype)
    alone = ours_alone(base, kind)
    unmerged = logits(alone)
    rounding = (unmerged - logits(alone.merge_and_unload())).norm()
    reference = lora_on(alone.base_model.model, autocast=order[0] == "ours")
    model = mixed(base, kind, order)
    if kind.exact:
        assert same_bits(logits(model), logits(reference))
    else:
        assert 0 < (logits(model) - logits(reference)).norm() <= 4 * rounding
    merged, expected = model.merge_and_unload(), reference.merge_and_unload()
    assert not any(isinstance(module, (AdapterLayer, LoraLayer)) for module in merged.modules())
    assert same_weights(plain_weights(merged), plain_weights(expected))
    assert same_bits(logits(merged), logits(expected))


@every_method
def test_merged_outputs_are_as_near_as_those_of_lora_alone(kind):
    """float64 says what is right; what merging changes in float32 may be twice what it changes with LoRA alone."""
    base = tiny("llama")
    alone, model = lora_on(base), mixed(base, kind)
    floor = (logits(alone) - logits(copy.deepcopy(alone).merge_and_unload())).norm()
    assert floor > 0
    adapted = logits(model)
    merged = logits(copy.deepcopy(model).merge_and_unload())
    assert (adapted - merged).norm() <= 2 * floor
    forgotten = logits(copy.deepcopy(model).merge_and_unload(adapter_names=["ours"]))
    assert (adapted - forgotten).norm() > 100 * floor


def one_layer(kind, order) -> tuple[PeftMixedModel, AdapterLayer, LoraLayer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(23, 19))
    configs = {"ours": kind.config(target_modules=["0"]), "lora": LoraConfig(r=2, target_modules=["0"])}
    model = get_peft_model(model, configs[order[0]], adapter_name=order[0], mixed=True)
    model.add_adapter(order[1], configs[order[1]])
    model.set_adapter(["ours", "lora"])
    fill(model, "ours")
    fill_lora(model)
    (ours,) = adapted_layers(model)
    (lora,) = (module for module in model.modules() if isinstance(module, LoraLayer))
    return model, ours, lora


def dense(x: Tensor, ours: AdapterLayer, lora: LoraLayer, dtype: torch.dtype, parts=("ours", "lora")) -> list[Tensor]:
    """Output, and gradients of the weight and of LoRA's B, of the plain computation in a dtype."""
    delta = ours.get_delta_weight("ours").detach().to(dtype) if "ours" in parts else 0
    weight = (ours.base_layer.weight.detach().to(dtype) + delta).requires_grad_(True)
    a, b = (part["lora"].weight.detach().to(dtype).requires_grad_(True) for part in (lora.lora_A, lora.lora_B))
    scale = lora.scaling["lora"] if "lora" in parts else 0
    x = x.to(dtype)
    output = F.linear(x, weight, ours.base_layer.bias.detach().to(dtype)) + scale * F.linear(F.linear(x, a), b)
    output.square().sum().backward()
    return [output.detach(), weight.grad, a.grad, b.grad]


@both_orders
def test_output_and_gradients_are_those_of_the_dense_sum(order):
    model, ours, lora = one_layer(NEUROADA, order)
    x = torch.randn(7, 23, generator=torch.Generator().manual_seed(1))
    output = model(x)
    output.square().sum().backward()
    indices = ours.neuroada_indices["ours"].long()

    def values(parts: list[Tensor]) -> list[Tensor]:
        return [parts[0], parts[1].gather(1, indices), *parts[2:]]

    own = [output.detach(), ours.neuroada_deltas["ours"].grad]
    own += [part["lora"].weight.grad for part in (lora.lora_A, lora.lora_B)]
    exact, plain = values(dense(x, ours, lora, torch.float64)), values(dense(x, ours, lora, torch.float32))
    floors = []
    for found, right, same in zip(own, exact, plain, strict=True):
        floor = max((same.double() - right).norm(), right.norm() * torch.finfo(torch.float32).eps / 2)
        assert (found.double() - right).norm() <= 2 * floor
        floors.append(floor)
    for parts in (("ours",), ("lora",)):
        wrong = values(dense(x, ours, lora, torch.float64, parts))
        for found, other, floor in zip(own, wrong, floors, strict=True):
            assert (found.double() - other).norm() > 20 * floor


@every_method
@both_orders
def test_both_train_and_the_base_stays_bit_for_bit(kind, order):
    base = tiny("llama")
    model = mixed(base, kind, order, trained=False).train()
    before = plain_weights(model)
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora" in name or ".ours" in name for name in trained)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    ids = torch.arange(1, 19).view(2, 9)
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    after = dict(model.named_parameters())
    assert all(not torch.equal(tensor, after[name]) for name, tensor in trained.items())
    assert same_weights(plain_weights(model), before)


@both_orders
def test_places_do_not_depend_on_the_order(order):
    alone = get_peft_model(tiny("llama"), NeuroAdaConfig(k=2, selection="random", coverage=0.5), adapter_name="ours")
    model = mixed(tiny("llama"), order=order, selection="random", coverage=0.5, target_modules=None)
    found = {layer.name: layer for layer in adapted_layers(model)}
    assert found.keys() == {layer.name for layer in adapted_layers(alone)}
    for layer in adapted_layers(alone):
        assert torch.equal(layer.neuroada_indices["ours"], found[layer.name].neuroada_indices["ours"])
        assert torch.equal(layer.neurons_of("ours"), found[layer.name].neurons_of("ours"))
    groups = [
        layer.input_group
        for name, layer in sorted(found.items())
        if name.endswith(("layers.0.self_attn.q_proj", "layers.0.self_attn.v_proj"))
    ]
    assert groups[0] is groups[1]


def test_all_linear_beside_ours_leaves_the_head_out():
    model = get_peft_model(tiny("llama"), NeuroAdaConfig(k=1), mixed=True)
    model.add_adapter("lora", LoraConfig(r=2, target_modules="all-linear"))
    assert not isinstance(model.base_model.model.lm_head, LoraLayer)
    assert sum(isinstance(module, LoraLayer) for module in model.modules()) == len(adapted_layers(model)) == 14


@both_orders
def test_choosing_by_data_and_holding(order):
    base = tiny("llama")
    ids = torch.arange(1, 19).view(2, 9)
    batches = [{"input_ids": ids, "labels": ids}]
    model = mixed(base, order=order, trained=False, selection="gradient")
    reselect(model, batches, "gradient", adapter_name="ours", progress=False)
    alone = get_peft_model(copy.deepcopy(base), NeuroAdaConfig(k=2, selection="gradient", target_modules=TARGETS))
    reselect(alone, batches, "gradient", progress=False)
    for left, right in zip(adapted_layers(model), adapted_layers(alone), strict=True):
        assert torch.equal(left.neuroada_indices["ours"], right.neuroada_indices["default"])
    fill(model, "ours")
    fill_lora(model)
    both = logits(model)
    with held(model):
        assert same_bits(logits(model), both)
