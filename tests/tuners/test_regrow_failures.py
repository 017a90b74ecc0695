"""Drop and grow while training: what an exception in the middle leaves, and what bad input is told."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from neuroada import NeuroAdaLinear, held, regrow
from neuroada.errors import ConfigError, MergeError, WeightError
from neuroada.ops.sparse_delta import HeldTogether
from specimens import base_weights, changed, logits, same_bits, token_ids

from .regrowing import adapted, adapter, batches, layers_of, same, step


def failing(times: int, error: type[BaseException], function):
    """The function, which fails at its n-th call."""
    calls = []

    def called(*arguments, **options):
        calls.append(1)
        if len(calls) == times:
            raise error("stopped")
        return function(*arguments, **options)

    return called


@pytest.mark.parametrize("inside", [held, nullcontext], ids=["held", "unheld"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", ["score", "write", "follow"])
def test_an_exception_in_the_middle_leaves_all_or_nothing_and_exact_weights(at, error, inside, monkeypatch):
    model, optimiser = adapted()
    before = base_weights(model)

    def interrupted() -> None:
        with inside(model):
            step(model, optimiser, 2)
            whole.extend(adapter(model))
            if at == "score":
                chosen = failing(3, error, NeuroAdaLinear.chosen_anew)
                monkeypatch.setattr(NeuroAdaLinear, "chosen_anew", lambda *given, **named: chosen(*given, **named))
            elif at == "write":
                copied = failing(8, error, Tensor.copy_)
                monkeypatch.setattr(Tensor, "copy_", lambda *given, **named: copied(*given, **named))
            elif inside is held:
                refresh = failing(1, error, HeldTogether.refresh)
                monkeypatch.setattr(HeldTogether, "refresh", lambda *given: refresh(*given))
            else:
                raise error("nothing follows")
            regrow(model, optimiser, batches())

    whole: list[Tensor] = []
    with pytest.raises(error):
        interrupted()
    monkeypatch.undo()
    assert changed(before, model) == []
    if at == "score" or (at == "follow" and inside is nullcontext):
        assert same(adapter(model), whole)
    else:
        twin, other = adapted()
        step(twin, other, 2)
        regrow(twin, other, batches())
        assert same(adapter(model), adapter(twin))
    outside = logits(model.eval())
    assert same_bits(logits(model.merge_and_unload()), outside)


def test_a_training_goes_on_inside_held_after_an_exception():
    model, optimiser = adapted()
    before = base_weights(model)
    with held(model):
        step(model, optimiser)
        with pytest.raises(WeightError, match="scores in a block of neurons are NaN"):
            regrow(model, optimiser, batches(), lambda weight, statistics: weight * float("nan"))
        step(model, optimiser)
        inside = logits(model.eval())
    assert changed(before, model) == []
    assert same_bits(logits(model), inside)


class Factored(Optimizer):
    """Keeps one value a row, as Adafactor does."""

    def __init__(self, parameters):
        super().__init__(parameters, {})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {"step": 1, "rows": torch.zeros(len(parameter))}


BAD = {
    "unknown": ({"criterion": "gradients"}, ConfigError, r"criterion='gradients': .*Did you mean 'gradient'\?"),
    "no data": ({"batches": ()}, ConfigError, "it needs data, and no batch is given"),
    "no labels": ({"batches": [{"input_ids": token_ids()}]}, ConfigError, "a batch gives no loss"),
    "nothing to learn": (
        {"batches": [{"input_ids": token_ids(), "labels": torch.full((2, 9), -100)}]},
        WeightError,
        "q_proj by gradients: the batches give it none",
    ),
    "a share": (
        {"drop_fraction": 1.5},
        ConfigError,
        "drop_fraction=1.5: it is not a share of something. Give a number",
    ),
    "no share": ({"drop_fraction": "half"}, ConfigError, "drop_fraction='half': it is not a share of something"),
    "no bytes": ({"max_memory": "1GB"}, ConfigError, "max_memory='1GB': no gradient fits into it. Give bytes"),
    "no adapter": ({"adapter_name": "other"}, ConfigError, "Regrowing inputs of adapter 'other': no layer has"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_and_changes_nothing(case):
    options, error, message = BAD[case]
    model, optimiser = adapted()
    step(model, optimiser)
    before = adapter(model)
    with pytest.raises(error, match=message):
        regrow(model, optimiser, **{"batches": batches()} | options)
    assert same(adapter(model), before)


def test_an_adapter_that_cannot_be_regrown():
    model, optimiser = adapted()
    deltas = [layer.neuroada_deltas["default"] for layer in layers_of(model)]
    with pytest.raises(ConfigError, match=r"SGD does not train the deltas of \S+q_proj. Give the optimiser that has"):
        regrow(model, SGD([nn.Parameter(torch.ones(1))], lr=1.0), batches())
    with pytest.raises(
        ConfigError, match=r"state of Factored: its 'rows' for deltas of shape \[24, 4\] is a Tensor of \[24\]"
    ):
        regrow(model, Factored(deltas), batches())
    with pytest.raises(ConfigError, match=r"Adafactor keeps sums of several deltas.*AdamW or SGD"):
        regrow(model, torch.optim.Adafactor(deltas), batches())
    model.merge_adapter()
    with pytest.raises(
        MergeError, match=r"Regrowing .*'default': deltas are merged into the weight of .*Unmerge first"
    ):
        regrow(model, optimiser, batches())
    model.unmerge_adapter()
    with model.disable_adapter(), pytest.raises(ConfigError, match="it is not active on"):
        regrow(model, optimiser, batches())
    layers_of(model)[1].neuroada_deltas["default"].device_mesh = "as of a DTensor"
    with pytest.raises(ConfigError, match="k_proj are sharded over processes, so that none has a whole neuron's"):
        regrow(model, optimiser, batches())
    for each in deltas:
        each.requires_grad_(False)
    with pytest.raises(ConfigError, match="none of its deltas is trained"):
        regrow(model, optimiser, batches())
