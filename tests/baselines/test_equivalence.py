"""NeuroAda and mask-based training of the same entries are the same mathematics: after 20 steps, the same weights.

The yardstick is mask-based training in float64 (Llama's norms compute in float32 there too). What mask-based training
in float32 differs from it is the floor that float32 rounding sets: NeuroAda, which sums deltas apart from the weights
and so rounds elsewhere, may be as far from the yardstick, and the two of them together twice as far apart.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from neuroada import NeuroAdaConfig, NeuroAdaLinear
from neuroada.baselines import unwrap_compact_mask, wrap_compact_mask, wrap_mask
from neuroada.ops.sparse_delta import Support
from specimens import one_thread, same_bits

STEPS, K = 20, 3
Weights = dict[str, Tensor]
Optimisers = dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]]
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Course:
    """What is trained, how, and on which batches: int64 [STEPS, rows, length]."""

    base: PreTrainedModel
    config: NeuroAdaConfig
    optimiser: Callable[[Iterable[nn.Parameter]], Optimizer]
    batches: Tensor

    def _train(self, model: nn.Module, trained: Iterable[nn.Parameter]) -> None:
        optimiser = self.optimiser(trained)
        for batch in self.batches:
            model(input_ids=batch, labels=batch).loss.backward()
            optimiser.step()
            optimiser.zero_grad()

    def supports(self) -> dict[str, Support]:
        model = get_peft_model(copy.deepcopy(self.base), self.config)
        layers = {name: part for name, part in model.named_modules() if isinstance(part, NeuroAdaLinear)}
        return {name.removeprefix(PREFIX): layer.support(["default"]) for name, layer in layers.items()}

    def by_neuroada(self, dtype: torch.dtype = torch.float32) -> Weights:
        model = get_peft_model(copy.deepcopy(self.base).to(dtype), self.config)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for deltas in trained:
            deltas.data = deltas.data.to(dtype)
        self._train(model, trained)
        return weights(model.merge_and_unload())

    def by_mask(self, supports: Mapping[str, Support], dtype: torch.dtype = torch.float32) -> Weights:
        model = copy.deepcopy(self.base).to(dtype)
        self._train(model, wrap_mask(model, supports=supports))
        return weights(model)

    def by_compact_mask(self, supports: Mapping[str, Support], dtype: torch.dtype = torch.float32) -> Weights:
        model = copy.deepcopy(self.base).to(dtype)
        self._train(model, wrap_compact_mask(model, supports=supports))
        unwrap_compact_mask(model)
        return weights(model)


def weights(model: nn.Module) -> Weights:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def distance(left: Weights, right: Weights) -> float:
    """Euclidean, over all weights of a model but the embeddings, which nothing here trains."""
    assert left.keys() == right.keys()
    names = [name for name in left if "embed" not in name]
    return sum((left[name].double() - right[name].double()).square().sum().item() for name in names) ** 0.5


def batches(vocabulary: int, rows: int, length: int) -> Tensor:
    return torch.randint(vocabulary, (STEPS, rows, length), generator=torch.Generator().manual_seed(3))


TINY: Optimisers = {
    "sgd": partial(SGD, lr=0.5),
    "sgd-momentum": partial(SGD, lr=0.1, momentum=0.9),
    "adamw": partial(AdamW, lr=1e-3, weight_decay=0),
}


@pytest.fixture
def tiny(tiny_llama) -> Callable[[str], Course]:
    config = NeuroAdaConfig(k=K, target_modules="all-linear")
    data = batches(tiny_llama.config.vocab_size, 4, 16)
    return lambda optimiser: Course(tiny_llama, config, TINY[optimiser], data)


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.mark.parametrize("optimiser", TINY)
def test_same_weights_after_twenty_steps(tiny, optimiser):
    course = tiny(optimiser)
    supports = course.supports()
    exact, mask = course.by_mask(supports, torch.float64), course.by_mask(supports)
    neuroada, compact = course.by_neuroada(), course.by_compact_mask(supports)
    floor = distance(mask, exact)
    moved = distance(exact, weights(course.base))
    assert 0 < floor < 1e-4 * moved
    assert distance(neuroada, exact) <= 2 * floor
    assert distance(neuroada, mask) <= 2 * floor
    assert distance(compact, exact) <= 2 * floor
    assert distance(neuroada, compact) <= 2 * floor


@pytest.mark.parametrize("optimiser", TINY)
def test_the_difference_is_rounding_since_in_float64_there_is_none(tiny, optimiser):
    course = tiny(optimiser)
    exact = course.by_mask(course.supports(), torch.float64)
    moved = distance(exact, weights(course.base))
    assert distance(course.by_neuroada(torch.float64), exact) <= 1e-11 * moved


def test_partial_coverage_and_random_choice_too(tiny):
    course = tiny("adamw")
    config = NeuroAdaConfig(k=2, coverage=0.4, selection="random", target_modules="all-linear")
    course = Course(course.base, config, course.optimiser, course.batches)
    supports = course.supports()
    assert all(support.neurons is not None for support in supports.values())
    exact, mask = course.by_mask(supports, torch.float64), course.by_mask(supports)
    assert distance(course.by_neuroada(), mask) <= 2 * distance(mask, exact)


def another(course: Course) -> dict[str, Support]:
    config = copy.deepcopy(course.config)
    config.selection = "reverse"
    return Course(course.base, config, course.optimiser, course.batches).supports()


def one_more(course: Course) -> dict[str, Support]:
    """The same entries and, in one neuron of one layer, one more."""
    supports = course.supports()
    name, support = next(iter(supports.items()))
    neurons = torch.arange(len(support.indices)).repeat_interleave(support.indices.shape[1])
    taken = support.indices[0].tolist()
    extra = next(index for index in range(len(taken) + 1) if index not in taken)
    columns = torch.cat([support.indices.flatten(), torch.tensor([extra])])[:, None]
    rows = torch.cat([neurons, torch.tensor([0])])
    return supports | {name: Support(columns, torch.zeros(len(rows), 1), rows)}


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("other", [another, one_more])
def test_another_entry_is_noticed(tiny, optimiser, other):
    course = tiny(optimiser)
    supports = course.supports()
    floor = distance(course.by_mask(supports), course.by_mask(supports, torch.float64))
    neuroada = course.by_neuroada()
    assert distance(neuroada, course.by_mask(other(course))) > 20 * floor
    assert distance(neuroada, course.by_compact_mask(other(course))) > 20 * floor


def test_a_weight_decay_is_noticed(tiny):
    course = tiny("adamw")
    supports = course.supports()
    floor = distance(course.by_mask(supports), course.by_mask(supports, torch.float64))
    decaying = Course(course.base, course.config, partial(AdamW, lr=1e-3, weight_decay=1e-3), course.batches)
    assert distance(course.by_neuroada(), decaying.by_mask(supports)) > 20 * floor


def test_entries_outside_the_support_keep_their_bits(tiny):
    course = tiny("adamw")
    supports, base = course.supports(), weights(course.base)
    for trained in (course.by_neuroada(), course.by_mask(supports), course.by_compact_mask(supports)):
        for name, after in trained.items():
            support = supports.get(name.removesuffix(".weight"))
            free = torch.ones_like(after, dtype=torch.bool)
            if support is not None:
                free.scatter_(1, support.indices.long(), False)
            assert same_bits(after[free], base[name][free])


SMOLLM2: Optimisers = {"sgd": partial(SGD, lr=0.02), "adamw": partial(AdamW, lr=1e-4, weight_decay=0)}


@pytest.mark.parametrize("optimiser", SMOLLM2)
def test_same_weights_of_smollm2(smollm2, optimiser):
    """Its first two layers, and three projections of each, to be quick."""
    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, num_hidden_layers=2)
    config = NeuroAdaConfig(k=1, target_modules=["q_proj", "v_proj", "down_proj"])
    course = Course(base, config, SMOLLM2[optimiser], batches(base.config.vocab_size, 1, 8))
    supports = course.supports()
    assert len(supports) == 6
    exact, mask = course.by_mask(supports, torch.float64), course.by_mask(supports)
    neuroada = course.by_neuroada()
    floor = distance(mask, exact)
    assert 0 < floor < 1e-3 * distance(exact, weights(base))
    assert distance(neuroada, exact) <= 2 * floor
    assert distance(neuroada, mask) <= 2 * floor
