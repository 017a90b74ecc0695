"""What cannot be adapted is refused before anything is changed, with a message that names it and says what to do."""

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn
from torch.nn.utils import parametrizations
from transformers import BertForQuestionAnswering, BertForTokenClassification

from neuroada import NeuroAdaConfig
from neuroada.errors import ConfigError, MergeError, NeuroAdaError, TargetError, WeightError
from specimens import (
    KINDS,
    METHODS,
    Kind,
    adapted_layers,
    base_weights,
    changed,
    every_method,
    logits,
    same_bits,
    tiny,
    trained_parameters,
)


class Zoo(nn.Module):
    """One of each kind of layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.conv = nn.Conv2d(2, 3, 1)
        self.conv1 = nn.Conv1d(2, 3, 1)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm(4)
        self.bilinear = nn.Bilinear(4, 4, 3)
        self.patched = Doubled(4, 4)
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.linear = nn.Linear(4, 4)
        self.group = nn.Sequential(nn.Linear(4, 4), nn.ReLU())


class Doubled(nn.Linear):
    """A linear layer with a forward pass of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


def unchanged(model: nn.Module, before: dict, modules: list) -> bool:
    """Same module objects, same bits, same requires_grad, no trace of an adapter."""
    trainable = all(parameter.requires_grad for parameter in model.parameters())
    return (
        [*model.modules()] == modules
        and changed(before, model) == []
        and trainable
        and not hasattr(model, "peft_config")
    )


def refused(kind: Kind, model: nn.Module, error: type[Exception], match: str, **config) -> None:
    before, modules = base_weights(model), [*model.modules()]
    with pytest.raises(error, match=match) as caught:
        get_peft_model(model, kind.config(**config))
    assert isinstance(caught.value, NeuroAdaError)
    assert unchanged(model, before, modules)


@every_method
@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (["q_prj"], r"target_modules=\['q_prj'\]: no module .* Did you mean q_proj"),
        (["qproj", "down_poj"], r"Did you mean .*down_proj.*q_proj"),
        ("model.layers.0.q_proj", r"model\.layers\.0\.q_proj.*no module"),
        (["zzz"], r"Modules with a weight: .*down_proj.*lm_head.*q_proj"),
    ],
)
def test_names_that_match_nothing_list_near_ones(kind, asked, found):
    refused(kind, tiny("llama"), TargetError, found, target_modules=asked)


@every_method
@pytest.mark.parametrize("narrowing", [{"modules_to_save": ["lm_head"]}, {"exclude_modules": ["lm_head"]}], ids=str)
def test_near_names_are_listed_whatever_is_left_out_elsewhere(kind, narrowing):
    refused(kind, tiny("llama"), TargetError, "no module .* Did you mean q_proj", target_modules=["q_prj"], **narrowing)


@every_method
@pytest.mark.parametrize(
    ("config", "found"),
    [
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [7]},
            r"\[7\]: the model has no such layer as 7 .* targets are 0, 1",
        ),
        ({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, "nothing is left of .*q_proj"),
        ({"target_modules": r".*\.q_proj", "exclude_modules": ["q_proj"]}, "nothing is left of .*q_proj"),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "blocks"},
            "layers_pattern='blocks': nothing is left of .*q_proj",
        ),
        ({"target_modules": []}, r"target_modules=\[\]: no module"),
    ],
    ids=["layer", "all excluded", "pattern of names", "pattern of layers", "empty list"],
)
def test_selections_that_leave_nothing(kind, config, found):
    refused(kind, tiny("llama"), TargetError, found, **config)


@every_method
def test_no_match_is_what_peft_calls_it(kind):
    with pytest.raises(NoMatchingPeftModuleError):
        get_peft_model(tiny("llama"), kind.config(target_modules=["zzz"]))


@every_method
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("embed", r"torch\.nn\.modules\.sparse\.Embedding"),
        ("conv", r"torch\.nn\.modules\.conv\.Conv2d"),
        ("conv1", r"torch\.nn\.modules\.conv\.Conv1d"),
        ("attention", r"MultiheadAttention"),
        ("attention.out_proj", r"MultiheadAttention reads its weight directly"),
        ("norm", r"LayerNorm"),
        ("bilinear", r"Bilinear"),
        ("patched", r"Doubled"),
        ("normed", r"parametri"),
        ("group", r"torch\.nn\.modules\.container\.Sequential"),
    ],
)
def test_unsupported_layers_are_named_with_their_type(kind, name, found):
    message = rf"Adapting the module {name}: .*{found}.*Supported are torch\.nn\.Linear and transformers' Conv1D"
    refused(kind, Zoo(), TargetError, message, target_modules=["linear", name])


@every_method
def test_a_lazy_layer_has_no_weight_yet(kind):
    with pytest.raises(NeuroAdaError, match=r"(?i)lazy|uninitiali[sz]ed"):
        get_peft_model(nn.Sequential(nn.LazyLinear(4)), kind.config(target_modules=["0"]))


@every_method
@pytest.mark.parametrize(("inputs", "outputs"), [(0, 4), (4, 0)])
def test_a_layer_without_inputs_or_neurons(kind, inputs, outputs):
    model = nn.ModuleDict({"bare": nn.Linear(inputs, outputs)})
    refused(kind, model, TargetError, "Adapting the module bare", target_modules=["bare"])


@every_method
def test_a_forward_replaced_on_the_instance_is_refused(kind):
    """The adapter would pass it over."""
    model = Zoo()
    model.linear.forward = lambda x: x
    refused(kind, model, TargetError, "Adapting the module linear: .*forward", target_modules=["linear"])


