"""Weights that several modules share: merging one of them is right for all, or refused with everything as before."""

import copy

import pytest
import torch
from torch import nn

from neuroada.errors import MergeError, TargetError
from specimens import base_weights, changed, every_kind, logits, same_bits, tiny


class SharedParameter(nn.Module):
    """Two linear layers that hold one Parameter."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


class SharedModule(nn.Module):
    """One linear layer under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x))


@pytest.fixture
def tied_head(kind):
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        return kind.adapted(tiny("llama", tie_word_embeddings=True), target_modules=["lm_head", "q_proj"])


@every_kind
def test_a_head_tied_to_the_embedding_is_merged_for_the_head_alone(tied_head, kind):
    before, trained, twin = base_weights(tied_head), logits(tied_head), copy.deepcopy(tied_head)
    try:
        merged = tied_head.merge_and_unload()
    except MergeError:
        assert changed(before, tied_head) == []
        assert same_bits(logits(tied_head), trained)
        return
    assert kind.models_agree(trained, logits(merged), twin)
    assert same_bits(merged.model.embed_tokens.weight, before["model.embed_tokens.weight"])


@every_kind
def test_a_head_tied_to_the_embedding_survives_merging_and_unmerging(tied_head, kind):
    before, trained, twin = base_weights(tied_head), logits(tied_head), copy.deepcopy(tied_head)
    try:
        tied_head.merge_adapter()
    except MergeError:
        pass
    else:
        assert kind.models_agree(trained, logits(tied_head), twin)
        tied_head.unmerge_adapter()
    assert changed(before, tied_head) == []
    assert same_bits(logits(tied_head), trained)
    base = tied_head.unload()
    assert base.lm_head.weight is base.model.embed_tokens.weight


@every_kind
@pytest.mark.parametrize("targets", [["first"], ["first", "second"]], ids=", ".join)
@pytest.mark.parametrize("shared", [SharedParameter, SharedModule])
def test_layers_that_share(shared, targets, kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        base, x = shared(), torch.randn(4, 6)
    try:
        model = kind.adapted(base, target_modules=targets)
    except TargetError:
        return
    before, trained, exact = base_weights(model), model(x), copy.deepcopy(model).double()
    try:
        model.merge_adapter()
    except MergeError:
        pass
    else:
        assert kind.agrees(trained, model(x), lambda: exact(x.double()))
        model.unmerge_adapter()
    assert changed(before, model) == []
    assert same_bits(model(x), trained)
