"""What PEFT and Transformers expect of a method on a language model."""

import pytest
import torch
from peft import get_peft_model_state_dict

from neuroada.errors import NeuroAdaError
from specimens import METHODS, base_weights, changed, fill, logits, same_bits, tiny, token_ids

pytestmark = pytest.mark.parametrize("kind", METHODS, ids=str)


def test_an_adapter_named_like_a_module(tmp_path, kind):
    model = kind.adapted(tiny("llama"))
    want = get_peft_model_state_dict(model)
    model.add_adapter("mlp", kind.config())
    try:
        found = get_peft_model_state_dict(model)
    except NeuroAdaError:
        return
    assert found.keys() == want.keys()
    assert all(same_bits(found[key], want[key]) for key in want)


def test_mixed_batches_are_refused(kind):
    model = kind.adapted(tiny("llama"))
    model.add_adapter("second", kind.config())
    with pytest.raises(NeuroAdaError, match="adapter_names"):
        model(token_ids(), adapter_names=["default", "second"])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_transformers_own_adapter_methods(family, tmp_path, kind):
    """PreTrainedModel.add_adapter and friends inject without a PeftModel."""
    model = tiny(family)
    want, before = logits(model), base_weights(model)
    model.add_adapter(kind.config(target_modules="all-linear"), adapter_name="mine")
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
