"""What the configurations of all methods do alike: targets, round trips, and a look at the weights beside a file."""

import copy
import pickle
from dataclasses import fields

import pytest
import torch
from peft import PeftConfig, PeftType
from safetensors.torch import save_file

from neuroada import NeatConfig, NeuroAdaConfig
from neuroada.errors import AdapterFileError, ConfigError, NeuroAdaError
from specimens import Kind, every_method

REGEX_FOUND = "a regex already says which layers are meant"
REGEX_DO = "Put the layers into the regex, or give target_modules as a list of names"


def refusal(kind: Kind, **values) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        kind.config_class(**values)
    return caught.value


@every_method
@pytest.mark.parametrize(
    ("values", "found", "do"),
    [
        ({"layers_pattern": "layers", "target_modules": ".*proj", "layers_to_transform": [0]}, REGEX_FOUND, REGEX_DO),
        ({"layers_pattern": "layers", "target_modules": ".*proj"}, REGEX_FOUND, REGEX_DO),
        ({"layers_to_transform": 0, "target_modules": ".*proj"}, REGEX_FOUND, REGEX_DO),
        (
            {"layers_pattern": "layers", "target_modules": ["up"]},
            "the pattern has no layer index to apply to",
            "Set layers_to_transform too, or leave both out",
        ),
    ],
)
def test_contradictions_about_layers(kind, values, found, do):
    error = refusal(kind, **values)
    assert (error.found, error.do) == (found, do)
    assert any(error.asked.startswith(f"{name}={value!r} with") for name, value in values.items())


@every_method
@pytest.mark.parametrize(
    "values",
    [
        {"layers_to_transform": [0, 2], "target_modules": ["up"]},
        {"layers_to_transform": 1, "layers_pattern": "layers", "target_modules": "all-linear"},
        {"layers_to_transform": [1], "layers_pattern": ["layers", "h"]},
    ],
)
def test_layers_can_be_chosen_by_index(kind, values):
    assert kind.config_class(**values).layers_to_transform == values["layers_to_transform"]


@every_method
def test_errors_are_of_the_family_and_survive_pickling(kind):
    error = refusal(kind, **{kind.size: 0})
    assert isinstance(error, NeuroAdaError)
    assert isinstance(error, ValueError)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (ConfigError, str(error))
    assert (again.asked, again.found, again.do) == (f"{kind.size}=0", error.found, error.do)


@pytest.mark.parametrize(
    ("config_class", "some"),
    [
        (NeuroAdaConfig, {"k", "budget", "selection", "coverage", "seed", "mode", "delta_dtype", "target_modules"}),
        (NeatConfig, {"r", "scaling", "depth", "activation", "side", "dropout", "variant", "target_modules"}),
    ],
)
def test_every_field_explains_itself(config_class, some):
    own = {field.name for field in fields(config_class)} - {field.name for field in fields(PeftConfig)}
    assert some <= own
    assert all(field.metadata.get("help", "").endswith(".") for field in fields(config_class) if field.name in own)


TARGETS = [
    {"target_modules": r".*\.(up|down)_proj", "modules_to_save": ["score"], "exclude_modules": "lm_head"},
    {"target_modules": ["up"], "layers_to_transform": [0, 1], "layers_pattern": "layers"},
]
EXAMPLES = {
    NeuroAdaConfig: [
        {},
        {"k": 20, "target_modules": ["q_proj", "v_proj"], "exclude_modules": ["lm_head"]},
        {"budget": 0.0002, "selection": "random", "seed": 7},
        {"coverage": 0.25, "mode": "transient", "delta_dtype": "bfloat16", "init_weights": False, "verify_base": False},
        *TARGETS,
    ],
    NeatConfig: [
        {},
        {"r": 64, "scaling": 0.01, "dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
        {"depth": 6, "activation": "sine", "side": "output", "init_weights": False, "verify_base": False},
        {"variant": "nonlinear_lora", "activation": "gelu_new"},
        *TARGETS,
    ],
}


def saved_and_loaded(config: PeftConfig, folder) -> PeftConfig:
    config.save_pretrained(folder)
    return type(config).from_pretrained(folder)


@pytest.mark.parametrize(
    ("config_class", "values"),
    [(config_class, values) for config_class in EXAMPLES for values in EXAMPLES[config_class]],
)
@pytest.mark.parametrize(
    "again",
    [
        lambda config, _: copy.deepcopy(config),
        lambda config, _: copy.copy(config),
        lambda config, _: pickle.loads(pickle.dumps(config)),
        lambda config, _: type(config).from_peft_type(**config.to_dict()),
        saved_and_loaded,
        lambda config, folder: (config.save_pretrained(folder), PeftConfig.from_pretrained(folder))[1],
    ],
    ids=["deepcopy", "copy", "pickle", "dict", "saved", "saved-loaded-by-peft"],
)
def test_round_trip(config_class, values, again, tmp_path):
    config = config_class(**values)
    found = again(config, tmp_path)
    assert type(found) is config_class
    assert found == config
    assert found.peft_type is config.peft_type is PeftType(config_class.__name__.removesuffix("Config").upper())


@every_method
def test_what_only_says_how_to_run_can_be_given_when_loading(kind, tmp_path):
    kind.config().save_pretrained(tmp_path)
    assert not kind.config_class.from_pretrained(tmp_path, verify_base=False).verify_base
    assert getattr(kind.config_class.from_pretrained(tmp_path, **{kind.size: 7}), kind.size) == 2


def damaged(weights) -> None:
    save_file({"a": torch.zeros(64)}, weights)
    weights.write_bytes(weights.read_bytes()[:-17])


@every_method
@pytest.mark.parametrize(
    ("name", "spoil", "part"),
    [
        ("adapter_model.safetensors", damaged, "it is damaged or cut short"),
        ("adapter_model.safetensors", lambda path: path.write_bytes(b""), "it is damaged or cut short"),
        ("adapter_model.safetensors", lambda path: path.mkdir(), "it is damaged or cut short"),
        ("adapter_model.bin", lambda path: torch.save({}, path), "is a pickle, which can run code"),
    ],
    ids=["cut-short", "empty", "folder", "pickle"],
)
@pytest.mark.parametrize("subfolder", [None, "best"])
def test_weights_beside_a_saved_configuration_are_looked_at_first(kind, name, spoil, part, subfolder, tmp_path):
    folder = tmp_path / (subfolder or "")
    kind.config().save_pretrained(folder)
    assert kind.config_class.from_pretrained(str(tmp_path), subfolder=subfolder) == kind.config()
    spoil(folder / name)
    with pytest.raises(AdapterFileError, match=part) as caught:
        kind.config_class.from_pretrained(str(tmp_path), subfolder=subfolder)
    assert str(folder) in caught.value.asked


@pytest.mark.parametrize("config_class", EXAMPLES)
@pytest.mark.parametrize("name", ["verify_base", "init_weights"])
@pytest.mark.parametrize("value", ["no", None, 1])
def test_switches_are_true_or_false(config_class, name, value):
    with pytest.raises(ConfigError, match=rf"{name}={value!r}: it is neither True nor False"):
        config_class(**{name: value})
