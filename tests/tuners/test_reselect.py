"""Choosing inputs by data: what the dense gradients would choose, with little of them held at a time."""

import copy
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from allocations import Allocations
from neuroada import NeuroAdaConfig, NeuroAdaLinear, held, reselect
from neuroada.errors import ConfigError, MergeError, WeightError
from neuroada.selection import CRITERIA, top_k
from specimens import logits, same_bits, tiny


def batches(vocabulary: int = 60, count: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    found = []
    for _ in range(count):
        ids = torch.randint(3, vocabulary, (2, 7), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, :2] = 0
        found.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return found


def adapted(base: nn.Module, **config):
    return get_peft_model(copy.deepcopy(base), NeuroAdaConfig(**{"k": 3, "target_modules": "all-linear"} | config))


def layers_of(model: nn.Module) -> dict[str, NeuroAdaLinear]:
    return {layer.name: layer for layer in model.modules() if isinstance(layer, NeuroAdaLinear)}


def indices_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.neuroada_indices["default"].clone() for name, layer in layers_of(model).items()}


def dense_gradients(base: nn.Module, names, given) -> dict[str, Tensor]:
    """Σ dL/dW of every weight, all at once."""
    model = copy.deepcopy(base).eval().requires_grad_(False)
    weights = {name: model.get_submodule(name).weight.requires_grad_() for name in names}
    for batch in given:
        model(**batch).loss.backward()
    return {name: weight.grad for name, weight in weights.items()}


@pytest.mark.parametrize("max_memory", [1, 20_000, 1 << 30], ids=["a layer each", "some", "all"])
def test_gradients_choose_what_dense_gradients_choose(max_memory):
    base = tiny("llama")
    model = adapted(base)
    reselect(model, batches(), "gradient", max_memory=max_memory, progress=False)
    found = indices_of(model)
    gradients = dense_gradients(base, found, batches())
    for name, indices in found.items():
        assert torch.equal(indices.long(), top_k(gradients[name].abs(), 3)), name
    assert model.peft_config["default"].selection == "gradient"


def test_covered_neurons_get_what_their_gradients_choose():
    base = tiny("llama")
    model = adapted(base, coverage=0.5)
    reselect(model, batches(), progress=False)
    gradients = dense_gradients(base, layers_of(model), batches())
    for name, layer in layers_of(model).items():
        rows = layer.neuroada_neurons["default"].long()
        assert torch.equal(layer.neuroada_indices["default"].long(), top_k(gradients[name][rows].abs(), 3))


def test_input_norms_leave_padding_out():
    base = tiny("llama")
    model = adapted(base)
    reselect(model, batches(), "wanda", progress=False)
    seen: dict[str, Tensor] = {}

    def hook(name, mask, module, args, output):
        squares = args[0][mask.bool()].square().sum(0)
        seen[name] = seen.get(name, 0) + squares

    plain = copy.deepcopy(base).eval()
    for batch in batches():
        handles = [
            plain.get_submodule(name).register_forward_hook(
                lambda *each, name=name, mask=batch["attention_mask"]: hook(name, mask, *each)
            )
            for name in layers_of(model)
        ]
        with torch.no_grad():
            plain(**batch)
        for handle in handles:
            handle.remove()
    for name, layer in layers_of(model).items():
        scores = plain.get_submodule(name).weight.abs() * seen[name].sqrt()
        assert torch.equal(layer.neuroada_indices["default"].long(), top_k(scores.detach(), 3)), name


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_chooses_distinct_inputs_and_changes_no_output(criterion):
    base = tiny("llama")
    model = adapted(base, k=5)
    before = logits(model)
    needed = batches() if CRITERIA[criterion].needs_data else ()
    reselect(model, needed, criterion, progress=False)
    again = adapted(base, k=5)
    reselect(again, needed, criterion, progress=False)
    for name, indices in indices_of(model).items():
        assert indices.dtype == torch.int32
        assert indices.shape[1] == min(5, layers_of(model)[name].in_features)
        assert (indices.diff(dim=1) > 0).all()
        assert torch.equal(indices, indices_of(again)[name])
    assert same_bits(logits(model), before)


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [("wanda", "wanda"), ("low_rank", "gradient"), ("magnitude_gradient", "magnitude_gradient")],
)
def test_the_configuration_says_the_criterion_where_none_is_given(selection, chosen):
    model, named = adapted(tiny("llama"), selection=selection), adapted(tiny("llama"))
    reselect(model, batches(), progress=False)
    reselect(named, batches(), chosen, progress=False)
    assert model.peft_config["default"].selection == chosen
    assert all(torch.equal(indices_of(named)[name], each) for name, each in indices_of(model).items())


