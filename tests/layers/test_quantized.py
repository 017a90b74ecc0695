"""Quantised bases: trained through the dequantised weight, never merged into."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from neuroada import NeuroAdaConfig
from neuroada.errors import ConfigError, MergeError

bnb = pytest.importorskip("bitsandbytes")


def quantised(bits: int, model: nn.Module) -> nn.Module:
    """The model with its blocks' linear layers replaced by bitsandbytes ones of 4 or 8 bits."""
    for name, module in list(model.model.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        if bits == 4:
            layer = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
        else:
            layer = bnb.nn.Linear8bitLt(module.in_features, module.out_features, bias=False, has_fp16_weights=False)
        layer.load_state_dict(module.state_dict())
        parent, _, child = name.rpartition(".")
        setattr(model.model.get_submodule(parent), child, layer.to("cpu"))
    return model


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.arange(32).reshape(2, 16)


@pytest.mark.parametrize("bits", [4, 8])
def test_trains_saves_and_leaves_packed_weights_alone(bits, make_tiny_llama, ids, tmp_path):
    base = quantised(bits, make_tiny_llama().to(torch.bfloat16))
    packed = {name: value.clone() for name, value in base.state_dict().items() if isinstance(value, torch.Tensor)}
    model = get_peft_model(base, NeuroAdaConfig(k=2, target_modules=["q_proj", "down_proj"]))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(4):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    trained = model.eval()(ids).logits
    model.save_pretrained(tmp_path)
    unloaded = model.unload()
    after = unloaded.state_dict()
    assert all(torch.equal(after[name], value) for name, value in packed.items())
    assert torch.equal(PeftModel.from_pretrained(unloaded, tmp_path)(ids).logits, trained)


def test_merging_is_refused(make_tiny_llama, ids):
    model = get_peft_model(quantised(4, make_tiny_llama().to(torch.bfloat16)), NeuroAdaConfig())
    with pytest.raises(MergeError, match=r"q_proj: its weight is quantised \(bnb 4bit\).*Load the base model unquant"):
        model.merge_adapter()


def test_in_place_mode_is_refused_before_anything_is_changed(make_tiny_llama):
    base = quantised(8, make_tiny_llama().to(torch.bfloat16))
    modules = [type(module) for module in base.modules()]
    with pytest.raises(ConfigError, match="mode='inplace': the base weight is quantised"):
        get_peft_model(base, NeuroAdaConfig(mode="inplace"))
    assert [type(module) for module in base.modules()] == modules
