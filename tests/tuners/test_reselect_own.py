"""Choosing inputs by a function of one's own, on models that return their loss as they like, and beside LoRA."""

import copy
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from neuroada import NeuroAdaConfig, regrow, reselect
from neuroada.errors import ConfigError, MergeError
from neuroada.selection import Criterion
from specimens import tiny

from .mixing import mixed, ours_alone, plain_weights, same_weights
from .regrowing import adapted, adapter, batches, layers_of, same, step

UNLABELLED = [{"input_ids": batch["input_ids"]} for batch in batches()]


@pytest.mark.parametrize("config", [{}, {"k": None, "budget": 0.1, "budget_scope": "model"}], ids=["k", "budget"])
def test_a_function_that_writes_to_what_it_is_given_changes_no_weight_and_no_later_score(config):
    def writing(rows: Tensor, statistics) -> Tensor:
        return rows.abs_().mul_(statistics.gradient.abs_()).mul_(statistics.inputs.sqrt_())

    def product(rows: Tensor, statistics) -> Tensor:
        return rows.abs() * statistics.gradient.abs() * statistics.inputs.sqrt()

    model, optimiser = adapted(**config)
    before = [layer.get_base_layer().weight.clone() for layer in layers_of(model)]
    reselect(model, batches(), writing, max_memory=1, progress=False)
    other, _ = adapted(**config)
    reselect(other, batches(), product, max_memory=1, progress=False)
    assert same(adapter(model), adapter(other))
    step(model, optimiser)
    regrow(model, optimiser, batches(), writing)
    after = [layer.get_base_layer().weight for layer in layers_of(model)]
    assert same(after, before)


def test_a_criterion_says_what_it_needs():
    wanda = Criterion(lambda rows, statistics: rows.abs() * statistics.inputs, frozenset({"inputs"}))
    model, named = adapted()[0], adapted()[0]
    with pytest.raises(ConfigError, match="it needs data, and no batch is given"):
        reselect(model, [], wanda, progress=False)
    reselect(model, UNLABELLED, wanda, progress=False)
    reselect(named, UNLABELLED, "wanda", progress=False)
    assert same(adapter(model), adapter(named))
    assert model.peft_config["default"].selection == "own"


class Returning(nn.Module):
    """Its loss in whatever `form` makes of it."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.form = nn.Linear(8, 4), form

    def forward(self, x: Tensor, labels: Tensor | None = None):
        y = self.linear(x)
        return self.form(None if labels is None else (y - labels).square().mean(), y)


FORMS = {
    "a named one": lambda loss, y: SimpleNamespace(loss=loss, logits=y),
    "a dict": lambda loss, y: {"loss": loss, "logits": y},
    "a tuple": lambda loss, y: (y,) if loss is None else (loss, y),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_found_where_trainer_finds_it(form):
    model = get_peft_model(Returning(FORMS[form]), NeuroAdaConfig(k=2, target_modules=["linear"]))
    x, labels = torch.randn(5, 8), torch.randn(5, 4)
    with pytest.raises(ConfigError, match=r"a batch gives no loss in the model's \w+. Put labels into it"):
        reselect(model, [{"x": x}], progress=False)
    reselect(model, [{"x": x, "labels": labels}], progress=False)
    (layer,) = layers_of(model)
    gradient = (layer(x) - labels).T @ x
    expected = gradient.abs().topk(2, dim=1).indices.sort(dim=1).values
    assert torch.equal(layer.neuroada_indices["default"].long(), expected)


def test_what_is_chosen_in_inference_mode_can_be_trained():
    model, optimiser = adapted()
    with torch.inference_mode():
        reselect(model, batches(), progress=False)
    step(model, optimiser)
    assert regrow(model, optimiser, batches(), drop_fraction=1.0) > 0


def test_random_deltas_may_wait_for_data():
    model, _ = adapted(selection="gradient", init_weights=False)
    deltas = adapter(model)[1::2]
    reselect(model, batches(), progress=False)
    assert same(adapter(model)[1::2], deltas)
    model(**batches()[0]).loss.backward()


def test_beside_lora_the_adapter_of_neuroada_is_meant():
    model, alone = mixed(tiny("llama"), trained=False), ours_alone(tiny("llama"))
    for layer in layers_of(alone):
        nn.init.zeros_(layer.neuroada_deltas["ours"])
    reselect(model, batches(), progress=False)
    reselect(alone, batches(), progress=False)
    chosen = [[layer.neuroada_indices["ours"] for layer in layers_of(each)] for each in (model, alone)]
    assert all(torch.equal(*pair) for pair in zip(*chosen, strict=True))


def test_a_weight_with_lora_in_it_is_refused():
    model = mixed(tiny("llama"))
    model.set_adapter("ours")
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model.set_adapter(["ours", "lora"])
    with torch.no_grad():
        for layer in layers_of(model):
            layer.neuroada_deltas["ours"].zero_()
    model.merge_adapter(adapter_names=["lora"])
    before = plain_weights(model)
    for choose in (lambda: reselect(model, [], "magnitude"), lambda: regrow(model, optimiser, [], "magnitude")):
        with pytest.raises(MergeError, match=r"lora, which is around .*_proj, is merged. Call unmerge_adapter"):
            choose()
    assert same_weights(plain_weights(model), before)


def test_a_model_that_peft_did_not_make_is_refused():
    model = copy.deepcopy(tiny("llama"))
    model.add_adapter(NeuroAdaConfig(k=1, target_modules="all-linear"))
    with pytest.raises(ConfigError, match=r"this LlamaForCausalLM is no PeftModel. Give what peft.get_peft_model"):
        reselect(model, batches(), progress=False)
