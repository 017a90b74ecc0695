"""all-MiniLM-L6-v2 learns CoLA with NeuroAda through Trainer; what is saved is the adapter and its head."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from neuroada import NeuroAdaConfig
from neuroada.tasks.classification import compute_metric, head_parameters, head_settings, parameter_groups
from neuroada.tasks.glue import encode, glue_task, load_glue
from specimens import base_weights, changed, same_bits

SHARED = Path(__file__).parents[3] / "shared" / "data"
RECORDS, STEPS = 64, 12
pytestmark = pytest.mark.skipif(not (SHARED / "glue").is_dir(), reason=f"the data at hand are not in {SHARED}")


def classifier(minilm: Path, seed: int):
    """MiniLM with a new head for CoLA; the seed decides the head only."""
    set_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(minilm, **head_settings(glue_task("cola"))).eval()


def trainable(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def logits(model, batch) -> torch.Tensor:
    return model.eval()(**batch).logits


@pytest.fixture(scope="module")
def rows(minilm):
    """The tokenizer and encoded training records."""
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    data = load_glue("cola", SHARED, train_records=RECORDS)
    return tokenizer, encode(data.train, tokenizer, 128)


@pytest.fixture(scope="module")
def batch(rows):
    tokenizer, encoded = rows
    few = encoded.rows.select(range(8)).remove_columns("labels")
    return DataCollatorWithPadding(tokenizer)(list(few))


@pytest.fixture(scope="module")
def run(minilm, rows, tmp_path_factory):
    """(trained model, base weights and trainable values before, metrics before and after)."""
    tokenizer, encoded = rows
    base = classifier(minilm, seed=0)
    before = base_weights(base)
    model = get_peft_model(base, NeuroAdaConfig(k=1, mode="inplace", task_type="SEQ_CLS"))
    initial = trainable(model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("minilm")),
        max_steps=STEPS,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=encoded.rows,
        eval_dataset=encoded.rows,
        compute_metrics=compute_metric(glue_task("cola")),
        optimizer_cls_and_kwargs=(
            torch.optim.AdamW,
            {"params": parameter_groups(model, 1e-2, head_learning_rate=5e-2)},
        ),
    )
    first = trainer.evaluate()
    trainer.train()
    return model.eval(), before, initial, first, trainer.evaluate()


def test_nothing_of_cola_is_cut_at_128_tokens(rows):
    _, encoded = rows
    assert (len(encoded.rows), encoded.truncated) == (RECORDS, 0)


def test_training_learns_more_than_the_shares_of_the_labels(run, rows):
    *_, first, last = run
    positive = np.mean(rows[1].rows["labels"])
    guess = -positive * np.log(positive) - (1 - positive) * np.log(1 - positive)
    assert last["eval_loss"] < 0.9 * guess < first["eval_loss"]
    assert abs(first["eval_matthews"]) < 0.2
    assert last["eval_matthews"] > 0.3  # 0.78 when this was written


def test_head_and_deltas_move_and_nothing_else(run):
    model, before, initial, *_ = run
    after, head = trainable(model), head_parameters(model)
    assert len(head) == 2
    assert all("neuroada_deltas" in name for name in after if name not in head)
    assert [name for name in after if same_bits(after[name], initial[name])] == []
    assert changed(before, model) == []


def test_saved_and_loaded_it_says_the_same_head_included(run, minilm, batch, tmp_path):
    model, *_ = run
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert [name for name in saved if "classifier" in name]
    other = classifier(minilm, seed=1)
    untrained = logits(other, batch)
    loaded = PeftModel.from_pretrained(other, tmp_path)
    assert same_bits(logits(loaded, batch), logits(model, batch))
    assert not same_bits(logits(loaded, batch), untrained)


def test_merged_it_says_the_same_head_included(run, minilm, batch, tmp_path):
    model, *_ = run
    model.save_pretrained(tmp_path)
    merged = PeftModel.from_pretrained(classifier(minilm, seed=2), tmp_path).merge_and_unload()
    assert same_bits(logits(merged, batch), logits(model, batch))
