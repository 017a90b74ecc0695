"""Mixed models: merging and undoing it, switching, disabling and deleting, and the order in which one may merge."""

import copy

import pytest
import torch

from neuroada.errors import MergeError
from specimens import METHODS, adapted_layers, every_method, logits, same_bits, tiny

from .mixing import NEUROADA, both_orders, lora_on, mixed, ours_alone, plain_weights, same_weights, two_dtypes


@every_method
@both_orders
def test_switching_and_disabling(kind, order):
    base = tiny("llama")
    model = mixed(base, kind, order)
    both, before = logits(model), plain_weights(model)
    with model.disable_adapter():
        assert same_bits(logits(model), logits(base))
    assert same_bits(logits(model), both)
    model.set_adapter("ours")
    assert same_bits(logits(model), logits(ours_alone(base, kind)))
    model.set_adapter("lora")
    assert same_bits(logits(model), logits(lora_on(base)))
    model.set_adapter(["ours", "lora"])
    assert same_bits(logits(model), both)
    assert same_weights(plain_weights(model), before)


@every_method
@both_orders
def test_deleting_one_leaves_the_other(kind, order):
    base = tiny("llama")
    model = mixed(base, kind, order)
    model.delete_adapter("lora")
    assert same_bits(logits(model), logits(ours_alone(base, kind)))
    model = mixed(base, kind, order)
    model.delete_adapter("ours")
    assert same_bits(logits(model), logits(lora_on(base)))


@every_method
@both_orders
@two_dtypes
def test_merged_in_place_and_unmerged(kind, order, dtype):
    """LoRA's own undo rounds; of ours not a bit is left, and NEAT's, which keeps the whole weight, heals LoRA's."""
    base = tiny("llama").to(dtype)
    model = mixed(base, kind, order)
    before = plain_weights(model)
    expected = logits(copy.deepcopy(model).merge_and_unload())
    model.merge_adapter()
    assert same_bits(logits(model), expected)
    model.unmerge_adapter()
    after = plain_weights(model)
    if kind is not NEUROADA:
        assert same_weights(after, before)
        return
    changed = 0
    for layer in adapted_layers(model):
        name = f"{layer.name}.weight"
        indices = layer.neuroada_indices["ours"].long()
        assert same_bits(after[name].gather(1, indices), before[name].gather(1, indices))
        changed += int((after[name] != before[name]).sum())
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=4 * torch.finfo(dtype).eps)
    assert changed > 0, "or this test would not need to be so patient"


@every_method
@both_orders
def test_as_long_as_lora_is_not_merged_the_undo_is_exact(kind, order):
    model = mixed(tiny("llama"), kind, order)
    both, before = logits(model), plain_weights(model)
    model.merge_adapter(["ours"])
    assert not same_weights(plain_weights(model), before)
    model.unmerge_adapter()
    assert same_weights(plain_weights(model), before)
    assert same_bits(logits(model), both)
    model.merge_adapter(["ours"])
    assert same_weights(plain_weights(model.unload()), before)


@both_orders
def test_disabling_or_switching_while_merged_unmerges(order):
    base = tiny("llama")
    for leave in ("disable", "switch"):
        model = mixed(base, order=order)
        model.merge_adapter()
        if leave == "disable":
            with model.disable_adapter():
                torch.testing.assert_close(logits(model), logits(base), rtol=1e-4, atol=1e-5)
        else:
            with pytest.warns(UserWarning, match="Unmerging the model first"):
                model.set_adapter("ours")
            torch.testing.assert_close(logits(model), logits(ours_alone(base)), rtol=1e-4, atol=1e-5)
        assert not any(layer.merged for layer in adapted_layers(model))


def test_ours_then_lora_may_be_merged_one_after_the_other_but_not_the_other_way():
    model = mixed(tiny("llama"))
    expected = plain_weights(copy.deepcopy(model).merge_and_unload())
    model.merge_adapter(["ours"])
    model.merge_adapter(["lora"])
    assert same_weights(plain_weights(copy.deepcopy(model).merge_and_unload()), expected)
    model = mixed(tiny("llama"))
    model.merge_adapter(["lora"])
    merged = plain_weights(model)
    message = (
        r"Merging ours into \S+q_proj: lora, which is around it, is merged already\. Call unmerge_adapter\(\) first"
    )
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError, match=message):
            merge()
    assert same_weights(plain_weights(model), merged)


@every_method
@both_orders
def test_lora_is_merged_alone_only_around_what_does_not_read_the_weight(kind, order):
    model = mixed(tiny("llama"), kind, order)
    both, before = logits(model), plain_weights(model)
    if kind is NEUROADA:
        model.merge_adapter(["lora"])
        torch.testing.assert_close(logits(model), both, rtol=1e-4, atol=1e-5)
        return
    found = r"Merging lora around \S+q_proj: ours, inside it, reads the pretrained weight.* Merge both together"
    with pytest.raises(MergeError, match=found):
        model.merge_adapter(["lora"])
    assert same_weights(plain_weights(model), before)
    assert same_bits(logits(model), both)
    model.set_adapter(["lora"])
    alone = logits(model)
    model.merge_adapter(["lora"])
    torch.testing.assert_close(logits(model), alone, rtol=1e-4, atol=1e-5)


def test_a_network_beside_the_weight_lets_lora_be_merged():
    model = mixed(tiny("llama"), METHODS[1], variant="nonlinear_lora")
    both = logits(model)
    model.merge_adapter(["lora"])
    torch.testing.assert_close(logits(model), both, rtol=1e-4, atol=1e-5)


def test_a_weight_that_someone_else_wrote_to_is_still_noticed():
    model = mixed(tiny("llama"))
    model.merge_adapter()
    layer = adapted_layers(model)[0]
    with torch.no_grad():
        layer.stored_weight.add_(0.01)
    with pytest.raises(MergeError, match="the base weight was written to while the adapter was merged"):
        model.unmerge_adapter()
