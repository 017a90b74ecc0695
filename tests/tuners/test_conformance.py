"""What PEFT expects of a method: naming, trainability, adding, switching, deleting, state dicts, injection, status."""

import copy

import pytest
import torch
from peft import (
    PeftModel,
    get_layer_status,
    get_model_status,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from torch import nn

from neuroada import NeuroAdaConfig, NeuroAdaLinear
from neuroada.errors import NeuroAdaError
from specimens import adapted, base_weights, changed, fill, logits, same_bits, tiny, token_ids

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")


class Mlp(nn.Module):
    """Two linear layers; one has the tuner's prefix in its name."""

    def __init__(self):
        super().__init__()
        self.neuroada_first = nn.Linear(10, 20)
        self.norm = nn.LayerNorm(20)
        self.head = nn.Linear(20, 2)

    def forward(self, x):
        return self.head(self.norm(self.neuroada_first(x)).relu())


X = torch.arange(40.0).reshape(4, 10) / 20


@pytest.fixture
def base() -> Mlp:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Mlp()


def config(**fields) -> NeuroAdaConfig:
    return NeuroAdaConfig(**({"k": 3, "target_modules": ["neuroada_first"]} | fields))


@pytest.fixture
def model(base) -> PeftModel:
    return adapted(base, k=3, target_modules=["neuroada_first"], modules_to_save=["head"])


def trainable(model: nn.Module) -> set[str]:
    return {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}


HEAD = {"head.modules_to_save.default.weight", "head.modules_to_save.default.bias"}
DELTAS = "neuroada_first.neuroada_deltas.{}"


def test_trainable_are_the_deltas_and_the_modules_to_save(model):
    assert trainable(model) == {DELTAS.format("default")} | HEAD


def test_training_changes_what_is_trainable_and_nothing_else(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        model(X).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    moved = {name for name, p in model.named_parameters() if not same_bits(before[name], p)}
    assert {name.removeprefix("base_model.model.") for name in moved} == trainable(model)


def test_adding_and_switching_set_what_is_trainable(model):
    model.add_adapter("second", config(k=2))
    assert trainable(model) == {DELTAS.format("default")} | HEAD
    model.set_adapter("second")
    assert trainable(model) == {DELTAS.format("second")}
    assert model.active_adapters == ["second"]
    model.set_adapter("default", inference_mode=True)
    assert trainable(model) == set()
    model.base_model.set_adapter(["default", "second"])
    assert trainable(model) == {DELTAS.format("default"), DELTAS.format("second")} | HEAD
    model.set_requires_grad("second", requires_grad=False)
    assert trainable(model) == {DELTAS.format("default")} | HEAD


def test_disabling_is_undone_by_an_exception_too(model, base):
    outputs = model(X)

    def fail_while_disabled() -> None:
        with model.disable_adapter():
            assert same_bits(model(X), base(X))
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail_while_disabled()
    assert same_bits(model(X), outputs)
    model.base_model.disable_adapter_layers()
    with model.disable_adapter():
        pass
    assert same_bits(model(X), base(X))


def test_deleting(model, base):
    model.add_adapter("second", config())
    with pytest.raises(ValueError, match="nonsense does not exist"):
        model.delete_adapter("nonsense")
    model.delete_adapter("default")
    assert list(model.peft_config) == ["second"]
    layer = model.base_model.model.neuroada_first
    assert list(layer.neuroada_deltas) == list(layer.neuroada_indices) == ["second"]
    assert list(layer.mode) == ["second"]


def test_deleted_names_can_be_used_again(model):
    model.add_adapter("second", config(k=2, coverage=0.5))
    model.delete_adapter("second")
    model.add_adapter("second", config(k=4))
    layer = model.base_model.model.neuroada_first
    assert layer.neuroada_deltas["second"].shape == (20, 4)
    assert "second" not in layer.neuroada_neurons


def test_a_name_in_use_is_refused(model):
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("default", config())


def test_a_name_that_cannot_be_is_refused_and_leaves_no_trace(model):
    outputs = model(X)
    with pytest.raises(NeuroAdaError, match=r"x\.y"):
        model.add_adapter("x.y", config())
    assert list(model.peft_config) == ["default"]
    assert model.get_model_status().available_adapters == ["default"]
    assert same_bits(model(X), outputs)


def test_an_adapter_named_like_a_module(tmp_path):
    model = adapted(tiny("llama"))
    want = get_peft_model_state_dict(model)
    model.add_adapter("mlp", NeuroAdaConfig())
    try:
        found = get_peft_model_state_dict(model)
    except NeuroAdaError:
        return
    assert found.keys() == want.keys()
    assert all(same_bits(found[key], want[key]) for key in want)


def test_state_dict_keys_carry_no_adapter_name(model):
    keys = set(get_peft_model_state_dict(model))
    prefix = "base_model.model.neuroada_first.neuroada_"
    heads = {"base_model.model.head.weight", "base_model.model.head.bias"}
    assert keys == {f"{prefix}deltas", f"{prefix}indices", "neuroada_fingerprints"} | heads


def test_state_dicts_move_between_adapters(model, base):
    state = get_peft_model_state_dict(model)
    other = get_peft_model(copy.deepcopy(base), config(modules_to_save=["head"]), adapter_name="other")
    result = set_peft_model_state_dict(other, state, adapter_name="other")
    assert result.unexpected_keys == []
    assert not [key for key in result.missing_keys if "other" in key]
    assert same_bits(other(X), model(X))


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_injection_without_a_peft_model(base, low_cpu_mem_usage):
    model = adapted(base, k=3, target_modules=["neuroada_first"])
    state = get_peft_model_state_dict(model)
    injected = inject_adapter_in_model(config(), copy.deepcopy(base), low_cpu_mem_usage=low_cpu_mem_usage)
    assert isinstance(injected, Mlp)
    assert isinstance(injected.neuroada_first, NeuroAdaLinear)
    assert any(p.is_meta for p in injected.parameters()) == low_cpu_mem_usage
    set_peft_model_state_dict(injected, state, low_cpu_mem_usage=low_cpu_mem_usage)
    assert same_bits(injected(X), model(X))
    assert set(get_peft_model_state_dict(injected)) == {key.removeprefix("base_model.model.") for key in state}


def test_injection_guided_by_a_state_dict(base, model):
    state = get_peft_model_state_dict(model)
    plain = {key.removeprefix("base_model.model."): tensor for key, tensor in state.items()}
    injected = inject_adapter_in_model(config(target_modules=["neuroada_first"]), copy.deepcopy(base), state_dict=plain)
    assert isinstance(injected.neuroada_first, NeuroAdaLinear)
    assert isinstance(injected.head, nn.Linear)


def test_adding_with_low_cpu_mem_usage_waits_for_a_file(model):
    model.add_adapter("second", config(), low_cpu_mem_usage=True)
    layer = model.base_model.model.neuroada_first
    assert layer.neuroada_deltas["second"].is_meta
    assert layer.neuroada_indices["second"].is_meta
    assert not layer.neuroada_deltas["default"].is_meta


def test_a_config_can_be_used_twice(base):
    shared = config()
    first, second = (get_peft_model(copy.deepcopy(base), shared) for _ in range(2))
    fill(first)
    assert same_bits(second(X), base(X))
    assert not torch.equal(first(X), base(X))


def test_loaded_for_training_or_for_inference(model, base, tmp_path):
    model.save_pretrained(tmp_path)
    frozen = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert trainable(frozen) == set()
    assert frozen.peft_config["default"].inference_mode
    resumed = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True)
    assert trainable(resumed) == trainable(model)
    assert same_bits(resumed(X), model(X))
    assert same_bits(frozen(X), model(X))


def test_status_describes_the_adapters(base):
    model = get_peft_model(base, config())
    model.add_adapter("second", config(coverage=0.5))
    status = get_model_status(model)
    assert status.adapter_model_type == "NeuroAdaModel"
    assert status.peft_types == {"default": "NEUROADA", "second": "NEUROADA"}
    assert status.available_adapters == ["default", "second"]
    assert status.active_adapters == ["default"]
    (layer,) = get_layer_status(model)
    assert layer.requires_grad == {"default": True, "second": False}
    model.merge_adapter()
    assert get_model_status(model).merged_adapters == ["default"]


def test_mixed_batches_are_refused():
    model = adapted(tiny("llama"))
    model.add_adapter("second", NeuroAdaConfig())
    with pytest.raises(NeuroAdaError, match="adapter_names"):
        model(token_ids(), adapter_names=["default", "second"])


def test_wrapping_again_and_unloading_leaves_a_clean_model(model, base):
    before = base_weights(model)
    bare = model.unload()
    assert changed(before, bare) == []
    assert not hasattr(bare, "peft_config")
    again = get_peft_model(bare, config())
    assert same_bits(again(X), bare(X))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_transformers_own_adapter_methods(family, tmp_path):
    """PreTrainedModel.add_adapter and friends inject without a PeftModel."""
    model = tiny(family)
    want, before = logits(model), base_weights(model)
    model.add_adapter(NeuroAdaConfig(k=2, target_modules="all-linear"), adapter_name="mine")
    assert same_bits(logits(model), want)
    fill(model, "mine")
    trained = logits(model)
    assert not torch.equal(trained, want)
    model.disable_adapters()
    assert same_bits(logits(model), want)
    model.enable_adapters()
    assert same_bits(logits(model), trained)
    model.save_pretrained(tmp_path)
    loaded = tiny(family)
    loaded.load_adapter(str(tmp_path), adapter_name="theirs")
    assert same_bits(logits(loaded), trained)
    assert changed(before, model) == []
    model.delete_adapter("mine")
    assert same_bits(logits(model), want)


def test_all_adapters_are_described_by_repr(model):
    model.add_adapter("second", config())
    text = repr(model.base_model.model.neuroada_first)
    assert text.startswith("neuroada.NeuroAdaLinear")
    assert "default" in text
    assert "second" in text
