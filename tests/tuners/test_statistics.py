"""What is summed over calibration batches, and the layers of which nothing can be."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from peft import get_peft_model
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import CausalLMOutput

from neuroada import NeuroAdaConfig, NeuroAdaLinear, regrow, reselect
from neuroada.errors import ConfigError, WeightError
from neuroada.selection import top_k
from specimens import fill, same_bits, tiny, token_ids

LENGTH = 10


class Branches(nn.Module):
    """Two layers one after the other; what is between them is handled as `between` says."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.unused = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.between = between

    def forward(self, x: Tensor) -> CausalLMOutput:
        hidden = self.a(x)
        output = self.b(hidden)
        return CausalLMOutput(loss=self.between(hidden, output).square().mean(), logits=output)


def added(hidden: Tensor, output: Tensor) -> Tensor:
    return hidden + output


def added_in_place(hidden: Tensor, output: Tensor) -> Tensor:
    return hidden.add_(output)


def inputs_of(model: nn.Module) -> dict[str, Tensor]:
    return {
        layer.name: layer.neuroada_indices["default"].clone()
        for layer in model.modules()
        if isinstance(layer, NeuroAdaLinear)
    }


def branches(between, *names: str, **config) -> nn.Module:
    return get_peft_model(Branches(between), NeuroAdaConfig(k=1, target_modules=list(names), **config))


DATA = [{"x": torch.randn(4, 6, generator=torch.Generator().manual_seed(1))}]


@pytest.mark.parametrize(
    ("criterion", "found"),
    [
        ("wanda", "Choosing inputs of unused by their norms: no token of the batches reaches it"),
        ("gradient", "Choosing inputs of unused by gradients: the batches give it none"),
        (lambda weight, statistics: weight.abs(), "Choosing inputs of unused by their norms: no token"),
    ],
    ids=["wanda", "gradient", "own"],
)
def test_a_layer_that_the_batches_pass_by_is_named(criterion, found):
    model = branches(added, "a", "unused")
    before = inputs_of(model)
    with pytest.raises(WeightError, match=f"{found}.* exclude_modules"):
        reselect(model, DATA, criterion, progress=False)
    after = inputs_of(model)
    assert all(torch.equal(indices, after[name]) for name, indices in before.items())


def test_an_input_that_is_overwritten_after_its_use_is_not_taken_for_what_it_was():
    reselect(branches(added, "a", "b"), DATA, "gradient", progress=False)
    with pytest.raises(WeightError, match="Choosing inputs of b by gradients: the model wrote to the layer's input"):
        reselect(branches(added_in_place, "b"), DATA, "gradient", progress=False)


@pytest.mark.parametrize(
    "config", [{}, {"coverage": 0.5}, {"budget": 0.3, "budget_scope": "model", "k": None}], ids=str
)
def test_a_state_dict_brings_the_inputs_that_an_adapter_waits_for(config, tmp_path):
    def waiting():
        base = Branches(added)
        settings = {"k": 2, "target_modules": ["a", "b"], "selection": "gradient"} | config
        return get_peft_model(
            base, NeuroAdaConfig(**{key: value for key, value in settings.items() if value is not None})
        )

    model, other = waiting(), waiting()
    other.load_state_dict(model.state_dict())
    with pytest.raises(ConfigError, match="wait for the data"):
        other.train()(**DATA[0])
    reselect(model, DATA, "gradient", progress=False)
    for trained in (False, True):
        if trained:
            fill(model)
        resumed = waiting()
        resumed.load_state_dict(model.state_dict())
        assert inputs_of(resumed).keys() == inputs_of(model).keys()
        assert all(torch.equal(indices, inputs_of(resumed)[name]) for name, indices in inputs_of(model).items())
        assert same_bits(resumed.train()(**DATA[0]).logits, model.train()(**DATA[0]).logits)
        resumed.save_pretrained(tmp_path)


def tiny_t5() -> T5ForConditionalGeneration:
    torch.manual_seed(3)
    sizes = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    config = T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, tie_word_embeddings=False)
    return T5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("with_mask", [False, True], ids=["by the labels", "by a mask of its own"])
def test_encoder_and_decoder_leave_their_own_padding_out_also_where_they_are_equally_long(with_mask):
    base, generator = tiny_t5(), torch.Generator().manual_seed(5)
    source = torch.ones(2, LENGTH, dtype=torch.long)
    source[:, 4:] = 0
    target = torch.ones(2, LENGTH, dtype=torch.long)
    target[1, 7:] = 0
    ids, labels = (torch.randint(3, 60, (2, LENGTH), generator=generator) for _ in range(2))
    batch = {"input_ids": ids, "attention_mask": source, "labels": labels.masked_fill(target == 0, -100)}
    if with_mask:
        batch["decoder_attention_mask"] = target
    targets = ["q", "k", "v", "o", "wi", "wo", "lm_head"]
    model = get_peft_model(copy.deepcopy(base), NeuroAdaConfig(k=3, target_modules=targets))
    reselect(model, [batch], "wanda", progress=False)

    chosen = inputs_of(model)
    assert any("EncDecAttention" in name for name in chosen)
    seen: dict[str, Tensor] = {}
    for name in chosen:
        reads_target = "encoder" not in name and not name.endswith(("EncDecAttention.k", "EncDecAttention.v"))
        mask = (target if reads_target else source).bool()
        base.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name, mask=mask: seen.update({name: args[0][mask].norm(dim=0)})
        )
    with torch.no_grad():
        base(**batch)
    for name, indices in chosen.items():
        scores = base.get_submodule(name).weight.detach().abs() * seen[name]
        assert torch.equal(indices.long(), top_k(scores, 3)), name


class Flattening(nn.Module):
    """A layer whose input has all tokens of the batch in one dimension, as those of some mixtures of experts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.linear(x.flatten(0, 1))


def test_padding_is_left_out_where_tokens_are_in_one_dimension():
    base, x = Flattening(), torch.randn(2, 5, 8)
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, 1:] = 0
    x[1, 1:, 3] = 100
    model = get_peft_model(copy.deepcopy(base), NeuroAdaConfig(k=2, target_modules=["linear"]))
    reselect(model, [{"x": x, "attention_mask": mask}], "wanda", progress=False)
    scores = base.linear.weight.detach().abs() * x[mask.bool()].norm(dim=0)
    assert torch.equal(inputs_of(model)["linear"].long(), top_k(scores, 2))


def test_an_off_loaded_model_is_refused_by_name():
    model = get_peft_model(tiny("llama"), NeuroAdaConfig(k=1, target_modules="all-linear"))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    cpu_offload(model)
    ids = token_ids()
    batches, found = [{"input_ids": ids, "labels": ids}], r"q_proj is off-loaded.* Load the model whole"
    with pytest.raises(ConfigError, match=found):
        reselect(model, batches, progress=False)
    with pytest.raises(ConfigError, match=found):
        regrow(model, optimiser, batches)
