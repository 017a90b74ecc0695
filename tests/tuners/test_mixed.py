"""NeuroAda or NEAT together with LoRA on the same layers, through PEFT's mixed models, added in either order.

What LoRA does around a base model into which ours is merged is the measure: there PEFT alone computes.
"""

import copy
import re

import peft
import pytest
import torch
from peft import (
    LoHaConfig,
    LoraConfig,
    PeftMixedModel,
    PeftModel,
    ShiraConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.mixed import model as mixed_tables
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from neuroada import HybridModel, NeuroAdaConfig, NeuroAdaLinear, held, reselect
from neuroada.errors import ConfigError, MergeError, TargetError
from neuroada.layers import AdapterLayer
from neuroada.tuners import register_mixed
from specimens import METHODS, adapted_layers, base_weights, fill, logits, same_bits, tiny

TARGETS = ["q_proj", "v_proj", "down_proj"]
ORDERS = [("ours", "lora"), ("lora", "ours")]
NEUROADA = METHODS[0]

every_method = pytest.mark.parametrize("kind", METHODS, ids=str)
both_orders = pytest.mark.parametrize("order", ORDERS, ids="-".join)
two_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@torch.no_grad()
def fill_lora(model: nn.Module, adapter: str = "lora") -> None:
    generator = torch.Generator().manual_seed(9)
    for name, layer in sorted(model.named_modules()):
        if isinstance(layer, LoraLayer) and adapter in layer.lora_B and name:
            for part in (layer.lora_A, layer.lora_B):
                weight = part[adapter].weight
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))


def mixed(base: nn.Module, kind=NEUROADA, order=ORDERS[0], trained: bool = True, **ours) -> PeftMixedModel:
    configs = {
        "ours": kind.config(**({"target_modules": TARGETS} | ours)),
        "lora": LoraConfig(r=2, target_modules=TARGETS),
    }
    model = get_peft_model(copy.deepcopy(base), configs[order[0]], adapter_name=order[0], mixed=True)
    model.add_adapter(order[1], configs[order[1]])
    model.set_adapter(["ours", "lora"])
    if trained:
        fill(model, "ours")
        fill_lora(model)
    return model.eval()


def ours_alone(base: nn.Module, kind=NEUROADA) -> PeftModel:
    return kind.adapted(base, "ours", target_modules=TARGETS)


def lora_on(base: nn.Module, autocast: bool = True) -> PeftModel:
    """autocast: LoRA in float32 on any base, as PEFT has it but for the first adapter of a mixed model."""
    config = LoraConfig(r=2, target_modules=TARGETS)
    model = get_peft_model(copy.deepcopy(base), config, adapter_name="lora", autocast_adapter_dtype=autocast)
    fill_lora(model)
    return model.eval()


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the base's own, by the names that they have without adapters."""
    weights = {}
    for name, tensor in base_weights(model).items():
        while ".base_layer." in name:
            name = name.replace(".base_layer.", ".")
        if ".lora_" not in name:
            weights[name] = tensor
    return weights


def same_weights(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(same_bits(tensor, right[name]) for name, tensor in left.items())


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


@every_method
@both_orders
def test_switching_and_disabling(kind, order):
    base = tiny("llama")
    model = mixed(base, kind, order)
    both, before = logits(model), plain_weights(model)
    with model.disable_adapter():
        assert same_bits(logits(model), logits(base))
    assert same_bits(logits(model), both)
    model.set_adapter("ours")
    assert same_bits(logits(model), logits(ours_alone(base, kind)))
    model.set_adapter("lora")
    assert same_bits(logits(model), logits(lora_on(base)))
    model.set_adapter(["ours", "lora"])
    assert same_bits(logits(model), both)
    assert same_weights(plain_weights(model), before)


@every_method
@both_orders
def test_deleting_one_leaves_the_other(kind, order):
    base = tiny("llama")
    model = mixed(base, kind, order)
    model.delete_adapter("lora")
    assert same_bits(logits(model), logits(ours_alone(base, kind)))
    model = mixed(base, kind, order)
    model.delete_adapter("ours")
    assert same_bits(logits(model), logits(lora_on(base)))


@every_method
@both_orders
@two_dtypes
def test_merged_in_place_and_unmerged(kind, order, dtype):
    """LoRA's own undo rounds; of ours not a bit is left, and NEAT's, which keeps the whole weight, heals LoRA's."""
    base = tiny("llama").to(dtype)
    model = mixed(base, kind, order)
    before = plain_weights(model)
    expected = logits(copy.deepcopy(model).merge_and_unload())
    model.merge_adapter()
    assert same_bits(logits(model), expected)
    model.unmerge_adapter()
    after = plain_weights(model)
    if kind is not NEUROADA:
        assert same_weights(after, before)
        return
    changed = 0
    for layer in adapted_layers(model):
        name = f"{layer.name}.weight"
        indices = layer.neuroada_indices["ours"].long()
        assert same_bits(after[name].gather(1, indices), before[name].gather(1, indices))
        changed += int((after[name] != before[name]).sum())
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=4 * torch.finfo(dtype).eps)
    assert changed > 0, "or this test would not need to be so patient"


