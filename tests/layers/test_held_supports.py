"""held(model): new deltas and indices are followed inside, and the base weights stay exact."""

import pytest
import torch

from neuroada import held
from neuroada.ops.sparse_delta import holding, read
from neuroada.ops.sparse_delta.entries import shifted
from specimens import adapted, adapted_layers, base_weights, changed, logits, same_bits, tiny, token_ids


@pytest.mark.parametrize("coverage", [1.0, 0.5])
def test_a_step_inside_writes_each_delta_once_and_keeps_the_originals(coverage, monkeypatch):
    """Between steps nothing is taken out: the base weight goes from one sum to the next."""
    model = adapted(tiny("llama"), coverage=coverage)
    before = base_weights(model)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    released = []
    with held(model):
        monkeypatch.setattr(holding, "release", lambda weight: released.append(weight))
        for _ in range(3):
            model(input_ids=token_ids(), labels=token_ids()).loss.backward()
            optimiser.step()
            inside = logits(model)
            for layer in adapted_layers(model):
                support = layer.support(["default"])
                sums = shifted(layer.originals(support, layer.stored_weight), support.deltas)
                assert same_bits(read(layer.get_base_layer().weight, support), sums)
        monkeypatch.undo()
    assert not released
    assert same_bits(logits(model), inside)
    assert changed(before, model) == []


@pytest.mark.parametrize("steps", [0, 1])
def test_indices_loaded_inside_are_followed_and_the_base_is_exact(steps):
    model = adapted(tiny("llama"))
    before = base_weights(model)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    with held(model):
        with torch.no_grad():
            for layer in adapted_layers(model):
                indices = layer.neuroada_indices["default"]
                indices.copy_((indices + 1) % layer.in_features)
                layer.neuroada_deltas["default"].add_(0.1)
        for _ in range(steps):
            model(input_ids=token_ids(), labels=token_ids()).loss.backward()
            optimiser.step()
        inside = logits(model)
    assert changed(before, model) == []
    assert same_bits(logits(model), inside)
