"""Drop and grow while training: exact, and as if what is kept had never been touched."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from neuroada import NeuroAdaConfig, NeuroAdaLinear, held, regrow
from neuroada.ops.sparse_delta import is_held
from neuroada.selection import kept_entries
from specimens import base_weights, changed, logits, same_bits, tiny, token_ids

from .regrowing import OPTIMISERS, adapted, adapter, batches, layers_of, same, step


def by_entry(layer: NeuroAdaLinear, values: Tensor) -> dict[tuple[int, int], Tensor]:
    """Values [N, K] by (row, input)."""
    indices = layer.neuroada_indices["default"].tolist()
    return {(row, i): values[row, j].clone() for row, each in enumerate(indices) for j, i in enumerate(each)}


CASES = {
    "llama": ("llama", torch.float32, {}),
    "bfloat16": ("llama", torch.bfloat16, {"delta_dtype": "bfloat16"}),
    "transposed": ("gpt2", torch.bfloat16, {}),
    "half of the neurons": ("llama", torch.float32, {"coverage": 0.5, "k": 1}),
    "transient": ("llama", torch.bfloat16, {"mode": "transient"}),
}


@pytest.mark.parametrize("inside", [held, nullcontext], ids=["held", "unheld"])
@pytest.mark.parametrize("case", CASES)
def test_training_with_it_is_exact(case, inside):
    """I2, I3 and I7."""
    family, dtype, config = CASES[case]
    model, optimiser = adapted(family, dtype, **config)
    before, start = base_weights(model), adapter(model)
    with inside(model):
        for _ in range(3):
            step(model, optimiser, 2)
            assert regrow(model, optimiser, batches()) > 0
            during = logits(model)
        step(model, optimiser)
        last = logits(model.eval())
    assert changed(before, model) == []
    assert not same(adapter(model)[::2], start[::2])
    for layer in layers_of(model):
        indices = layer.neuroada_indices["default"]
        assert indices.dtype == torch.int32
        assert (indices.diff(dim=1) > 0).all()
        assert 0 <= indices.min() <= indices.max() < layer.in_features
    after = logits(model)
    assert not same_bits(last, during)
    assert same_bits(after, last)
    with model.disable_adapter():
        assert same_bits(logits(model), logits(tiny(family).to(dtype)))
    model.merge_adapter()
    assert same_bits(logits(model), after)
    model.unmerge_adapter()
    assert changed(before, model) == []
    assert same_bits(logits(model.merge_and_unload()), after)


def test_one_of_several_active_adapters_moves_alone():
    model, _ = adapted()
    model.add_adapter("other", NeuroAdaConfig(k=3, selection="random"))
    model.base_model.set_adapter(["default", "other"])
    before = base_weights(model)
    optimiser = OPTIMISERS["adamw"]([p for p in model.parameters() if p.requires_grad])
    with held(model):
        step(model, optimiser, 2)
        others = [layer.neuroada_indices["other"].clone() for layer in layers_of(model)]
        assert regrow(model, optimiser, batches(), adapter_name="default") > 0
        step(model, optimiser)
        inside = logits(model.eval())
    assert changed(before, model) == []
    assert same(others, [layer.neuroada_indices["other"] for layer in layers_of(model)])
    assert same_bits(logits(model), inside)
    assert same_bits(logits(model.merge_and_unload()), inside)


def test_held_supports_are_held_at_their_new_places_at_once(monkeypatch):
    trained = []
    for inside in (held, nullcontext):
        model, optimiser = adapted()
        with inside(model):
            step(model, optimiser)
            regrow(model, optimiser, batches(), drop_fraction=0.5)
            if inside is held:
                monkeypatch.setattr("neuroada.ops.sparse_delta.swap._lifted", None)
                assert all(is_held(layer.stored_weight) for layer in layers_of(model))
            step(model, optimiser)
            monkeypatch.undo()
        trained.append(adapter(model))
    assert same(*trained)


@pytest.mark.parametrize("inside", [held, nullcontext], ids=["held", "unheld"])
def test_what_grows_has_the_largest_gradient_at_the_trained_point(inside):
    model, optimiser = adapted()
    with inside(model):
        step(model, optimiser, 3)
        was = adapter(model)
        kept = [kept_entries(deltas, 0.5) for deltas in was[1::2]]
        regrow(model, optimiser, batches(), drop_fraction=0.5)
    now = adapter(model)
    twin, _ = adapted()
    for layer, indices, deltas in zip(layers_of(twin), was[::2], was[1::2], strict=True):
        layer.replace_indices("default", indices)
        layer.neuroada_deltas["default"].data = deltas
    plain = twin.merge_and_unload().eval().requires_grad_(True)
    for batch in batches():
        plain(**batch).loss.backward()
    for layer, stay, old, new in zip(layers_of(model), kept, was[::2], now[::2], strict=True):
        scores = plain.get_submodule(layer.name).weight.grad.abs()
        for row, chosen in enumerate(new.tolist()):
            staying = set(old[row][stay[row]].tolist())
            others = sorted(set(range(layer.in_features)) - staying, key=lambda i, row=row: -scores[row, i])
            assert set(chosen) == staying | set(others[: len(chosen) - len(staying)])


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_deltas_and_the_optimisers_state_go_along(kind):
    model, optimiser = adapted(optimiser=kind)
    step(model, optimiser, 2)
    before = [(layer, dict(optimiser.state[layer.neuroada_deltas["default"]])) for layer in layers_of(model)]
    before = [
        (layer, by_entry(layer, layer.neuroada_deltas["default"].detach()), state, {
            key: by_entry(layer, value) for key, value in state.items() if value.ndim == 2
        }, {key: value.clone() for key, value in state.items() if value.ndim == 0})
        for layer, state in before
    ]  # fmt: skip
    assert regrow(model, optimiser, batches(), drop_fraction=0.5) > 0
    new = 0
    for layer, deltas, _, states, scalars in before:
        state = optimiser.state[layer.neuroada_deltas["default"]]
        assert state.keys() == states.keys() | scalars.keys()
        assert states
        for old, values in [(deltas, layer.neuroada_deltas["default"].detach())] + [
            (states[key], state[key]) for key in states
        ]:
            for place, value in by_entry(layer, values).items():
                assert same_bits(value, old.get(place, torch.zeros_like(value)))
                new += place not in old
        assert all(same_bits(state[key], value) for key, value in scalars.items())
    assert new > 0


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_the_next_update_of_what_is_kept_is_what_it_would_have_been(kind):
    updated = []
    for regrows in (True, False):
        model, optimiser = adapted(optimiser=kind)
        step(model, optimiser, 2)
        if regrows:
            regrow(model, optimiser, batches())
        for number, layer in enumerate(layers_of(model)):
            dense = torch.randn(layer.out_features, layer.in_features, generator=torch.Generator().manual_seed(number))
            deltas = layer.neuroada_deltas["default"]
            deltas.grad = dense.gather(1, layer.neuroada_indices["default"].long())
        optimiser.step()
        updated.append([by_entry(layer, layer.neuroada_deltas["default"].detach()) for layer in layers_of(model)])
    for with_it, without in zip(*updated, strict=True):
        kept = with_it.keys() & without.keys()
        assert 0 < len(kept) < len(without)
        assert all(same_bits(with_it[place], without[place]) for place in kept)


def test_gradients_after_it_are_those_of_the_new_inputs():
    """Layers know by themselves which columns of their inputs to keep now."""
    model, optimiser = adapted(saved_input="columns", k=2)
    step(model, optimiser, 2)
    regrow(model, optimiser, batches(), drop_fraction=0.5)
    ids = token_ids()
    model.eval()(input_ids=ids, labels=ids).loss.backward()
    found = [layer.neuroada_deltas["default"].grad for layer in layers_of(model)]
    plain = copy.deepcopy(model).merge_and_unload().requires_grad_(True)
    plain(input_ids=ids, labels=ids).loss.backward()
    for layer, gradient in zip(layers_of(model), found, strict=True):
        dense = plain.get_submodule(layer.name).weight.grad
        torch.testing.assert_close(gradient, dense.gather(1, layer.neuroada_indices["default"].long()))


def test_gradients_that_are_accumulated_go_along():
    model, optimiser = adapted()
    step(model, optimiser)
    ids = token_ids()
    model(input_ids=ids, labels=ids).loss.backward()
    old = [by_entry(layer, layer.neuroada_deltas["default"].grad) for layer in layers_of(model)]
    regrow(model, optimiser, batches())
    for layer, before in zip(layers_of(model), old, strict=True):
        for place, value in by_entry(layer, layer.neuroada_deltas["default"].grad).items():
            assert same_bits(value, before.get(place, torch.zeros_like(value)))


def test_random_inputs_depend_on_the_seed_alone():
    found = []
    for seed in (1, 1, 2):
        model, optimiser = adapted()
        step(model, optimiser)
        regrow(model, optimiser, criterion="random", seed=seed)
        found.append(adapter(model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_inputs_that_were_dropped_and_score_best_stay_as_they_were():
    model, optimiser = adapted()
    step(model, optimiser)
    before = adapter(model)
    assert regrow(model, optimiser, criterion="magnitude", drop_fraction=1.0) == 0
    assert same(adapter(model), before)


def test_only_what_is_trained_moves():
    model, optimiser = adapted()
    frozen = layers_of(model)[0]
    step(model, optimiser)
    frozen.neuroada_deltas["default"].requires_grad_(False)
    before = adapter(model)
    regrow(model, optimiser, criterion="random")
    assert same(adapter(model)[:2], before[:2])
    assert not same(adapter(model)[2:], before[2:])
    assert not frozen.neuroada_deltas["default"].requires_grad
