"""Budgets by pattern and for a whole model: K of each weight, and that all else holds with it."""

import copy
import warnings
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from allocations import Allocations
from neuroada import NeuroAdaConfig, NeuroAdaLinear, held, reselect
from neuroada.errors import ConfigError
from neuroada.selection import top_k
from one_sort import by_one_sort, spent
from specimens import adapted, base_weights, changed, fill, logits, same_bits, tiny, token_ids

PATTERN = {"q_proj": 3, r"layers\.1\..*(gate|up)_proj": 5, "mlp.down_proj": 40, r"model\.layers\.0\.mlp\.up_proj": 7}


def uneven(family: str = "llama", dtype: torch.dtype = torch.float32) -> nn.Module:
    """A tiny model whose weights differ in scale."""
    base = tiny(family)
    for number, (name, parameter) in enumerate(base.named_parameters()):
        if name.endswith(("proj.weight", "c_attn.weight", "c_fc.weight", "c_proj.weight")):
            parameter.data *= 1 + number % 5
    return base.to(dtype)


def layers_of(model: nn.Module) -> dict[str, NeuroAdaLinear]:
    return {layer.name: layer for layer in model.modules() if isinstance(layer, NeuroAdaLinear)}


def sizes_of(model: nn.Module, adapter: str = "default") -> dict[str, int]:
    return {name: layer.neuroada_deltas[adapter].shape[1] for name, layer in layers_of(model).items()}


def indices_of(model: nn.Module, adapter: str = "default") -> dict[str, Tensor]:
    return {name: layer.neuroada_indices[adapter].clone() for name, layer in layers_of(model).items()}


def spread_adapter(base: nn.Module, **fields) -> PeftModel:
    return get_peft_model(copy.deepcopy(base), NeuroAdaConfig(**{"budget": 0.2, "budget_scope": "model"} | fields))


def rows_of(base: nn.Module, name: str) -> Tensor:
    """|W| as [O, I]."""
    module = base.get_submodule(name)
    weight = module.weight.detach().abs()
    return weight if isinstance(module, nn.Linear) else weight.T


def batches() -> list[dict[str, Tensor]]:
    return [{"input_ids": ids, "labels": ids} for ids in token_ids(4).split(2)]


def test_patterns_match_as_those_of_lora():
    model = get_peft_model(tiny("llama"), NeuroAdaConfig(k=2, k_pattern=PATTERN))
    lora = get_peft_model(tiny("llama"), LoraConfig(r=2, rank_pattern=PATTERN, target_modules="all-linear"))
    ranks = {
        name: module.r["default"] for name, module in lora.base_model.model.named_modules() if hasattr(module, "r")
    }
    assert sizes_of(model) == ranks
    assert set(ranks.values()) == {2, 3, 5, 7, 40}
    for name, layer in layers_of(model).items():
        chosen = top_k(tiny("llama").get_submodule(name).weight.detach().abs(), ranks[name])
        assert torch.equal(layer.neuroada_indices["default"].long(), chosen)


def test_a_pattern_that_no_adapted_module_matches_is_refused_before_anything_changes():
    base = tiny("llama")
    with pytest.raises(ConfigError) as caught:
        get_peft_model(base, NeuroAdaConfig(k_pattern={"v_proj": 2, "self_attn.qproj": 4}))
    assert str(caught.value) == (
        "k_pattern={'self_attn.qproj': 4}: none of the 14 adapted modules has such a name. Did you mean 'q_proj'? "
        "Known: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj."
    )
    assert layers_of(base) == {}
    with pytest.raises(ConfigError, match=r"none of the 2 adapted modules"):
        get_peft_model(base, NeuroAdaConfig(target_modules=["q_proj"], k_pattern={"v_proj": 2}))


