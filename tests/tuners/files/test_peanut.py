"""PEFT's PEANuT and NEAT on the output side are the same network: a saved adapter, converted, computes the same."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeanutConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neuroada import NeatConfig, convert_peanut
from neuroada.errors import AdapterFileError, ConfigError
from neuroada.ops.neat import Network
from specimens import adapted_layers, load_base, logits, same_bits, tiny, token_ids, trained_parameters

WEIGHTS = "adapter_model.safetensors"
TARGETS = ["q_proj", "down_proj"]
DEPTHS = [0, 1, 2, 3, 6]
"""PEANuT's; 2, 4, 6, 8 and 14 here."""


def peanut(base: nn.Module, depth: int, activation: str = "relu", **config) -> PeftModel:
    """A PEANuT model with values as after training."""
    settings = {"r": 3, "scaling": 0.5, "target_modules": TARGETS} | config
    model = get_peft_model(copy.deepcopy(base), PeanutConfig(depth=depth, act_fn=activation, **settings))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "peanut_" in name:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def saved(tmp_path):
    """Saves a model's adapter, converts it, and gives the folder."""

    def convert(model: PeftModel) -> Path:
        model.save_pretrained(tmp_path / "peanut")
        convert_peanut(tmp_path / "peanut", tmp_path / "neat")
        return tmp_path / "neat"

    return convert


def gradients_of_peanut(model: nn.Module) -> dict[str, Tensor]:
    """Of the loss, by layer and NEAT's name for what they are of, encoders and decoders in one; in float64."""
    model(token_ids(), labels=token_ids()).loss.backward()
    found = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "peanut_A"):
            hidden = [*layer.peanut_encoders["default"], *layer.peanut_decoders["default"]]
            found[f"{name}.neat_in"] = layer.peanut_A["default"].weight.grad
            found[f"{name}.neat_out"] = layer.peanut_B["default"].weight.grad
            if hidden:
                found[f"{name}.neat_hidden"] = torch.stack([each.weight.grad for each in hidden])
    return {name: gradient.double() for name, gradient in found.items()}


def gradients_of_neat(model: nn.Module) -> dict[str, Tensor]:
    model(token_ids(), labels=token_ids()).loss.backward()
    return {
        f"{name}.{kind}": parameter.grad.double()
        for name, layer in model.named_modules()
        if layer in adapted_layers(model)
        for kind, parameter in trained_parameters(layer).items()
    }


def error_of(found: Tensor, right: Tensor) -> float:
    return float((found - right).norm() / right.norm())


def require_equal(model: PeftModel, folder: Path, base: nn.Module) -> None:
    """Outputs, and gradients of each kind over all layers, have at most twice the error of PEANuT's against float64."""
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), folder, is_trainable=True).eval()
    exact = copy.deepcopy(model).double()
    outputs = logits(loaded).double(), logits(model).double(), logits(exact)
    ours, theirs, right = gradients_of_neat(loaded), gradients_of_peanut(model), gradients_of_peanut(exact)
    assert ours.keys() == theirs.keys()
    kinds: dict[str, list] = {"outputs": [outputs]}
    for name in ours:
        kinds.setdefault(name.rpartition(".")[2], []).append((ours[name], theirs[name], right[name]))
    for triples in kinds.values():
        allowed = 2 * sum(max(error_of(other, want), torch.finfo(torch.float32).eps) for _, other, want in triples)
        assert sum(error_of(mine, want) for mine, _, want in triples) <= allowed


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh", "leaky_relu", "silu", "mish"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_outputs_and_gradients_equal_those_of_peanut(depth, activation, saved):
    base = tiny("llama")
    model = peanut(base, depth, activation)
    require_equal(model, saved(model), base)


def _first_then_last(network: Network, product: Tensor, hidden: Tensor | None, right=Network.finish) -> Tensor:
    return right(network, product, None if hidden is None else hidden.flip(0))


def _without_residuals(network: Network, product: Tensor, hidden: Tensor | None) -> Tensor:
    state = network.activation(product)
    for layer in () if hidden is None else hidden:
        state = network.activation(state @ layer.T)
    return state


