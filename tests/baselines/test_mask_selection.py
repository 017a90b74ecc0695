"""Mask-based recipes: which entries are trained, in both forms, by data and beyond the neuron; stopped and resumed."""

import pytest
import torch
import yaml
from peft import TaskType, get_peft_model
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from neuroada import NeuroAdaConfig, NeuroAdaLinear, reselect
from neuroada.baselines import MaskedLinear
from neuroada.baselines import mask_selection as masks
from neuroada.baselines.mask_selection import Mask, MaskConfig, block_of
from neuroada.errors import ConfigError
from neuroada.evaluation.loading import load_trained
from neuroada.recipe.loading import load_recipe
from neuroada.recipe.methods import check_settings
from neuroada.training.train import train
from neuroada.training.wrapping import Trainee, apply_method
from specimens import same_bits

QUIET = Console(quiet=True)
IDS = torch.arange(24).view(2, 12)
BATCHES = [{"input_ids": IDS, "labels": IDS}, {"input_ids": IDS + 30, "labels": IDS + 30}]
PER_BLOCK = 64 + 32 + 32 + 64 + 176 + 176 + 64
ALL_DATA = ("gradient", "magnitude_gradient", "wanda")


def trained_entries(trainee: Trainee) -> dict[str, torch.Tensor]:
    """What training can change of each weight: bool [O, I]."""
    found = {}
    for name, layer in trainee.model.named_modules():
        if isinstance(layer, MaskedLinear):
            mask = torch.zeros(layer.weight.shape, dtype=torch.bool)
            rows = torch.arange(len(mask)) if layer.neurons is None else layer.neurons.long()
            mask[rows[:, None], layer.indices.long()] = True
            found[name] = mask
        elif isinstance(layer, nn.Linear) and layer.weight.requires_grad:
            layer.weight.grad = torch.ones_like(layer.weight)
            for hook in layer.weight._post_accumulate_grad_hooks.values():
                hook(layer.weight)
            found[name], layer.weight.grad = layer.weight.grad.bool(), None
    return found


def masked(model: nn.Module, **settings) -> Trainee:
    trainee = apply_method("mask", settings, model, TaskType.CAUSAL_LM)
    if trainee.settle is not None:
        trainee.settle(BATCHES, False)
    return trainee


def adapter_entries(model: nn.Module, selection: str, k: int) -> dict[str, torch.Tensor]:
    model = get_peft_model(model, NeuroAdaConfig(k=k, selection=selection))
    reselect(model, BATCHES, selection, progress=False)
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, NeuroAdaLinear):
            mask = torch.zeros(layer.stored_weight.shape, dtype=torch.bool)
            found[name.removeprefix("base_model.model.")] = mask.scatter_(
                1, layer.neuroada_indices["default"].long(), True
            )
    return found


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(mask, right[name]) for name, mask in left.items())


@pytest.mark.parametrize("state", ["full", "support"])
@pytest.mark.parametrize("selection", [*ALL_DATA, "small_of_large_gradients", "low_rank"])
def test_both_forms_train_what_neuroada_would_by_the_same_criterion(make_tiny_llama, state, selection):
    found = trained_entries(masked(make_tiny_llama(), k=2, selection=selection, state=state))
    assert equal(found, adapter_entries(make_tiny_llama(), selection, 2))


def test_until_there_is_data_nothing_is_masked(make_tiny_llama):
    trainee = apply_method("mask", {"selection": "gradient"}, make_tiny_llama(), TaskType.CAUSAL_LM)
    assert trainee.trained == 2 * PER_BLOCK
    with pytest.raises(ConfigError, match=r"Choosing inputs by 'gradient': it needs data"):
        trainee.settle([], False)
    trainee.settle(BATCHES, False)
    assert not any(isinstance(module, NeuroAdaLinear) for module in trainee.model.modules())


@pytest.mark.parametrize("state", ["full", "support"])
@pytest.mark.parametrize("selection", ["random", "magnitude", *ALL_DATA])
@pytest.mark.parametrize("scope", ["layer", "block", "model"])
def test_each_scope_has_as_many_entries_as_its_neurons_would(make_tiny_llama, scope, selection, state):
    trainee = masked(make_tiny_llama(), k=1, scope=scope, selection=selection, state=state)
    found = trained_entries(trainee)
    assert trainee.trained == 2 * PER_BLOCK == sum(int(mask.sum()) for mask in found.values())
    if scope != "model":
        for number in "01":
            of_block = [mask for name, mask in found.items() if f"layers.{number}." in name]
            assert sum(int(mask.sum()) for mask in of_block) == PER_BLOCK
    if scope == "layer":
        assert all(int(mask.sum()) == len(mask) for mask in found.values())
    assert any((mask.sum(dim=1) != 1).any() for mask in found.values())


def scope_name(scope: str, layer: str) -> str:
    return {"layer": layer, "block": ".".join(layer.split(".")[:3]), "model": ""}[scope]


@pytest.mark.parametrize("scope", ["layer", "block", "model"])
def test_no_entry_left_out_of_a_scope_is_larger_than_one_taken(make_tiny_llama, scope):
    model = make_tiny_llama()
    before = {name: weight.detach().abs().clone() for name, weight in model.named_parameters()}
    found = trained_entries(masked(model, k=2, scope=scope))
    least: dict[str, float] = {}
    most: dict[str, float] = {}
    for layer, mask in found.items():
        key, weight = scope_name(scope, layer), before[f"{layer}.weight"]
        least[key] = min(least.get(key, torch.inf), float(weight[mask].min()) if mask.any() else torch.inf)
        most[key] = max(most.get(key, 0.0), float(weight[~mask].max()))
    assert all(least[key] >= most[key] for key in least)
    assert len(least) == {"layer": 14, "block": 2, "model": 1}[scope]