@every_method
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_that_are_not_finite_are_named(kind, value, dtype):
    model = tiny("gpt2").to(dtype)
    model.transformer.h[1].mlp.c_proj.weight.data[3, 5] = value
    refused(kind, model, WeightError, r"transformer\.h\.1\.mlp\.c_proj: 1 of its 2304 weights are NaN or infinite")


@every_method
def test_a_bad_weight_that_is_not_a_target_does_not_matter(kind):
    model = tiny("llama")
    model.model.norm.weight.data[0] = torch.nan
    get_peft_model(model, kind.config())


def test_one_warning_names_all_weights_with_fewer_inputs_than_k():
    base = nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 3), nn.Linear(3, 9))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = get_peft_model(base, NeuroAdaConfig(k=3, target_modules=["0", "1", "2"]))
    about = [str(warning.message) for warning in caught if "inputs are used" in str(warning.message)]
    assert about == ["k=3 is more than these weights have inputs, so all of their inputs are used: 1 (2 inputs)"]
    assert model.base_model.model[1].neuroada_deltas["default"].shape == (3, 2)


@every_method
def test_merging_twice(kind):
    model = kind.adapted(tiny("llama"))
    model.merge_adapter()
    outputs, merged = logits(model), base_weights(model)
    for names in (None, ["default"]):
        with pytest.raises(MergeError, match=r"Merging default: merged already\. Call unmerge_adapter\(\) first"):
            model.merge_adapter(names)
    assert changed(merged, model) == []
    assert same_bits(logits(model.merge_and_unload()), outputs)


@every_method
def test_an_adapter_of_another_kind_in_the_way(kind):
    model = get_peft_model(tiny("llama"), LoraConfig(target_modules=["q_proj"]))
    want = logits(model)
    with pytest.raises(TargetError, match=r"self_attn\.q_proj.*adapter of another kind .*lora.*Merge or unload"):
        get_peft_model(copy.deepcopy(model.base_model.model), kind.config(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="different peft types"):
        model.add_adapter("second", kind.config(target_modules=["q_proj"]))
    assert same_bits(logits(model), want)


@every_method
def test_a_second_adapter_that_is_refused_leaves_no_trace(kind):
    model = kind.adapted(tiny("llama"))
    want, keys = logits(model), model.state_dict().keys()
    for config, error in (
        ({"target_modules": ["zzz"]}, TargetError),
        ({"target_modules": ["embed_tokens"]}, TargetError),
    ):
        with pytest.raises(error):
            model.add_adapter("second", kind.config(**config))
        assert list(model.peft_config) == ["default"]
        assert model.state_dict().keys() == keys
        assert same_bits(logits(model), want)
    model.add_adapter("second", kind.config(target_modules=["q_proj"]))


def test_inplace_where_it_cannot_work_is_refused_and_auto_finds_a_way():
    base = nn.Sequential(nn.Linear(4, 6, bias=False))
    base[0].weight = nn.Parameter(torch.arange(4.0).expand(6, 4), requires_grad=False)
    x = torch.ones(2, 4)
    want = base(x)
    model = get_peft_model(copy.deepcopy(base), NeuroAdaConfig(target_modules=["0"], mode="auto"))
    assert same_bits(model(x), want)
    with pytest.raises(ConfigError, match=r"mode='inplace': .* cannot be written in place\. Use mode='auto'"):
        get_peft_model(base, NeuroAdaConfig(target_modules=["0"], mode="inplace"))(x)


@pytest.mark.parametrize("kind", [*METHODS, *KINDS[1:]], ids=str)
def test_a_model_made_in_inference_mode(kind):
    with torch.inference_mode():
        base = nn.Sequential(nn.Linear(4, 6))
        want = base(torch.ones(2, 4))
    model = get_peft_model(base, kind.config(target_modules=["0"]))
    outputs = model(torch.ones(2, 4))
    assert same_bits(outputs, want)
    outputs.sum().backward()
    (layer,) = adapted_layers(model)
    assert all(parameter.grad is not None for parameter in trained_parameters(layer).values())


def adapted_names(model) -> set[str]:
    return {layer.name for layer in adapted_layers(model)}


@every_method
@pytest.mark.parametrize("asked", [None, "all-linear"])
@pytest.mark.parametrize("blocks", [2, 4])
def test_all_linear_keeps_to_the_layers_that_are_asked_for(kind, asked, blocks):
    """PEFT takes small models' layers by their whole names, and those wherever they are."""
    base = tiny("llama", num_hidden_layers=blocks)
    model = get_peft_model(base, kind.config(target_modules=asked, layers_to_transform=[1]))
    assert len(adapted_names(model)) == 7
    assert all(".layers.1." in name for name in adapted_names(model))
    found = r"layers_to_transform=\[7\]: no such layer has a linear module"
    refused(kind, tiny("llama", num_hidden_layers=blocks), TargetError, found, layers_to_transform=[7])


@every_method
@pytest.mark.parametrize("task", ["TOKEN_CLS", "QUESTION_ANS", None])
def test_all_linear_leaves_heads_to_modules_to_save(kind, task):
    models = {"TOKEN_CLS": BertForTokenClassification, "QUESTION_ANS": BertForQuestionAnswering}
    base = models.get(task, BertForTokenClassification)(tiny("bert").config)
    model = get_peft_model(base, kind.config(target_modules=None, task_type=task))
    assert not any("classifier" in name or "qa_outputs" in name for name in adapted_names(model))
    assert len(adapted_names(model)) == 12
    whole = {"classifier", "qa_outputs"} & set(model.peft_config["default"].modules_to_save or ())
    assert whole, "PEFT trains the head where it knows the task, and we where the class says it"


def test_a_slip_in_all_linear_is_noticed():
    refused(METHODS[0], tiny("llama"), TargetError, "Did you mean all-linear", target_modules="all_linear")