@pytest.mark.parametrize("fault", [_first_then_last, _without_residuals])
@pytest.mark.parametrize("depth", DEPTHS[1:])
def test_twin_with_a_network_of_another_shape_fails(fault, depth, saved, monkeypatch):
    base = tiny("llama")
    model = peanut(base, depth)
    folder = saved(model)
    monkeypatch.setattr(Network, "finish", fault)
    with pytest.raises(AssertionError):
        require_equal(model, folder, base)


def test_a_network_of_another_depth_than_the_configuration_says(tmp_path):
    peanut(tiny("llama"), 1).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"depth": 1', '"depth": 0'))
    with pytest.raises(AdapterFileError, match=r"it has a peanut_decoders.0 for .* or of another depth"):
        convert_peanut(tmp_path, tmp_path / "neat")
    assert not (tmp_path / "neat").exists()


def test_a_folder_without_an_adapter(tmp_path):
    with pytest.raises(AdapterFileError, match="no adapter is there"):
        convert_peanut(tmp_path, tmp_path / "neat")


def test_the_configuration_is_taken_over(saved, tmp_path):
    model = peanut(
        tiny("llama"), 2, "gelu", layers_to_transform=[1], exclude_modules=["lm_head"], task_type="CAUSAL_LM"
    )
    folder = saved(model)
    config = NeatConfig.from_pretrained(folder)
    assert (config.side, config.variant, config.depth, config.r) == ("output", "neat", 6, 3)
    assert (config.activation, config.scaling, config.dropout) == ("gelu", 0.5, 0.0)
    assert (config.target_modules, config.exclude_modules) == (set(TARGETS), {"lm_head"})
    assert (config.layers_to_transform, config.task_type, config.inference_mode) == ([1], "CAUSAL_LM", True)
    assert convert_peanut(tmp_path / "peanut", tmp_path / "again") == config


def test_heads_are_taken_over(saved):
    base = tiny("bert")
    config = {"target_modules": ["query"], "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}
    model = peanut(base, 1, **config)
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight.mul_(-3)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), saved(model))
    torch.testing.assert_close(logits(loaded), logits(model))
    assert not torch.allclose(logits(loaded), logits(base), atol=1e-2)


def test_a_converted_adapter_is_saved_loaded_and_merged_as_any_other(saved, tmp_path):
    tiny("llama").save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base")
    model = PeftModel.from_pretrained(base, saved(peanut(base, 1)))
    want = logits(model)
    model.save_pretrained(tmp_path / "saved")
    again = PeftModel.from_pretrained(load_base(tmp_path / "base"), tmp_path / "saved")
    assert same_bits(logits(again), want)
    with pytest.raises(AdapterFileError, match="the base weights it was trained on are not those"):
        PeftModel.from_pretrained(tiny("llama", seed=1), tmp_path / "saved")
    torch.testing.assert_close(logits(again.merge_and_unload()), want)


def test_an_adapter_of_another_kind_is_refused(tmp_path):
    get_peft_model(tiny("llama"), LoraConfig(target_modules=TARGETS)).save_pretrained(tmp_path / "lora")
    with pytest.raises(AdapterFileError, match=r"lora: it is a LORA adapter, not one of PEANuT"):
        convert_peanut(tmp_path / "lora", tmp_path / "neat")
    assert not (tmp_path / "neat").exists()


@pytest.mark.parametrize("part", ["A", "B", "encoders.1", "decoders.0"])
def test_an_incomplete_adapter_is_refused(part, tmp_path):
    peanut(tiny("llama"), 2).save_pretrained(tmp_path)
    entries = load_file(tmp_path / WEIGHTS)
    del entries[f"base_model.model.model.layers.1.mlp.down_proj.peanut_{part}.weight"]
    save_file(entries, tmp_path / WEIGHTS)
    message = rf"it has no peanut_{part} for model\.layers\.1\.mlp\.down_proj"
    with pytest.raises(AdapterFileError, match=message):
        convert_peanut(tmp_path, tmp_path / "neat")