@every_method
@both_orders
def test_as_long_as_lora_is_not_merged_the_undo_is_exact(kind, order):
    model = mixed(tiny("llama"), kind, order)
    both, before = logits(model), plain_weights(model)
    model.merge_adapter(["ours"])
    assert not same_weights(plain_weights(model), before)
    model.unmerge_adapter()
    assert same_weights(plain_weights(model), before)
    assert same_bits(logits(model), both)
    model.merge_adapter(["ours"])
    assert same_weights(plain_weights(model.unload()), before)


@both_orders
def test_disabling_or_switching_while_merged_unmerges(order):
    base = tiny("llama")
    for leave in ("disable", "switch"):
        model = mixed(base, order=order)
        model.merge_adapter()
        if leave == "disable":
            with model.disable_adapter():
                torch.testing.assert_close(logits(model), logits(base), rtol=1e-4, atol=1e-5)
        else:
            with pytest.warns(UserWarning, match="Unmerging the model first"):
                model.set_adapter("ours")
            torch.testing.assert_close(logits(model), logits(ours_alone(base)), rtol=1e-4, atol=1e-5)
        assert not any(layer.merged for layer in adapted_layers(model))


def test_ours_then_lora_may_be_merged_one_after_the_other_but_not_the_other_way():
    model = mixed(tiny("llama"))
    expected = plain_weights(copy.deepcopy(model).merge_and_unload())
    model.merge_adapter(["ours"])
    model.merge_adapter(["lora"])
    assert same_weights(plain_weights(copy.deepcopy(model).merge_and_unload()), expected)
    model = mixed(tiny("llama"))
    model.merge_adapter(["lora"])
    merged = plain_weights(model)
    message = (
        r"Merging ours into \S+q_proj: lora, which is around it, is merged already\. Call unmerge_adapter\(\) first"
    )
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError, match=message):
            merge()
    assert same_weights(plain_weights(model), merged)


def test_a_weight_that_someone_else_wrote_to_is_still_noticed():
    model = mixed(tiny("llama"))
    model.merge_adapter()
    layer = adapted_layers(model)[0]
    with torch.no_grad():
        layer.stored_weight.add_(0.01)
    with pytest.raises(MergeError, match="the base weight was written to while the adapter was merged"):
        model.unmerge_adapter()


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


