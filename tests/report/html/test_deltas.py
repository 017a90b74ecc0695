"""What NumPy reads of an adapter and of its base model is what PyTorch reads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from neuroada import NeuroAdaConfig
from neuroada.errors import AdapterFileError
from neuroada.layers import NeuroAdaLinear
from neuroada.report.html.deltas import TensorFile, Weight, columns, read_deltas


def adapt(model: nn.Module, folder: Path, **fields) -> PeftModel:
    """Save the model, and beside it an adapter with random deltas."""
    model.save_pretrained(folder / "base")
    model.name_or_path = str(folder / "base")
    adapted = get_peft_model(model, NeuroAdaConfig(**{"k": 2, "target_modules": "all-linear", **fields}))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "deltas" in name:
                parameter.copy_(torch.randn_like(parameter))
    adapted.save_pretrained(folder / "adapter")
    return adapted


def expected(adapted: PeftModel) -> tuple[torch.Tensor, torch.Tensor]:
    """|delta| and |delta| / |original| of all layers, by name."""
    layers = {name: layer for name, layer in adapted.named_modules() if isinstance(layer, NeuroAdaLinear)}
    supports = {name: layers[name].support(["default"]) for name in sorted(layers)}
    sizes = [support.deltas.detach().float().abs() for support in supports.values()]
    originals = [layers[name].originals(support, layers[name].stored_weight) for name, support in supports.items()]
    ratios = [size / original.float().abs() for size, original in zip(sizes, originals, strict=True)]
    return torch.cat([size.flatten() for size in sizes]), torch.cat([ratio.flatten() for ratio in ratios])


@pytest.mark.parametrize(
    "fields", [{}, {"delta_dtype": "bfloat16"}, {"coverage": 0.3}, {"k": None, "budget": 0.1}, {"selection": "random"}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_are_those_that_were_saved(make_tiny_llama, tmp_path, fields, dtype):
    adapted = adapt(make_tiny_llama().to(dtype), tmp_path, **fields)
    found = read_deltas(tmp_path / "adapter")
    sizes, ratios = expected(adapted)
    assert len(found.weights) == 14
    np.testing.assert_array_equal(found.sizes, sizes.numpy())
    np.testing.assert_allclose(found.ratios, ratios.numpy(), rtol=1e-6)
    assert found.base == str(tmp_path / "base")
    assert found.rms == pytest.approx(float(sizes.double().square().mean().sqrt()))
    first = found.weights[0]
    assert (first.name, first.layer) == ("model.layers.0.mlp.down_proj", 0)
    assert first.projection == "model.layers.*.mlp.down_proj"


def test_weights_stored_the_other_way_round_are_told_by_their_fingerprint(tmp_path):
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 32, "n_positions": 8}
    adapted = adapt(GPT2LMHeadModel(GPT2Config(**sizes)), tmp_path, target_modules=["c_attn", "c_proj", "c_fc"])
    found = read_deltas(tmp_path / "adapter")
    assert [weight.ratio is not None for weight in found.weights] == [True] * 4
    np.testing.assert_allclose(found.ratios, expected(adapted)[1].numpy(), rtol=1e-6)


def test_a_trained_adapter_is_read_with_its_base(trained, tiny_model_dir):
    found = read_deltas(trained["neuroada"] / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
    sizes, _ = expected(PeftModel.from_pretrained(base, trained["neuroada"] / "adapter"))
    np.testing.assert_array_equal(found.sizes, sizes.numpy())
    assert found.base == str(tiny_model_dir)
    assert all(weight.ratio > 0 for weight in found.weights)


def test_other_base_weights_are_not_taken(make_tiny_llama, tmp_path):
    adapt(make_tiny_llama(), tmp_path)
    make_tiny_llama(seed=1, initializer_range=0.1).save_pretrained(tmp_path / "base")
    found = read_deltas(tmp_path / "adapter")
    assert (found.base, len(found.ratios), found.weights[0].ratio) == ("", 0, None)


@pytest.mark.parametrize("change", ["gone", "damaged", "no name", "hub id"])
def test_without_base_weights_only_sizes_are_known(make_tiny_llama, tmp_path, change):
    adapt(make_tiny_llama(), tmp_path)
    config = tmp_path / "adapter" / "adapter_config.json"
    if change == "damaged":
        (tmp_path / "base" / "model.safetensors").write_bytes(b"no tensors")
    elif change == "gone":
        shutil.rmtree(tmp_path / "base")
    else:
        name = None if change == "no name" else "nobody/no-such-model"
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": name}))
    found = read_deltas(tmp_path / "adapter")
    assert found.base == ""
    assert len(found.sizes) > 0


def test_shards_are_read_together(make_tiny_llama, tmp_path):
    adapt(make_tiny_llama(), tmp_path)
    whole = tmp_path / "base" / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    for number in range(2):
        part = {name: tensor.clone() for place, (name, tensor) in enumerate(tensors.items()) if place % 2 == number}
        save_file(part, tmp_path / "base" / f"model-{number}.safetensors")
    assert all(weight.ratio is not None for weight in read_deltas(tmp_path / "adapter").weights)


def test_what_is_no_adapter_of_ours_has_no_deltas(trained, tmp_path):
    assert read_deltas(trained["lora"] / "adapter") is None
    assert read_deltas(tmp_path) is None


@pytest.mark.parametrize(
    "content", [b"", b"1234567", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x09" + bytes(7) + b'{"a":[1]}']
)
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(AdapterFileError, match=r"tensors in .*adapter_model.safetensors: the file is damaged"):
        read_deltas(tmp_path)


def test_a_file_that_is_cut_short_is_named(make_tiny_llama, tmp_path):
    adapt(make_tiny_llama(), tmp_path)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterFileError, match=r"the file is damaged"):
        read_deltas(tmp_path / "adapter")


def test_indices_that_do_not_fit_are_named(make_tiny_llama, tmp_path):
    adapt(make_tiny_llama(), tmp_path)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("indices"))
    save_file({**tensors, name: tensors[name][:-1].clone()}, path)
    with pytest.raises(AdapterFileError, match=r"has deltas of shape \[.*\] that its indices or neurons do not fit"):
        read_deltas(tmp_path / "adapter")


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
)
def test_every_type_is_read_as_pytorch_reads_it(tmp_path, dtype):
    values = torch.tensor([[0, 1, 2], [3, 100, 255]]).to(dtype)
    save_file({"odd": torch.zeros(3, dtype=torch.uint8), "values": values}, tmp_path / "file.safetensors")
    file = TensorFile(tmp_path / "file.safetensors")
    assert file.shape("values") == (2, 3)
    np.testing.assert_array_equal(file.read("values"), values.double().numpy())
    np.testing.assert_array_equal(file.read("values", np.array([5, 0])), values.double().numpy().flatten()[[5, 0]])


def test_projections_are_called_by_their_shortest_own_name_in_a_blocks_order():
    def labels(*names: str) -> list[str]:
        return list(columns([Weight(name, 0, name, 1, 1.0, 1.0, None) for name in names]).values())

    llama = [f"model.layers.*.{name}" for name in ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")]
    llama += [f"model.layers.*.self_attn.{name}_proj" for name in "koqv"]
    assert labels(*llama) == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    bert = (
        "attention.output.dense",
        "attention.self.key",
        "attention.self.query",
        "intermediate.dense",
        "output.dense",
    )
    assert labels(*(f"layer.*.{name}" for name in bert)) == [
        *("query", "key", "attention.output.dense", "intermediate.dense", "output.dense")
    ]
    assert labels("encoder.*.q", "decoder.*.q") == ["decoder.*.q", "encoder.*.q"]