def test_a_damaged_file_and_a_pickle_are_refused(tmp_path):
    peanut(tiny("llama"), 0).save_pretrained(tmp_path)
    raw = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(raw[:-1])
    with pytest.raises(AdapterFileError, match="damaged or cut short"):
        convert_peanut(tmp_path, tmp_path / "neat")
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / "adapter_model.bin").write_bytes(raw)
    with pytest.raises(AdapterFileError, match="is a pickle"):
        convert_peanut(tmp_path, tmp_path / "neat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: None, r"adapter_config.json cannot be read \(FileNotFoundError"),
        (lambda config: config[:-9], r"adapter_config.json cannot be read \(JSONDecodeError"),
        (lambda config: "[]", r"adapter_config.json cannot be read"),
        (lambda config: config.replace('"peft_type"', '"kind"'), r"adapter_config.json cannot be read \(KeyError"),
        (lambda config: config.replace('"PEANUT"', '"WALNUT"'), r"it is a WALNUT adapter, not one of PEANuT"),
        (lambda config: config.replace('"depth": 1', '"depth": "x"'), r"adapter_config.json says what PEANuT does not"),
        (
            lambda config: config.replace('"relu"', '"rulu"'),
            r"adapter_config.json says what PEANuT does not know \(.*rulu",
        ),
        (
            lambda config: config.replace('"r": 3', '"r": 4'),
            r"peanut_A of .* has shape \[3, 24\], and r=4 gives \[4,",
        ),
    ],
    ids=["missing", "cut short", "no mapping", "no kind", "unknown kind", "depth", "activation", "rank"],
)
def test_a_configuration_that_is_none_of_peanut_is_refused(change, message, tmp_path):
    peanut(tiny("llama"), 1).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    content = change(path.read_text())
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(AdapterFileError, match=message):
        convert_peanut(tmp_path, tmp_path / "neat")
    assert not (tmp_path / "neat").exists()


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("encoders.0", lambda tensor: tensor[:2], r"peanut_encoders.0 of .*down_proj has shape \[2, 3\]"),
        ("B", lambda tensor: tensor.T.contiguous(), r"peanut_. of .*down_proj has shape"),
        ("A", lambda tensor: tensor / 0, r"some entries of peanut_A of .*down_proj are not finite numbers"),
    ],
)
def test_layers_of_another_shape_or_without_numbers_are_refused(part, change, message, tmp_path):
    peanut(tiny("llama"), 1).save_pretrained(tmp_path)
    entries = load_file(tmp_path / WEIGHTS)
    key = f"base_model.model.model.layers.1.mlp.down_proj.peanut_{part}.weight"
    save_file(entries | {key: change(entries[key])}, tmp_path / WEIGHTS)
    with pytest.raises(AdapterFileError, match=message):
        convert_peanut(tmp_path, tmp_path / "neat")


def test_an_activation_with_weights_of_its_own_is_refused(tmp_path):
    peanut(tiny("llama"), 0, "prelu").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"activation='prelu': not a known value. Did you mean 'relu'"):
        convert_peanut(tmp_path, tmp_path / "neat")


def test_nothing_is_overwritten(saved, tmp_path):
    model = peanut(tiny("llama"), 0)
    folder = saved(model)
    before = (folder / WEIGHTS).read_bytes()
    with pytest.raises(AdapterFileError, match=r"adapter_config\.json exists there already"):
        convert_peanut(tmp_path / "peanut", folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterFileError, match=r"adapter_model\.safetensors exists there already"):
        convert_peanut(tmp_path / "peanut", folder)
    assert (folder / WEIGHTS).read_bytes() == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AdapterFileError, match=r"file: it is not a folder"):
        convert_peanut(tmp_path / "peanut", tmp_path / "file")


def test_a_low_precision_adapter_is_converted_to_float32(saved):
    model = peanut(tiny("llama").bfloat16(), 1).bfloat16()
    entries = load_file(saved(model) / WEIGHTS)
    assert {tensor.dtype for name, tensor in entries.items() if name.split(".")[-1].startswith("neat_")} == {
        torch.float32,
        torch.uint8,
    }
