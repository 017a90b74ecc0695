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

from neuroada.errors import NeuroAdaError
from specimens import METHODS, Kind, base_weights, changed, fill, same_bits, trained_parameters

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute"),
    pytest.mark.parametrize("kind", METHODS, ids=str),
]


class Mlp(nn.Module):
    """Two linear layers; one has the tuners' prefixes in its name."""

    def __init__(self):
        super().__init__()
        self.neuroada_neat_first = nn.Linear(10, 20)
        self.norm = nn.LayerNorm(20)
        self.head = nn.Linear(20, 2)

    def forward(self, x):
        return self.head(self.norm(self.neuroada_neat_first(x)).relu())


X = torch.arange(40.0).reshape(4, 10) / 20


@pytest.fixture
def base() -> Mlp:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Mlp()


def config(kind: Kind, size: int = 3, **fields):
    return kind.config(size, **({"target_modules": ["neuroada_neat_first"]} | fields))


@pytest.fixture
def model(base, kind) -> PeftModel:
    return kind.adapted(base, size=3, target_modules=["neuroada_neat_first"], modules_to_save=["head"])


def trainable(model: nn.Module) -> set[str]:
    return {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}


HEAD = {"head.modules_to_save.default.weight", "head.modules_to_save.default.bias"}


OPTIONAL = {"neuroada_": {"coverage": 0.5}, "neat_": {"depth": 4}}
"""Settings with which an adapter has a part that others lack."""


def own(model: nn.Module, *adapters: str) -> set[str]:
    """Names of what is trained of these adapters."""
    layer = model.base_model.model.neuroada_neat_first
    return {f"neuroada_neat_first.{part}.{name}" for name in adapters for part in trained_parameters(layer, name)}


def test_trainable_are_the_adapter_and_the_modules_to_save(model, kind):
    assert trainable(model) == own(model, "default") | HEAD


def test_training_changes_what_is_trainable_and_nothing_else(model, kind):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        model(X).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    moved = {name for name, p in model.named_parameters() if not same_bits(before[name], p)}
    assert {name.removeprefix("base_model.model.") for name in moved} == trainable(model)


def test_adding_and_switching_set_what_is_trainable(model, kind):
    model.add_adapter("second", config(kind, 2))
    assert trainable(model) == own(model, "default") | HEAD
    model.set_adapter("second")
    assert trainable(model) == own(model, "second")
    assert model.active_adapters == ["second"]
    model.set_adapter("default", inference_mode=True)
    assert trainable(model) == set()
    model.base_model.set_adapter(["default", "second"])
    assert trainable(model) == own(model, "default", "second") | HEAD
    model.set_requires_grad("second", requires_grad=False)
    assert trainable(model) == own(model, "default") | HEAD


def test_disabling_is_undone_by_an_exception_too(model, base, kind):
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


def test_deleting(model, base, kind):
    model.add_adapter("second", config(kind))
    with pytest.raises(ValueError, match="nonsense does not exist"):
        model.delete_adapter("nonsense")
    model.delete_adapter("default")
    assert list(model.peft_config) == ["second"]
    layer = model.base_model.model.neuroada_neat_first
    for name in (*layer.adapter_layer_names, *layer.other_param_names):
        assert set(getattr(layer, name)) <= {"second"}, name
    assert layer.present(["default", "second"]) == ["second"]


def test_deleted_names_can_be_used_again(model, kind):
    model.add_adapter("second", config(kind, 2, **OPTIONAL[kind.prefix]))
    model.delete_adapter("second")
    model.add_adapter("second", config(kind, 4))
    layer = model.base_model.model.neuroada_neat_first
    *_, last = trained_parameters(layer, "second").values()
    assert last.shape[1] == 4
    optional = {"neuroada_": "neuroada_neurons", "neat_": "neat_hidden"}[kind.prefix]
    assert "second" not in getattr(layer, optional)


def test_a_name_in_use_is_refused(model, kind):
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("default", config(kind))


def test_a_name_that_cannot_be_is_refused_and_leaves_no_trace(model, kind):
    outputs = model(X)
    with pytest.raises(NeuroAdaError, match=r"x\.y"):
        model.add_adapter("x.y", config(kind))
    assert list(model.peft_config) == ["default"]
    assert model.get_model_status().available_adapters == ["default"]
    assert same_bits(model(X), outputs)


