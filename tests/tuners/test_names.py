"""Names that match nothing beside others that match, in every field that takes names, in Python and in recipes."""

import warnings

import pytest
from peft import PeftModel, TaskType, get_peft_model

from neuroada import NeuroAdaConfig
from neuroada.errors import ConfigError, TargetError
from neuroada.training.wrapping import apply_method
from specimens import METHODS, every_method, tiny

TOLD = {
    "target": ({"target_modules": ["q_proj", "v_porj"]}, r"target_modules: .* called 'v_porj' \(near: .*v_proj"),
    "targets": ({"target_modules": ["q_proj", "query", "value"]}, "target_modules: .* called 'query', 'value'"),
    "exclusion": ({"exclude_modules": ["k_porj"]}, r"exclude_modules: .* called 'k_porj' \(near: .*k_proj"),
    "exclusions": ({"exclude_modules": ["k_proj", "score"]}, "exclude_modules: .* called 'score'"),
}
"""PEFT accepts these, and there is a use for them: lists for several architectures."""

REFUSED = {
    "saved": (
        {"modules_to_save": ["lm_haed"]},
        r"modules_to_save=\['lm_haed'\]: .* called 'lm_haed' \(near: lm_head\)",
    ),
    "saved beside": ({"modules_to_save": ["lm_head", "norms"]}, r"called 'norms' \(near: .*norm"),
    "layer": (
        {"target_modules": ["q_proj"], "layers_to_transform": [1, 99]},
        r"layers_to_transform=\[1, 99\]: .* no such layer as 99 .* 0, 1",
    ),
    "layer below": (
        {"target_modules": ["q_proj"], "layers_to_transform": [0, -1]},
        r"layers_to_transform=\[0, -1\]: .* no such layer as -1",
    ),
    "only layer": (
        {"target_modules": ["q_proj"], "layers_to_transform": 2},
        r"layers_to_transform=2: .* no such layer as 2",
    ),
}


@every_method
@pytest.mark.parametrize("name", TOLD)
def test_it_is_told(kind, name):
    fields, message = TOLD[name]
    with pytest.warns(UserWarning, match=message):
        get_peft_model(tiny("llama"), kind.config(**fields))


@every_method
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(kind, name):
    fields, message = REFUSED[name]
    base = tiny("llama")
    modules = [type(module) for module in base.modules()]
    with pytest.raises(TargetError, match=message):
        get_peft_model(base, kind.config(**fields))
    assert [type(module) for module in base.modules()] == modules


@pytest.mark.parametrize("method", ["neuroada", "neat", "lora", "shira", "mask"])
@pytest.mark.parametrize("name", [name for name in REFUSED if "layer" not in name])
def test_recipes_refuse_it_whatever_the_method(method, name):
    fields, message = REFUSED[name]
    with pytest.raises(TargetError, match=message):
        apply_method(method, {"target_modules": ["q_proj"], **fields}, tiny("llama"), TaskType.CAUSAL_LM)


@pytest.mark.parametrize("pattern", ["q_porj", "layers.9.q_proj"])
def test_patterns_of_k_are_refused(pattern):
    with pytest.raises(ConfigError, match="k_pattern"):
        get_peft_model(tiny("llama"), NeuroAdaConfig(k_pattern={pattern: 4}))


def test_names_of_peft_itself_are_not_told():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        get_peft_model(tiny("bert"), NeuroAdaConfig(target_modules=["query"], task_type="SEQ_CLS"))


@every_method
def test_a_saved_configuration_is_trusted(kind, tmp_path):
    with pytest.warns(UserWarning, match="'query'"):
        model = get_peft_model(tiny("llama"), kind.config(target_modules=["q_proj", "query"]))
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        PeftModel.from_pretrained(tiny("llama"), tmp_path)


def test_all_linear_and_expressions_hold_no_names():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for targets in ("all-linear", r".*\.q_proj"):
            get_peft_model(tiny("llama"), NeuroAdaConfig(target_modules=targets))


def test_methods_of_this_library_are_all_tried():
    assert {kind.prefix for kind in METHODS} == {"neuroada_", "neat_"}