@every_method
@both_orders
def test_ours_can_be_saved_by_itself_and_loaded_with_and_without_lora(kind, order, tmp_path):
    base = tiny("llama")
    model = mixed(base, kind, order)
    with pytest.raises(NotImplementedError, match="Saving is not supported for PeftMixedModel"):
        model.save_pretrained(tmp_path)
    state = get_peft_model_state_dict(model, adapter_name="ours")
    assert state.keys() == get_peft_model_state_dict(ours_alone(base, kind), adapter_name="ours").keys()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "adapter_model.safetensors")
    model.peft_config["ours"].save_pretrained(tmp_path)
    model.set_adapter("ours")
    expected = logits(model)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert same_bits(logits(loaded), expected)
    around = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=2, target_modules=TARGETS), adapter_name="lora", mixed=True
    )
    around.load_adapter(tmp_path, "ours")
    fill_lora(around)
    around.set_adapter(["ours", "lora"])
    model.set_adapter(["ours", "lora"])
    assert same_bits(logits(around.eval()), logits(model))
    again = PeftMixedModel.from_pretrained(copy.deepcopy(base), tmp_path, "ours")
    assert same_bits(logits(again.eval()), expected)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (LoraConfig(r=2, target_modules=TARGETS, use_dora=True), "LORA adapter with DoRA"),
        (LoHaConfig(r=2, target_modules=TARGETS), "LOHA adapter"),
        (ShiraConfig(r=1, target_modules=TARGETS), "SHIRA adapter"),
    ],
    ids=["dora", "loha", "shira"],
)
def test_what_reads_the_weight_past_ours_is_refused_in_either_order(config, named):
    message = rf"Adapting the module \S+q_proj: it would have an adapter of ours and, around it, another {named}.*"
    model = get_peft_model(tiny("llama"), NeuroAdaConfig(target_modules=TARGETS), mixed=True)
    with pytest.raises(TargetError, match=message + "Around ours only plain LoRA is supported"):
        model.add_adapter("other", config)
    assert list(model.peft_config) == ["default"]
    assert same_bits(logits(model), logits(tiny("llama")))
    model = get_peft_model(tiny("llama"), copy.deepcopy(config), mixed=True)
    with pytest.raises(TargetError, match="Around ours only plain LoRA is supported"):
        model.add_adapter("ours", NeuroAdaConfig(target_modules=TARGETS))
    elsewhere = copy.deepcopy(config)
    elsewhere.target_modules = {"up_proj"}
    model = get_peft_model(tiny("llama"), NeuroAdaConfig(target_modules=TARGETS), mixed=True)
    model.add_adapter("other", elsewhere)
    assert sum(isinstance(layer, NeuroAdaLinear) for layer in model.modules()) == 6


def test_both_of_ours_on_one_layer_merged_lora_and_bad_names_are_refused():
    model = get_peft_model(tiny("llama"), NeuroAdaConfig(target_modules=TARGETS), mixed=True)
    with pytest.raises(TargetError, match="it already has an adapter of another kind"):
        model.add_adapter("neat", METHODS[1].config(target_modules=TARGETS))
    with pytest.raises(ConfigError, match=r"An adapter called 'a\.b'"):
        model.add_adapter("a.b", NeuroAdaConfig(target_modules=TARGETS))
    model = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules=TARGETS), mixed=True)
    model.merge_adapter()
    with pytest.raises(MergeError, match=r"default, which is around it, is merged\. Call unmerge_adapter\(\) first"):
        model.add_adapter("ours", NeuroAdaConfig(target_modules=TARGETS))


def test_mixes_without_ours_are_peft_s_own(monkeypatch):
    def built() -> tuple[list[str], Tensor, Tensor]:
        torch.manual_seed(0)
        model = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules=TARGETS), mixed=True)
        model.add_adapter("loha", LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False))
        model.set_adapter(["default", "loha"])
        names, adapted = list(model.state_dict()), logits(model.eval())
        return names, adapted, logits(model.merge_and_unload())

    found = built()
    monkeypatch.setattr(peft.mixed_model, "MixedModel", mixed_tables.MixedModel)
    expected = built()
    assert found[0] == expected[0]
    assert all(map(same_bits, found[1:], expected[1:]))


def test_registering_again_changes_nothing():
    before = [copy.copy(getattr(mixed_tables, name)) for name in ("COMPATIBLE_TUNER_TYPES", "PREFIXES", "Layers")]
    for kind in METHODS:
        register_mixed(kind.peft_type.lower(), kind.config_class, kind.model_class, HybridModel)
    assert before == [getattr(mixed_tables, name) for name in ("COMPATIBLE_TUNER_TYPES", "PREFIXES", "Layers")]
    assert re.match("peft", mixed_tables.MixedModel.__module__), "PEFT's own class is as it was"