def test_state_dict_keys_carry_no_adapter_name(model, kind):
    keys = set(get_peft_model_state_dict(model))
    prefix = f"base_model.model.neuroada_neat_first.{kind.prefix}"
    heads = {"base_model.model.head.weight", "base_model.model.head.bias"}
    parts = {"neuroada_": ("deltas", "indices"), "neat_": ("in", "out")}[kind.prefix]
    once = {f"{kind.prefix}{part}" for part in ("fingerprints", "digest")}
    assert keys == {f"{prefix}{part}" for part in parts} | once | heads


def test_state_dicts_move_between_adapters(model, base, kind):
    state = get_peft_model_state_dict(model)
    other = get_peft_model(copy.deepcopy(base), config(kind, modules_to_save=["head"]), adapter_name="other")
    result = set_peft_model_state_dict(other, state, adapter_name="other")
    assert result.unexpected_keys == []
    assert not [key for key in result.missing_keys if "other" in key]
    assert same_bits(other(X), model(X))


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_injection_without_a_peft_model(base, low_cpu_mem_usage, kind):
    model = kind.adapted(base, size=3, target_modules=["neuroada_neat_first"])
    state = get_peft_model_state_dict(model)
    injected = inject_adapter_in_model(config(kind), copy.deepcopy(base), low_cpu_mem_usage=low_cpu_mem_usage)
    assert isinstance(injected, Mlp)
    assert isinstance(injected.neuroada_neat_first, kind.layer_class)
    assert any(p.is_meta for p in injected.parameters()) == low_cpu_mem_usage
    set_peft_model_state_dict(injected, state, low_cpu_mem_usage=low_cpu_mem_usage)
    assert same_bits(injected(X), model(X))
    assert set(get_peft_model_state_dict(injected)) == {key.removeprefix("base_model.model.") for key in state}


def test_injection_guided_by_a_state_dict(base, model, kind):
    state = get_peft_model_state_dict(model)
    plain = {key.removeprefix("base_model.model."): tensor for key, tensor in state.items()}
    injected = inject_adapter_in_model(
        config(kind, target_modules=["neuroada_neat_first"]), copy.deepcopy(base), state_dict=plain
    )
    assert isinstance(injected.neuroada_neat_first, kind.layer_class)
    assert isinstance(injected.head, nn.Linear)


def test_adding_with_low_cpu_mem_usage_waits_for_a_file(model, kind):
    model.add_adapter("second", config(kind), low_cpu_mem_usage=True)
    layer = model.base_model.model.neuroada_neat_first
    assert all(parameter.is_meta for parameter in trained_parameters(layer, "second").values())
    assert not any(parameter.is_meta for parameter in trained_parameters(layer).values())
    if kind.exact:
        assert layer.neuroada_indices["second"].is_meta


def test_a_config_can_be_used_twice(base, kind):
    shared = config(kind)
    first, second = (get_peft_model(copy.deepcopy(base), shared) for _ in range(2))
    fill(first)
    assert same_bits(second(X), base(X))
    assert not torch.equal(first(X), base(X))


def test_loaded_for_training_or_for_inference(model, base, tmp_path, kind):
    model.save_pretrained(tmp_path)
    frozen = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert trainable(frozen) == set()
    assert frozen.peft_config["default"].inference_mode
    resumed = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True)
    assert trainable(resumed) == trainable(model)
    assert same_bits(resumed(X), model(X))
    assert same_bits(frozen(X), model(X))


def test_status_describes_the_adapters(base, kind):
    model = get_peft_model(base, config(kind))
    model.add_adapter("second", config(kind, **OPTIONAL[kind.prefix]))
    status = get_model_status(model)
    assert status.adapter_model_type == kind.model_class.__name__
    assert status.peft_types == {"default": kind.peft_type, "second": kind.peft_type}
    assert status.available_adapters == ["default", "second"]
    assert status.active_adapters == ["default"]
    (layer,) = get_layer_status(model)
    assert layer.requires_grad == {"default": True, "second": False}
    model.merge_adapter()
    assert get_model_status(model).merged_adapters == ["default"]


def test_wrapping_again_and_unloading_leaves_a_clean_model(model, base, kind):
    before = base_weights(model)
    bare = model.unload()
    assert changed(before, bare) == []
    assert not hasattr(bare, "peft_config")
    again = get_peft_model(bare, config(kind))
    assert same_bits(again(X), bare(X))


def test_all_adapters_are_described_by_repr(model, kind):
    model.add_adapter("second", config(kind))
    text = repr(model.base_model.model.neuroada_neat_first)
    assert text.startswith(f"neuroada.{kind.layer_class.__name__}")
    assert "default" in text
    assert "second" in text