def test_a_pattern_of_more_than_all_inputs_takes_all_of_them():
    base = nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 3), nn.Linear(3, 9))
    config = NeuroAdaConfig(budget=0.3, k_pattern={"1": 4, "2": 9}, target_modules=["0", "1", "2"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = get_peft_model(base, config)
    about = [str(warning.message) for warning in caught if "inputs are used" in str(warning.message)]
    text = "is more than these weights have inputs, so all of their inputs are used"
    assert about == [f"k=4 {text}: 1 (2 inputs)", f"k=9 {text}: 2 (3 inputs)"]
    assert list(sizes_of(model).values()) == [2, 2, 3]


@pytest.mark.parametrize("coverage", [1.0, 0.5])
@pytest.mark.parametrize(("family", "dtype"), [("llama", torch.float32), ("gpt2", torch.bfloat16)])
@pytest.mark.parametrize("budget", [0.001, 0.1, 0.4])
def test_a_budget_for_the_model_goes_where_the_largest_weights_are(family, dtype, coverage, budget):
    base = uneven(family, dtype)
    model = spread_adapter(base, budget=budget, coverage=coverage)
    scores = {}
    for name, layer in layers_of(model).items():
        neurons = layer.neurons_of("default")
        scores[name] = rows_of(base, name)[slice(None) if neurons is None else neurons.long()]
    wanted = round(budget * sum(rows_of(base, name).numel() for name in scores))
    sizes = sizes_of(model)
    assert sizes == by_one_sort(scores, wanted)
    for name, indices in indices_of(model).items():
        assert torch.equal(indices.long(), top_k(scores[name], sizes[name])), name
    trained = model.get_nb_trainable_parameters()[0]
    assert trained == spent(sizes, scores)
    if budget > 0.01:
        assert len(set(sizes.values())) > 2
        assert 2 * abs(trained - wanted) <= max(len(each) for each in scores.values())
    else:
        assert set(sizes.values()) == {1}


def test_patterns_are_paid_from_the_budget_of_the_model():
    base = uneven()
    model = spread_adapter(base, budget=0.3, k_pattern={"q_proj": 20, "v_proj": 1})
    entries = sum(layer.in_features * layer.out_features for layer in layers_of(model).values())
    sizes = sizes_of(model)
    assert {k for name, k in sizes.items() if name.endswith("q_proj")} == {20}
    assert {k for name, k in sizes.items() if name.endswith("v_proj")} == {1}
    assert abs(model.get_nb_trainable_parameters()[0] - 0.3 * entries) <= 20
    everything = spread_adapter(base, k_pattern={".*": 2})
    assert set(sizes_of(everything).values()) == {2}


@pytest.mark.parametrize("fields", [{"k_pattern": PATTERN, "budget": 0.1}, {"budget": 0.2, "budget_scope": "model"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_starts_as_the_base_merges_exactly_and_leaves_no_trace(fields, dtype):
    base = uneven(dtype=dtype)
    before, expected = base_weights(base), logits(base)
    model = get_peft_model(base, NeuroAdaConfig(**fields)).eval()
    assert same_bits(logits(model), expected)
    fill(model)
    trained = logits(model)
    assert not torch.equal(trained, expected)
    assert changed(before, model) == []
    model.merge_adapter()
    assert same_bits(logits(model), trained)
    model.unmerge_adapter()
    assert changed(before, model) == []
    assert same_bits(logits(copy.deepcopy(model).merge_and_unload()), trained)
    assert changed(before, model.unload()) == []


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("fields", [{"k_pattern": PATTERN, "k": 1}, {"budget": 0.2, "budget_scope": "model"}])
def test_a_file_brings_the_shapes_and_nothing_is_spread(fields, low_cpu_mem_usage, tmp_path, monkeypatch):
    base = uneven()
    model = get_peft_model(copy.deepcopy(base), NeuroAdaConfig(**fields)).eval()
    fill(model)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(NeuroAdaLinear, "score_steps", None)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert sizes_of(loaded) == sizes_of(model)
    assert all(torch.equal(indices_of(loaded)[name], each) for name, each in indices_of(model).items())
    assert same_bits(logits(loaded), logits(model))
    assert same_bits(logits(loaded.merge_and_unload()), logits(model))


def test_a_loaded_adapter_goes_on_training_bit_for_bit(tmp_path):
    def step(model: PeftModel) -> Tensor:
        optimiser = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.01)
        model.train()(**batches()[0]).loss.backward()
        optimiser.step()
        return logits(model.eval())

    base = uneven()
    model = spread_adapter(base, selection="gradient")
    reselect(model, batches(), progress=False)
    fill(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True)
    assert sizes_of(loaded) == sizes_of(model)
    assert not any(layer.awaiting for layer in layers_of(loaded).values())
    assert same_bits(step(loaded), step(model))


def test_without_weights_each_gets_its_own_share():
    with torch.device("meta"):
        base = tiny("llama")
    model = spread_adapter(base, budget=0.25, k_pattern={"q_proj": 4})
    for name, layer in layers_of(model).items():
        assert layer.neuroada_deltas["default"].is_meta
        assert sizes_of(model)[name] == (4 if name.endswith("q_proj") else layer.in_features // 4)


def test_random_deltas_have_the_shapes_too():
    model = spread_adapter(uneven(), init_weights=False)
    assert sizes_of(model) == sizes_of(spread_adapter(uneven()))
    assert all(layer.neuroada_deltas["default"].count_nonzero() > 0 for layer in layers_of(model).values())


@pytest.mark.parametrize("state", ["merged", "held", "plain"])
def test_several_adapters_of_different_sizes(state):
    base = uneven()
    alone = spread_adapter(base)
    model = adapted(base, k=2)
    first = logits(model)
    with held(model) if state == "held" else nullcontext():
        if state == "merged":
            model.merge_adapter()
        model.add_adapter("second", NeuroAdaConfig(budget=0.2, budget_scope="model"))
    if state == "merged":
        model.unmerge_adapter()
    model.add_adapter("third", NeuroAdaConfig(k=1, k_pattern=PATTERN))
    assert sizes_of(model, "second") == sizes_of(alone)
    assert all(torch.equal(each, indices_of(alone)[name]) for name, each in indices_of(model, "second").items())
    assert len(set(sizes_of(model, "third").values())) == 5
    trained = {name.split(".")[-1] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"default"}
    fill(model, "second")
    fill(model, "third")
    for adapter in ("second", "third"):
        model.set_adapter(adapter)
        assert not torch.equal(logits(model), first)
        assert same_bits(logits(copy.deepcopy(model).merge_and_unload()), logits(model))
    model.set_adapter("default")
    assert same_bits(logits(model), first)


def dense_gradients(base: nn.Module, names) -> dict[str, Tensor]:
    model = copy.deepcopy(base).eval().requires_grad_(False)
    weights = {name: model.get_submodule(name).weight.requires_grad_() for name in names}
    for batch in batches():
        model(**batch).loss.backward()
    return {name: weight.grad.abs() for name, weight in weights.items()}


@pytest.mark.parametrize("max_memory", [1, 20_000, 1 << 30], ids=["a layer each", "some", "all"])
@pytest.mark.parametrize("coverage", [1.0, 0.5])
def test_gradients_spread_a_budget_as_dense_gradients_do(max_memory, coverage):
    base = tiny("llama")
    model = spread_adapter(base, budget=0.1, coverage=coverage, selection="gradient", k_pattern={"v_proj": 2})
    evenly = sizes_of(model)
    reselect(model, batches(), "gradient", max_memory=max_memory, progress=False)
    layers = layers_of(model)
    gradients = dense_gradients(base, layers)
    entries = sum(each.numel() for each in gradients.values())
    rows = {name: layer.neurons_of("default") for name, layer in layers.items()}
    scores = {n: each if rows[n] is None else each[rows[n].long()] for n, each in gradients.items()}
    fixed = {name: 2 for name in scores if name.endswith("v_proj")}
    free = {name: each for name, each in scores.items() if name not in fixed}
    sizes = sizes_of(model)
    assert sizes == fixed | by_one_sort(free, round(0.1 * entries) - spent(fixed, scores))
    assert sizes != evenly
    for name, indices in indices_of(model).items():
        assert torch.equal(indices.long(), top_k(scores[name], sizes[name])), name
    model.train()(**batches()[0]).loss.backward()
    for layer in layers.values():
        deltas = layer.neuroada_deltas["default"]
        assert deltas.requires_grad
        assert deltas.grad.shape == layer.neuroada_indices["default"].shape
        assert not deltas.any()


def test_little_is_held_at_a_time_though_the_layers_are_gone_through_twice():
    model = spread_adapter(tiny("llama"), budget=0.01, selection="gradient", target_modules=["q_proj", "gate_proj"])
    sizes = [4 * layer.in_features * layer.out_features for layer in layers_of(model).values()]
    with Allocations() as whole:
        reselect(model, batches(), max_memory=sum(sizes), progress=False)
    with Allocations() as parts:
        reselect(model, batches(), max_memory=max(sizes), progress=False)
    assert whole.peak - parts.peak > 0.5 * (sum(sizes) - max(sizes))


def test_a_criterion_of_ones_own_spreads_too():
    model = spread_adapter(uneven(), selection="gradient")
    reselect(model, (), lambda weight, statistics: -weight.abs(), progress=False)
    assert (
        sizes_of(model) == sizes_of(spread_adapter(uneven(), selection="reverse")) != sizes_of(spread_adapter(uneven()))
    )


def test_scores_within_a_neuron_spread_nothing():
    model = spread_adapter(tiny("llama"))
    before = indices_of(model)
    with pytest.raises(ConfigError, match="budget_scope='model' with selection='small_of_large_gradients'"):
        reselect(model, batches(), "small_of_large_gradients", progress=False)
    assert all(torch.equal(indices_of(model)[name], each) for name, each in before.items())


@pytest.mark.parametrize("scope", ["weight", "model"])
def test_a_budget_below_one_delta_a_neuron_is_told(scope):
    base = nn.Sequential(nn.Linear(100, 10), nn.Linear(10, 50))
    few = {"target_modules": ["0", "1"], "budget_scope": scope}
    text = "budget=0.01 is 15 deltas, and each of the 60 covered neurons has at least one: 0.04 of the weights"
    with pytest.warns(UserWarning, match=text):
        get_peft_model(copy.deepcopy(base), NeuroAdaConfig(budget=0.01, **few))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_peft_model(copy.deepcopy(base), NeuroAdaConfig(budget=0.03, **few))