def test_gradients_choose_beyond_the_neuron_too(make_tiny_llama):
    model = make_tiny_llama()
    for batch in BATCHES:
        model(**batch).loss.backward()
    found = trained_entries(masked(make_tiny_llama(), scope="model", selection="gradient"))
    gradients = {name: model.get_submodule(name).weight.grad.abs() for name in found}
    least = min(float(gradients[name][mask].min()) for name, mask in found.items() if mask.any())
    assert least >= max(float(gradients[name][~mask].max()) for name, mask in found.items()) * (1 - 1e-4)


@pytest.mark.parametrize("scope", ["layer", "block", "model"])
def test_the_seed_alone_decides_what_is_drawn(make_tiny_llama, scope):
    def draw(seed: int) -> dict[str, torch.Tensor]:
        return trained_entries(masked(make_tiny_llama(), scope=scope, selection="random", seed=seed))

    assert equal(draw(0), draw(0))
    assert not equal(draw(0), draw(1))


def test_blocks_by_name():
    assert block_of("model.layers.11.self_attn.q_proj") == "model.layers.11"
    assert block_of("encoder.block.3.layer.0.SelfAttention.q") == "encoder.block.3"
    assert block_of("bert.pooler.dense") == "bert.pooler.dense"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"state": "half"}, r"mask\.state='half': not a known value\. .*full, support"),
        ({"scope": "neurons"}, r"mask\.scope='neurons': not a known value\. Did you mean 'neuron'"),
        (
            {"scope": "layer", "coverage": 0.5},
            r"mask\.scope=layer with coverage=0\.5: coverage is a share of the neu.*",
        ),
        (
            {"scope": "model", "selection": "small_of_large_gradients"},
            r"mask\.scope=model with selection=small_of_large_gradients: its scores compare inputs of one neuron only",
        ),
    ],
)
def test_settings_that_cannot_be_meant(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_settings("mask", settings)


@pytest.mark.parametrize("state", ["full", "support"])
def test_a_sharded_model_is_refused(state, monkeypatch, tiny_llama):
    monkeypatch.setattr(masks, "is_sharded", lambda: True)
    with pytest.raises(ConfigError, match=r"method 'mask' under FSDP: a mask is for whole weights"):
        Mask(tiny_llama, MaskConfig(state=state), lambda model: [])


@pytest.fixture
def recipe(tiny_model_dir, tmp_path):
    def make(dtype="float32", **changes):
        text = tmp_path / "text.txt"
        text.write_text("the quick brown fox jumps over the lazy dog\n" * 200)
        content = {
            "model": {"name": str(tiny_model_dir), "dtype": dtype},
            "data": {"text": str(text), "block_length": 16, "held_out_blocks": 2},
            "method": "mask",
            "training": {
                "max_steps": 6,
                "learning_rate": 0.003,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "save_steps": 2,
            },
            "calibration_records": 6,
        }
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content | changes))
        return load_recipe(tmp_path / "mine.yaml")

    return make


class Stop(TrainerCallback):
    """Ends the process's training in the middle of it."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


def saved(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


GRADIENT = {"k": 2, "selection": "gradient"}


def test_the_forms_of_a_recipe_train_the_same_weights_and_save_a_plain_model(recipe, tmp_path):
    results = {}
    for state in ("full", "support"):
        summary = train(recipe(mask=GRADIENT | {"state": state}), tmp_path / state, QUIET)
        assert summary["trainable_parameters"] == 2 * 2 * PER_BLOCK
        results[state] = saved(tmp_path / state)
    base = load_trained(recipe().model.name, "float32").model.state_dict()
    assert results["full"].keys() == results["support"].keys()
    moved = 0
    for name, weight in results["full"].items():
        changed = weight != base[name]
        moved += int(changed.sum())
        assert torch.equal(results["support"][name] != base[name], changed)
        torch.testing.assert_close(results["support"][name], weight, rtol=0, atol=1e-6)
    assert 0.9 * 4 * PER_BLOCK < moved <= 4 * PER_BLOCK


@pytest.mark.parametrize("state", ["full", "support"])
def test_stopped_and_resumed_it_ends_as_if_it_had_never_been(recipe, tmp_path, state):
    mine = recipe("bfloat16", mask=GRADIENT | {"state": state})
    train(mine, tmp_path / "whole", QUIET)
    with pytest.raises(KeyboardInterrupt):
        train(mine, tmp_path / "stopped", QUIET, callbacks=[Stop()])
    train(mine, tmp_path / "stopped", QUIET, resume=True)
    left, right = saved(tmp_path / "whole"), saved(tmp_path / "stopped")
    assert left.keys() == right.keys()
    assert all(same_bits(weight, right[name]) for name, weight in left.items())


def test_weight_decay_only_where_it_stays_inside_the_mask(recipe):
    training = {"max_steps": 1, "learning_rate": 0.1, "weight_decay": 0.1}
    with pytest.raises(ConfigError, match="weight decay changes entries outside the mask"):
        recipe(training=training)
    assert recipe(training=training, mask={"state": "support"}).training.weight_decay == 0.1


def test_the_header_of_a_dry_run_names_no_mode(recipe, tmp_path):
    console = Console(record=True, width=200)
    train(recipe(mask=GRADIENT), tmp_path / "run", console, dry_run=True)
    text = console.export_text()
    assert "mask-based sparse tuning (k=2, selection=gradient)" in text
    assert "inplace" not in text
