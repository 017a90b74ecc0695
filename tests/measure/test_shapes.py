"""Models by name: the published sizes, and inputs that fit them."""

import pytest
import torch

from neuroada.errors import ConfigError
from neuroada.measure.shapes import SHAPES, adapted_names, build_model, find_shape, make_batch

CPU, META = torch.device("cpu"), torch.device("meta")

PUBLISHED = {
    "SmolLM2-135M": (134_515_008, 210),
    "Llama-3.2-1B": (1_235_814_400, 112),
    "LLaMA-7B": (6_738_415_616, 224),
    "Llama-3-8B": (8_030_261_248, 224),
    "LLaMA-13B": (13_015_864_320, 280),
    "RoBERTa-base": (124_647_939, 72),
    "RoBERTa-large": (355_362_819, 144),
    "ViT-base": (85_875_556, 72),
    "llama-2048x5504": (203_442_176, 28),
}
"""Parameters (with a head of three classes for RoBERTa, a hundred for ViT) and adapted layers."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_the_published_sizes(name):
    model = build_model(SHAPES[name], torch.bfloat16, META)
    assert set(SHAPES) == {*PUBLISHED, "tiny"}
    assert (sum(parameter.numel() for parameter in model.parameters()), len(adapted_names(model))) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["llama-2048x5504", "RoBERTa-base", "ViT-base"])
def test_layers_can_be_fewer(name):
    shape = SHAPES[name]
    assert shape.described(2).sizes["layers"] == 2
    assert len(adapted_names(build_model(shape, torch.float32, META, layers=1))) * shape.described().sizes[
        "layers"
    ] == len(adapted_names(build_model(shape, torch.float32, META)))


def test_adapted_layers_are_those_that_peft_calls_all_linear():
    from peft import LoraConfig, TaskType, get_peft_model
    from peft.tuners.lora import LoraLayer

    for name, task in (("SmolLM2-135M", TaskType.CAUSAL_LM), ("RoBERTa-base", TaskType.SEQ_CLS)):
        base = build_model(SHAPES[name], torch.float32, META, layers=1)
        names = adapted_names(base)
        model = get_peft_model(base, LoraConfig(target_modules="all-linear", task_type=task), low_cpu_mem_usage=True)
        adapted = {
            module_name.removeprefix("base_model.model.")
            for module_name, module in model.named_modules()
            if isinstance(module, LoraLayer)
        }
        assert set(names) == adapted


def test_weights_are_the_same_each_time_and_frozen():
    one, two = (build_model(SHAPES["ViT-base"], torch.bfloat16, CPU, layers=1, seed=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert {(p.dtype, p.requires_grad) for p in one.parameters()} == {(torch.bfloat16, False)}
    assert one.training


@pytest.mark.parametrize(("name", "sequence"), [("SmolLM2-135M", 5), ("RoBERTa-base", 512), ("ViT-base", 197)])
def test_batches_go_through_their_model(name, sequence):
    shape = SHAPES[name]
    model = build_model(shape, torch.float32, CPU, layers=1)
    assert model(**make_batch(shape, 1, sequence, torch.float32, CPU)).loss.isfinite()


def test_unknown_shape_lists_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"'llama-7': not a known shape\. Did you mean 'LLaMA-7B'\? Known: .*ViT-base"
    ):
        find_shape("llama-7")
    assert find_shape("llama-7b").name == "LLaMA-7B"


@pytest.mark.parametrize(
    ("name", "batch", "sequence", "found"),
    [
        ("LLaMA-7B", 0, 8, "it has no tokens"),
        ("LLaMA-7B", 2, 0, "it has no tokens"),
        ("LLaMA-7B", 1, 2049, "takes at most 2048"),
        ("RoBERTa-base", 1, 513, "takes at most 512"),
        ("ViT-base", 1, 196, "makes 197 tokens of an image"),
    ],
)
def test_batches_that_cannot_be(name, batch, sequence, found):
    with pytest.raises(ConfigError, match=found):
        make_batch(SHAPES[name], batch, sequence, torch.float32, META)
