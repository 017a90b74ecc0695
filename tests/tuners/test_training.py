"""Trainers of Transformers and TRL take an adapted model as it is; a resumed run ends where a whole one does."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments, default_data_collator
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from specimens import METHODS, adapted_layers, base_weights, changed, same_bits, trained_parameters

pytestmark = pytest.mark.parametrize("kind", METHODS, ids=str)

STEPS, HALF = 6, 3
COMMON = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "save_steps": HALF,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "seed": 11,
}
TEXTS = [f"neuron {number} has {number % 5} deltas" for number in range(24)]


@pytest.fixture
def adapt(make_tiny_llama, kind):
    """A new adapted tiny Llama, each time the same."""

    def make() -> PeftModel:
        torch.manual_seed(7)
        return get_peft_model(make_tiny_llama(), kind.config(task_type="CAUSAL_LM"))

    return make


def plain_trainer(model: PeftModel, tokenizer, folder: Path, **arguments) -> Trainer:
    rows = tokenizer(TEXTS, padding="max_length", max_length=32, truncation=True)
    data = Dataset.from_dict({"input_ids": rows["input_ids"], "labels": rows["input_ids"]})
    arguments = TrainingArguments(output_dir=str(folder), **(COMMON | arguments))
    return Trainer(model=model, args=arguments, train_dataset=data, data_collator=default_data_collator)


def sft_trainer(model: PeftModel, tokenizer, folder: Path, **arguments) -> SFTTrainer:
    arguments = SFTConfig(output_dir=str(folder), max_length=32, bf16=False, **(COMMON | arguments))
    data = Dataset.from_dict({"text": TEXTS})
    return SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)


def values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def all_moved(model: torch.nn.Module) -> bool:
    """Whether the layers whose values start at zero, and are the last of each adapter, have others now."""
    last = [list(trained_parameters(layer).values())[-1] for layer in adapted_layers(model)]
    return all(parameter.abs().max() > 0 for parameter in last)


TRAINERS = [plain_trainer, sft_trainer]


@pytest.mark.parametrize("make_trainer", TRAINERS)
def test_training_moves_the_adapter_and_nothing_else(make_trainer, adapt, byte_tokenizer, kind, tmp_path):
    model = adapt()
    before = base_weights(model)
    trainer = make_trainer(model, byte_tokenizer, tmp_path)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert all_moved(model)
    assert changed(before, model) == []


@pytest.mark.parametrize("make_trainer", TRAINERS)
def test_a_resumed_run_ends_with_the_same_values(make_trainer, adapt, byte_tokenizer, kind, tmp_path):
    whole = adapt()
    make_trainer(whole, byte_tokenizer, tmp_path / "whole").train()

    resumed = adapt()
    checkpoint = tmp_path / "whole" / f"checkpoint-{HALF}"
    assert (checkpoint / "adapter_model.safetensors").exists()
    make_trainer(resumed, byte_tokenizer, tmp_path / "resumed").train(resume_from_checkpoint=str(checkpoint))

    expected = values(whole)
    found = values(resumed)
    assert found.keys() == expected.keys()
    assert all(same_bits(found[name], expected[name]) for name in expected)


def test_sft_trainer_adapts_a_base_model_by_itself(make_tiny_llama, byte_tokenizer, kind, tmp_path):
    arguments = SFTConfig(output_dir=str(tmp_path), max_length=32, bf16=False, **(COMMON | {"max_steps": 2}))
    trainer = SFTTrainer(
        model=make_tiny_llama(),
        args=arguments,
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=byte_tokenizer,
        peft_config=kind.config(1, task_type="CAUSAL_LM"),
    )
    trainer.train()
    assert isinstance(trainer.model, PeftModel)
    assert all_moved(trainer.model)


def test_dpo_trainer_uses_the_disabled_adapter_as_its_reference(adapt, byte_tokenizer, kind, tmp_path):
    model = adapt()
    before = base_weights(model)
    data = Dataset.from_dict(
        {
            "prompt": [f"{number} is " for number in range(8)],
            "chosen": ["a number" for _ in range(8)],
            "rejected": ["a neuron" for _ in range(8)],
        }
    )
    arguments = DPOConfig(output_dir=str(tmp_path), max_length=48, bf16=False, **(COMMON | {"max_steps": 3}))
    trainer = DPOTrainer(model=model, args=arguments, train_dataset=data, processing_class=byte_tokenizer)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert history[0]["rewards/margins"] == 0  # policy and reference agree at the start
    assert history[-1]["rewards/margins"] > 0
    assert changed(before, model) == []


def test_gradient_checkpointing_reaches_the_same_values(adapt, byte_tokenizer, kind, tmp_path):
    plain, saving = adapt(), adapt()
    plain_trainer(plain, byte_tokenizer, tmp_path / "plain").train()
    plain_trainer(saving, byte_tokenizer, tmp_path / "saving", gradient_checkpointing=True).train()
    expected = values(plain)
    assert all(same_bits(delta, expected[name]) for name, delta in values(saving).items())