def test_a_function_is_given_again():
    model = adapted(tiny("llama"), selection="own")
    with pytest.raises(ConfigError, match=r"anew: its selection is a function, and none is given. Give criterion="):
        reselect(model, batches(), progress=False)


def test_ones_own_criterion():
    base, seen = tiny("llama"), []

    def last(weight, statistics):
        seen.append((statistics.gradient is not None, statistics.inputs is not None))
        return torch.arange(weight.shape[1]).expand(weight.shape).float()

    model = adapted(base, selection="own").train()
    with pytest.raises(ConfigError, match=r"Training with selection='own'.*wait for the function to choose them by"):
        model(**batches()[0])
    reselect(model, batches(), last, progress=False)
    assert set(seen) == {(True, True)}
    for name, indices in indices_of(model).items():
        width = layers_of(model)[name].in_features
        assert indices.unique().tolist() == [width - 3, width - 2, width - 1]


def test_a_function_is_not_saved_as_a_criterion(tmp_path):
    base = tiny("llama")
    model = adapted(base, selection="gradient")
    reselect(model, criterion=lambda weight, statistics: weight, progress=False)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True).train()
    assert loaded.peft_config["default"].selection == "own"
    loaded(**batches()[0]).loss.backward()
    assert all(torch.equal(indices_of(loaded)[name], each) for name, each in indices_of(model).items())


@pytest.mark.parametrize("selection", ["gradient", "own"])
def test_an_adapter_without_its_inputs_is_not_saved(tmp_path, selection):
    model = adapted(tiny("llama"), selection=selection)
    with pytest.raises(ConfigError, match=f"Saving an adapter with selection='{selection}'.*Call neuroada.reselect"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("adapter_*"))


def test_an_optimiser_made_before_trains_deltas_of_another_shape():
    model = adapted(tiny("llama"), k=None, budget=0.2, budget_scope="model").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(**batches()[0]).loss.backward()
    before = {name: indices.shape for name, indices in indices_of(model).items()}
    reselect(model, batches(), progress=False)
    assert any(indices.shape != before[name] for name, indices in indices_of(model).items())
    optimizer.zero_grad()
    model(**batches()[0]).loss.backward()
    optimizer.step()
    assert all(layer.neuroada_deltas["default"].any() for layer in layers_of(model).values())


def test_the_model_is_left_as_it_was():
    model = adapted(tiny("llama"))
    model.train()
    layers = list(layers_of(model).values())
    reselect(model, batches(), progress=False)
    assert model.training
    assert all(layer.neuroada_deltas["default"].requires_grad for layer in layers)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(layer._forward_hooks for layer in layers)


def test_training_waits_for_data():
    model = adapted(tiny("llama"), selection="gradient").train()
    with pytest.raises(
        ConfigError, match=r"Training with selection='gradient'.*wait for the data to choose them by.*reselect"
    ):
        model(**batches()[0])
    with torch.no_grad():
        model(**batches()[0])
    reselect(model, batches(), progress=False)
    model(**batches()[0]).loss.backward()
    assert all(layer.neuroada_deltas["default"].grad is not None for layer in layers_of(model).values())


def test_a_saved_choice_needs_no_data_again(tmp_path):
    base = tiny("llama")
    model = adapted(base, selection="gradient")
    reselect(model, batches(), progress=False)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True).train()
    loaded(**batches()[0]).loss.backward()
    assert all(torch.equal(indices_of(loaded)[name], each) for name, each in indices_of(model).items())


