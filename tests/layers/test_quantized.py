"""Quantised bases: trained through the dequantised weight, never merged into."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from neuroada import NeuroAdaConfig, regrow
from neuroada.errors import ConfigError, MergeError
from neuroada.ops.neat import delta_weight
from specimens import NEAT_KINDS, adapted_layers, every_method, fill, same_bits, trained_parameters

bnb = pytest.importorskip("bitsandbytes")


def quantised(bits: int, model: nn.Module, packs_anew: bool = False) -> nn.Module:
    """The model with its blocks' linear layers replaced by bitsandbytes ones of 4 or 8 bits.

    packs_anew: leave it to bitsandbytes to give 4-bit weights another layout on CPUs with bfloat16 instructions. That
    rounds the weights' scales, and fails unless outputs are multiples of 32.
    """
    for name, module in list(model.model.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        if bits == 4:
            layer = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
        else:
            layer = bnb.nn.Linear8bitLt(module.in_features, module.out_features, bias=False, has_fp16_weights=False)
        if bits == 4 and not packs_anew:
            layer.support_avx512bf16_for_cpu = False
        layer.load_state_dict(module.state_dict())
        parent, _, child = name.rpartition(".")
        setattr(model.model.get_submodule(parent), child, layer.to("cpu"))
    return model


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.arange(32).reshape(2, 16)


@every_method
@pytest.mark.parametrize("bits", [4, 8])
def test_trains_saves_and_leaves_packed_weights_alone(bits, kind, make_tiny_llama, ids, tmp_path):
    base = quantised(bits, make_tiny_llama().to(torch.bfloat16))
    packed = {name: value.clone() for name, value in base.state_dict().items() if isinstance(value, torch.Tensor)}
    model = get_peft_model(base, kind.config(target_modules=["q_proj", "down_proj"]))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(4):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    if kind.prefix == "neuroada_":
        assert regrow(model, optimiser, [{"input_ids": ids, "labels": ids}]) > 0

    trained = model.eval()(ids).logits
    model.save_pretrained(tmp_path)
    unloaded = model.unload()
    after = unloaded.state_dict()
    assert all(torch.equal(after[name], value) for name, value in packed.items())
    assert torch.equal(PeftModel.from_pretrained(unloaded, tmp_path)(ids).logits, trained)


@every_method
@pytest.mark.parametrize("evaluated_before", [False, True])
def test_a_4_bit_weight_is_read_alike_however_often_the_base_was_evaluated(
    kind, evaluated_before, make_tiny_llama, ids
):
    """Left to bitsandbytes, the layer would be read otherwise once evaluated, on CPUs with bfloat16 instructions."""
    tiny = make_tiny_llama(hidden_size=64, intermediate_size=128, num_key_value_heads=4)
    base = quantised(4, tiny.to(torch.bfloat16), packs_anew=True).eval()
    layers = [module for module in base.modules() if isinstance(module, bnb.nn.Linear4bit)]
    weights = [dequantize_module_weight(layer).clone() for layer in layers]
    if evaluated_before:
        with torch.no_grad():
            base(ids)
    model = get_peft_model(base, kind.config()).eval()
    fill(model)
    with torch.no_grad():
        before = model(ids).logits
        with model.disable_adapter():
            model(ids)
        assert same_bits(model(ids).logits, before)
    rounding = 2.0**-7 if evaluated_before else 0.0
    for layer, weight in zip(adapted_layers(model), weights, strict=True):
        read = dequantize_module_weight(layer.get_base_layer())
        assert torch.allclose(read, weight, rtol=rounding, atol=rounding * weight.abs().max().item())


@every_method
def test_merging_is_refused(kind, make_tiny_llama, ids):
    model = get_peft_model(quantised(4, make_tiny_llama().to(torch.bfloat16)), kind.config())
    with pytest.raises(MergeError, match=r"q_proj: its weight is quantised \(bnb 4bit\).*Load the base model unquant"):
        model.merge_adapter()


def test_in_place_mode_is_refused_before_anything_is_changed(make_tiny_llama):
    base = quantised(8, make_tiny_llama().to(torch.bfloat16))
    modules = [type(module) for module in base.modules()]
    with pytest.raises(ConfigError, match="mode='inplace': the base weight is quantised"):
        get_peft_model(base, NeuroAdaConfig(mode="inplace"))
    assert [type(module) for module in base.modules()] == modules


@pytest.mark.parametrize("kind", NEAT_KINDS, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_neat_reads_the_dequantised_weight_and_keeps_the_layer_s_own_product(bits, kind, make_tiny_llama):
    base = quantised(bits, make_tiny_llama(num_hidden_layers=1).to(torch.bfloat16))
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    plain = base.model.layers[0].self_attn.q_proj
    want = plain(x)
    layer = adapted_layers(get_peft_model(base, kind.config(target_modules=["q_proj"])))[0]
    assert same_bits(layer(x), want)
    fill(layer)
    output = layer(x)
    dense = delta_weight(layer.get_base_weight(), layer.theta("default"), layer.networks["default"])
    torch.testing.assert_close(output, want + x @ dense.to(x.dtype).T, rtol=2**-6, atol=2**-6)
    trained = [x, *trained_parameters(layer).values()]
    found = torch.autograd.grad(output.float().square().sum(), trained)
    expected = torch.autograd.grad((plain(x).float() + x.float() @ dense.float().T).square().sum(), trained)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.float() - theirs.float()).norm() <= 2**-5 * theirs.float().norm()
