"""Heads of classifiers: their settings, what their logits say, and which parameters are theirs."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification, EvalPrediction, Trainer, TrainingArguments

from neuroada import NeuroAdaConfig
from neuroada.errors import ConfigError
from neuroada.tasks.classification import (
    Classification,
    compute_metric,
    evaluate,
    head_modules,
    head_parameters,
    head_settings,
    parameter_groups,
    predictions_of,
    stratified,
)
from specimens import tiny, token_ids

PAIR = Classification("pair", ("no", "yes"), "accuracy")
JUDGED = Classification("judged", ("bad", "good"), "matthews")
VALUE = Classification("value", (), "pearson")
METHODS = {
    "neuroada": lambda: NeuroAdaConfig(k=1, task_type="SEQ_CLS"),
    "lora": lambda: LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"),
}
HEAD_LR, LR = 3e-3, 1e-4


@pytest.fixture(params=METHODS)
def adapted_bert(request):
    return get_peft_model(tiny("bert", num_labels=3), METHODS[request.param]())


def logits_of(labels: list[int], classes: int = 2) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[labels] * 3 - 1


def test_head_settings_reach_the_configuration_and_the_loss(tmp_path):
    tiny("bert").bert.save_pretrained(tmp_path)
    task = Classification("nli", ("entailment", "neutral", "contradiction"), "accuracy")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, **head_settings(task))
    assert model.classifier.out_features == 3
    assert model.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert model.config.label2id["contradiction"] == 2
    outputs = model(token_ids(), labels=torch.tensor([2, 0]))
    assert torch.allclose(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([2, 0])))
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).id2label[1] == "neutral"


def test_head_of_a_regression_minimises_squares(tmp_path):
    tiny("bert").bert.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, **head_settings(VALUE))
    outputs = model(token_ids(), labels=torch.tensor([2.5, 0.0]))
    assert outputs.logits.shape == (2, 1)
    assert torch.allclose(outputs.loss, (outputs.logits[:, 0] - torch.tensor([2.5, 0.0])).square().mean())


def test_predictions_are_labels_or_values():
    assert predictions_of(PAIR, logits_of([1, 0, 1])).tolist() == [1, 0, 1]
    assert predictions_of(PAIR, (torch.tensor([[0.1, 0.2]], dtype=torch.bfloat16), "hidden states")).tolist() == [1]
    assert predictions_of(VALUE, np.array([[0.5], [4.0]])).tolist() == [0.5, 4.0]
    assert predictions_of(VALUE, np.array([0.5, 4.0])).tolist() == [0.5, 4.0]


@pytest.mark.parametrize(("task", "shape"), [(PAIR, (4, 3)), (PAIR, (4,)), (VALUE, (4, 2)), (PAIR, (4, 2, 2))])
def test_logits_of_another_head(task, shape):
    given = ", ".join(map(str, shape))
    found = rf"logits of {task.name}, \[n, {task.outputs}\]: logits of shape \[{given}\]\. Load the model with"
    with pytest.raises(ConfigError, match=found):
        predictions_of(task, np.zeros(shape))


def test_metric_of_trainer_is_the_value_of_the_score():
    true = np.array([1, 1, 1, 0, 0, 1, 0, 1])
    logits = logits_of([1, 1, 0, 0, 1, 1, 0, 1])
    assert compute_metric(PAIR)(EvalPrediction(logits, true)) == {"accuracy": 0.75}
    # (4 right positives, 2 right negatives, 1 false of each): (4·2 - 1·1) / √(5·5·3·3)
    assert compute_metric(JUDGED)(EvalPrediction(logits, true)) == {"matthews": pytest.approx(7 / 15)}
    score = evaluate(JUDGED, logits, true)
    assert (score.name, score.metric, score.count) == ("judged", "matthews", 8)
    assert score.value == pytest.approx(7 / 15)
    assert score.low < score.value < score.high


def test_metric_of_a_regression():
    values, true = np.array([[1.0], [2.0], [4.0]]), np.array([10.0, 20.0, 40.0])
    assert compute_metric(VALUE)(EvalPrediction(values, true)) == {"pearson": pytest.approx(1.0)}
    assert compute_metric(VALUE)(EvalPrediction(-values, true)) == {"pearson": pytest.approx(-1.0)}


@pytest.mark.parametrize("task", [PAIR, JUDGED, VALUE], ids=lambda task: task.metric)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_model_is_never_chosen_and_never_scored(task, value):
    logits, labels = np.ones((4, task.outputs)), np.array([0, 1, 1, 0])
    logits[2, -1] = value
    assert compute_metric(task)(EvalPrediction(logits, labels)) == {task.metric: -1.0}
    with pytest.raises(ConfigError, match=r"logits of 1 of 4 records are not finite\. The training has diverged"):
        evaluate(task, logits, labels)


def test_head_beside_an_adapter(adapted_bert):
    prefix = "base_model.model.classifier.modules_to_save.default"
    assert head_parameters(adapted_bert) == [f"{prefix}.weight", f"{prefix}.bias"]


@pytest.mark.parametrize("method", METHODS)
def test_head_of_two_layers(method):
    model = get_peft_model(tiny("roberta"), METHODS[method]())
    prefix = "base_model.model.classifier.modules_to_save.default"
    parts = ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias")
    assert head_parameters(model) == [f"{prefix}.{part}" for part in parts]


def test_head_without_peft():
    model = tiny("bert")
    assert head_parameters(model) == ["classifier.weight", "classifier.bias"]
    model.classifier.bias.requires_grad_(False)
    assert head_parameters(model) == ["classifier.weight"]


def test_a_model_without_a_body():
    with pytest.raises(ConfigError, match=r"Linear does not say which part is its body \(base_model_prefix\)"):
        head_parameters(torch.nn.Linear(2, 2))


def test_head_learns_at_its_own_rate_and_the_rest_at_the_other(adapted_bert):
    groups = parameter_groups(adapted_bert, LR, HEAD_LR, weight_decay=0.1)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    head = head_parameters(adapted_bert)
    trainable = {name: parameter for name, parameter in adapted_bert.named_parameters() if parameter.requires_grad}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(trainable) > len(head)
    for name, parameter in trainable.items():
        assert rates[id(parameter)] == (HEAD_LR if name in head else LR), name


def test_head_learns_at_the_common_rate_by_default(adapted_bert):
    assert {group["lr"] for group in parameter_groups(adapted_bert, LR)} == {LR}


def test_weight_decay_spares_what_trainer_spares(adapted_bert, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), weight_decay=0.1, use_cpu=True, report_to="none")
    optimiser = Trainer(adapted_bert, arguments).create_optimizer()
    want = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    groups = parameter_groups(adapted_bert, LR, HEAD_LR, weight_decay=0.1)
    assert {id(p): group["weight_decay"] for group in groups for p in group["params"]} == want
    assert set(want.values()) == {0.1, 0.0}


def test_weight_decay_of_full_fine_tuning_spares_norms_and_biases():
    model = tiny("bert")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, LR, HEAD_LR, weight_decay=0.1)
    spared = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert spared == {name for name in names.values() if name.endswith("bias") or "LayerNorm" in name}


def test_a_rate_for_a_head_that_is_not_trained():
    model = get_peft_model(tiny("bert"), NeuroAdaConfig(k=1))
    model.base_model.model.classifier.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"head_learning_rate=0\.003: the model trains no classification head\. Give"):
        parameter_groups(model, LR, HEAD_LR)
    assert {group["lr"] for group in parameter_groups(model, LR)} == {LR}


def test_trainer_takes_the_groups_and_schedules_each_rate(adapted_bert, tmp_path):
    groups = parameter_groups(adapted_bert, LR, HEAD_LR)
    rows = [{"input_ids": row, "labels": torch.tensor(number % 3)} for number, row in enumerate(token_ids(rows=8))]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=2,
        lr_scheduler_type="linear",
        learning_rate=123.0,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    chosen = (torch.optim.AdamW, {"params": groups})
    trainer = Trainer(adapted_bert, arguments, train_dataset=rows, optimizer_cls_and_kwargs=chosen)
    trainer.create_optimizer_and_scheduler(num_training_steps=4)
    for _ in range(2):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {LR / 2, HEAD_LR / 2}
    trainer.train()
    assert trainer.state.global_step == 4


def test_a_stratified_sample_keeps_every_share_and_its_order():
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    for seed in range(5):
        chosen = stratified(labels, 20, seed)
        assert chosen == sorted(set(chosen))
        assert Counter(labels[place] for place in chosen) == {"a": 12, "b": 6, "c": 2}
    assert stratified(labels, 20, 0) == stratified(labels, 20, 0) != stratified(labels, 20, 1)
    assert stratified(labels, 100, 0) == list(range(100))
    assert stratified(labels, 0, 0) == []


def test_modules_of_a_head_are_those_outside_the_body():
    assert head_modules(tiny("bert")) == ["classifier"]
    assert head_modules(tiny("roberta")) == ["classifier"]
    with pytest.raises(ConfigError, match=r"does not say which part is its body"):
        head_modules(torch.nn.Linear(2, 2))
