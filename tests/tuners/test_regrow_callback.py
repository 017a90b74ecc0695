"""RegrowCallback in Trainer: when, with which records, resumed, with the best model, and what it refuses."""

import copy
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from neuroada import NeuroAdaConfig, NeuroAdaLinear, RegrowCallback, regrow
from neuroada.errors import ConfigError, MergeError
from neuroada.tuners import regrow_callback
from specimens import VOCABULARY, base_weights, changed, logits, same_bits, tiny

STEPS = 8


def rows() -> Dataset:
    ids = torch.randint(3, VOCABULARY, (24, 6), generator=torch.Generator().manual_seed(3)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def adapted() -> nn.Module:
    config = NeuroAdaConfig(k=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(copy.deepcopy(tiny("llama")), config)


def trainer(model: nn.Module, folder: Path, *callbacks: TrainerCallback, **given) -> Trainer:
    fields = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    arguments = TrainingArguments(**(fields | given))
    return Trainer(
        model,
        arguments,
        train_dataset=rows(),
        eval_dataset=rows(),
        data_collator=default_data_collator,
        callbacks=list(callbacks),
    )


def adapter(model: nn.Module) -> list[Tensor]:
    layers = [layer for layer in model.modules() if isinstance(layer, NeuroAdaLinear)]
    parts = [(layer.neuroada_indices["default"], layer.neuroada_deltas["default"]) for layer in layers]
    return [part.detach().clone() for pair in parts for part in pair]


def test_it_regrows_every_so_many_steps_and_stops(tmp_path):
    model, noted = adapted(), []
    before = base_weights(model)
    callback = RegrowCallback(every=2, records=5, notify=lambda step, changed: noted.append((step, changed)))
    trainer(model, tmp_path, callback).train()
    assert [step for step, _ in noted] == [2, 4]
    assert all(changed > 0 for _, changed in noted)
    assert changed(before, model) == []
    outside = logits(model.eval())
    assert same_bits(logits(model.merge_and_unload()), outside)


@pytest.mark.parametrize(("every", "warns"), [(STEPS, True), (6, True), (5, False)])
def test_a_training_too_short_to_regrow_is_told(tmp_path, every, warns):
    times = []
    callback = RegrowCallback(every=every, criterion="random", notify=lambda step, changed: times.append(step))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer(adapted(), tmp_path, callback).train()
    said = [str(each.message) for each in found if "never regrows" in str(each.message)]
    assert bool(said) == warns == (times == [])


def test_a_resumed_training_regrows_the_same_inputs(tmp_path):
    model = adapted()
    trainer(model, tmp_path, RegrowCallback(every=2, records=5), save_strategy="steps", save_steps=3).train()
    again = adapted()
    other = trainer(again, tmp_path / "again", RegrowCallback(every=2, records=5))
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert all(same_bits(*pair) for pair in zip(adapter(model), adapter(again), strict=True))
    start = adapter(adapted())
    assert any(not torch.equal(*pair) for pair in zip(adapter(model)[::2], start[::2], strict=True))


class Scores(TrainerCallback):
    """Makes the first evaluation the best one."""

    def __init__(self):
        self.given = iter([1.0, 0.0, 0.5, 0.25])

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        metrics["eval_loss"] = 1 - next(self.given)


def test_the_best_model_has_the_inputs_that_belong_to_its_deltas(tmp_path):
    model = adapted()
    made = trainer(
        model,
        tmp_path,
        RegrowCallback(every=2, records=5, stop_after=1.0),
        Scores(),
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=3,
        eval_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    made.train()
    assert made.state.best_model_checkpoint.endswith("checkpoint-3")
    best = load_file(tmp_path / "checkpoint-3" / "adapter_model.safetensors")
    last = load_file(tmp_path / "checkpoint-8" / "adapter_model.safetensors")
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert all(same_bits(saved[name], best[name]) for name in best)
    assert any(not torch.equal(last[name], best[name]) for name in best if name.endswith("indices"))


def test_records_depend_on_seed_and_step_alone(tmp_path, monkeypatch):
    drawn: list[list] = []

    def noted(model, optimizer, batches, **settings):
        drawn.append([batch["input_ids"].tolist() for batch in batches])
        return regrow(model, optimizer, batches, **settings)

    monkeypatch.setattr(regrow_callback, "regrow", noted)
    for seed in (1, 1, 2):
        trainer(adapted(), tmp_path, RegrowCallback(every=2, records=5), seed=seed, data_seed=0).train()
    first, second, third = drawn[:2], drawn[2:4], drawn[4:]
    assert first == second
    assert first[0] != first[1]
    assert first != third
    assert [len(batch) for batch in first[0]] == [2, 2, 1]
    drawn.clear()
    trainer(adapted(), tmp_path, RegrowCallback(every=2, records=5, batch_size=1), seed=1, data_seed=0).train()
    assert [[each] for batch in first[0] for each in batch] == drawn[0], "the same records, one at a time"


def test_batches_and_scores_of_ones_own(tmp_path):
    asked = []

    def batches(step: int):
        asked.append(step)
        ids = torch.full((1, 4), step)
        return [{"input_ids": ids, "labels": ids}]

    def last(weight, statistics):
        return torch.arange(weight.shape[1]).expand(weight.shape)

    model = adapted()
    trainer(model, tmp_path, RegrowCallback(every=3, criterion=last, drop_fraction=1.0, batches=batches)).train()
    assert asked == [3]
    for indices in adapter(model)[::2]:
        assert (indices.diff(dim=1) == 1).all()


BAD = {
    "every": (0, "every=0: it is not a positive whole number"),
    "records": (None, "records=None: it is not a positive whole number"),
    "batch_size": (2.5, "batch_size=2.5: it is not a positive whole number"),
    "drop_fraction": (0.0, "drop_fraction=0.0: it is not a share of something"),
    "stop_after": (2.0, "stop_after=2.0: it is not a share of something"),
    "criterion": ("gradeint", r"criterion='gradeint': not a known one. Did you mean 'gradient'\?"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_told_at_once(name):
    value, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        RegrowCallback(**{name: value})


def test_what_cannot_be_is_told_before_the_first_step(tmp_path):
    model = adapted()
    model.merge_adapter()
    made = trainer(model, tmp_path, RegrowCallback(every=2))
    with pytest.raises(MergeError, match="deltas are merged into the weight"):
        made.train()
    assert made.state.global_step == 0


def test_deepspeed_is_refused():
    with pytest.raises(ConfigError, match="Regrowing inputs under DeepSpeed: it trains copies of the deltas"):
        RegrowCallback().on_train_begin(SimpleNamespace(deepspeed={"zero_optimization": {}}), None, None)


class Counted(torch.utils.data.IterableDataset):
    """A stream that knows its length."""

    def __iter__(self):
        return iter(rows())

    def __len__(self) -> int:
        return len(rows())


def test_a_stream_of_known_length_has_no_records_to_draw_either(tmp_path):
    made = trainer(adapted(), tmp_path, RegrowCallback(every=2))
    made.train_dataset = Counted()
    with pytest.raises(ConfigError, match=r"Counted is a stream. Give RegrowCallback batches="):
        made.train()


def test_a_model_without_an_adapter_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ConfigError, match="this LlamaForCausalLM is no PeftModel"):
        trainer(copy.deepcopy(tiny("llama")), tmp_path, RegrowCallback(every=2)).train()


def test_a_stream_has_no_records_to_draw(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter(rows()))
    made = trainer(adapted(), tmp_path, RegrowCallback(every=2))
    made.train_dataset = stream
    with pytest.raises(ConfigError, match=r"Drawing calibration records .* is a stream. Give RegrowCallback batches="):
        made.train()