BAD = {
    "unknown": ((batches(), "gradients"), ConfigError, r"Did you mean 'gradient'\?"),
    "no criterion": ((batches(), 5), ConfigError, "criterion=5: not a known one"),
    "one batch": ((batches()[0],), ConfigError, "batches are a dict, not several dicts"),
    "a tensor": ((torch.ones(2, 3),), ConfigError, "batches are a Tensor, not several dicts"),
    "no batches": ((None,), ConfigError, "batches are a NoneType"),
    "no dicts": (([torch.ones(2, 3)],), ConfigError, "a batch is a Tensor, not a dict"),
    "no data": (((), "wanda"), ConfigError, "it needs data, and no batch is given"),
    "no labels": (([{"input_ids": batches()[0]["input_ids"]}], "gradient"), ConfigError, "a batch gives no loss"),
    "nothing to learn": (
        ([{**batches()[0], "labels": torch.full((2, 7), -100)}] * 2, "gradient"),
        WeightError,
        "q_proj by gradients: the batches give it none",
    ),
    "NaN": (
        (batches(), lambda weight, statistics: weight / 0 * 0),
        WeightError,
        r"Choosing inputs of \S+q_proj: \d+ of \d+ scores in a block of neurons are NaN",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_and_changes_nothing(case):
    arguments, error, message = BAD[case]
    model = adapted(tiny("llama"))
    before = indices_of(model)
    with pytest.raises(error, match=message):
        reselect(model, *arguments, progress=False)
    assert all(torch.equal(indices_of(model)[name], each) for name, each in before.items())


class Two(nn.Module):
    """The loss sees one of its two layers."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor):
        self.unused(x)
        return SimpleNamespace(loss=self.used(x).square().mean())


def test_a_layer_without_a_gradient_is_named():
    model = adapted(Two(), target_modules=["used", "unused"])
    with pytest.raises(WeightError, match="Choosing inputs of unused by gradients: the batches give it none"):
        reselect(model, [{"x": torch.ones(2, 8)}], progress=False)


def test_an_adapter_that_cannot_be_chosen_anew():
    model = adapted(tiny("llama"))
    with pytest.raises(ConfigError, match=r"no layer has a NeuroAda adapter of that name.*Known: default"):
        reselect(model, batches(), adapter_name="other", progress=False)
    with pytest.raises(ConfigError, match="this LlamaForCausalLM is no PeftModel"):
        reselect(tiny("llama"), batches(), progress=False)
    with pytest.raises(ConfigError, match="max_memory=0: no gradient fits"):
        reselect(model, batches(), max_memory=0, progress=False)
    with held(model), pytest.raises(MergeError, match="deltas are in the weight of"):
        reselect(model, batches(), progress=False)
    model.merge_adapter()
    with pytest.raises(MergeError, match=r"deltas are merged into the weight of .*Unmerge first"):
        reselect(model, batches(), progress=False)
    model.unmerge_adapter()
    layer = next(iter(layers_of(model).values()))
    with torch.no_grad():
        layer.neuroada_deltas["default"][0, 0] = 1
    with pytest.raises(WeightError, match=r"are not zero. Choose before training"):
        reselect(model, batches(), progress=False)


def test_little_is_held_at_a_time():
    base = tiny("llama")
    model = adapted(base)
    limit = 4 * max(layer.in_features * layer.out_features for layer in layers_of(model).values())
    everything = 4 * sum(layer.in_features * layer.out_features for layer in layers_of(model).values())
    with Allocations() as whole:
        reselect(model, batches(), max_memory=everything, progress=False)
    with Allocations() as parts:
        reselect(model, batches(), max_memory=limit, progress=False)
    assert whole.peak - parts.peak > 0.5 * (everything - limit)


def test_smollm2_chooses_as_by_its_dense_gradients(smollm2):
    base: nn.Module = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    given = [dict(tokenizer(text, return_tensors="pt")) for text in ("The capital of France is Paris.", "1 + 1 = 2")]
    given = [{**batch, "labels": batch["input_ids"]} for batch in given]
    model = adapted(base, k=2, layers_to_transform=[3, 14, 29])
    reselect(model, given, max_memory=1 << 23, progress=False)
    gradients = dense_gradients(base, layers_of(model), given)
    for name, indices in indices_of(model).items():
        expected = top_k(gradients[name].abs(), 2)
        assert (indices.long() == expected).float().mean() > 0.999, name
