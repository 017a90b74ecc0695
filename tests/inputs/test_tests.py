"""How records are put into batches to be scored: longest first, and every answer at its own record."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, TrainingArguments

from neuroada.inputs.tests import ClassifierTest
from neuroada.tasks.classification import compute_metric
from neuroada.tasks.glue import TASKS
from neuroada.training.trainer import ResumableTrainer

LENGTHS = [3, 17, 5, 17, 2, 11, 4, 16, 3, 12, 2]
TASK = TASKS["sst2"]


class CountsOnes(torch.nn.Module):
    """Says label 1 where a record has an odd number of ones; keeps the shape of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, input_ids, attention_mask, labels=None):
        self.shapes.append(tuple(input_ids.shape))
        odd = ((input_ids == 1) & attention_mask.bool()).sum(1) % 2
        logits = torch.stack([1 - odd, odd], dim=1) * self.scale
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits) if loss is None else {"loss": loss, "logits": logits}


@pytest.fixture
def records() -> Dataset:
    ids = [[1] * (length // 2) + [2] * (length - length // 2) for length in LENGTHS]
    labels = [(length // 2) % 2 for length in LENGTHS]
    labels[1], labels[4] = 1 - labels[1], 1 - labels[4]
    masks = [[1] * length for length in LENGTHS]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": masks, "labels": labels})


def test_a_classifier_is_scored_longest_first_and_answers_in_order(records: Dataset, byte_tokenizer):
    model = CountsOnes()
    test = ClassifierTest(TASK, records, DataCollatorWithPadding(byte_tokenizer), batch_size=4)
    scored = test.score(model, byte_tokenizer, lambda *_: None)
    assert [shape[1] for shape in model.shapes] == [17, 11, 3]
    assert [answer["generated"] for answer in scored.answers] == [(length // 2) % 2 for length in LENGTHS]
    assert [answer["answer"] for answer in scored.answers] == records["labels"]
    assert scored.scores[0].value == pytest.approx(9 / 11)


@pytest.mark.parametrize("classifies", [True, False])
def test_held_out_samples_are_grouped_where_no_loss_depends_on_it(
    classifies, records: Dataset, byte_tokenizer, tmp_path
):
    settings = TrainingArguments(
        str(tmp_path),
        per_device_eval_batch_size=4,
        train_sampling_strategy="group_by_length",
        report_to=[],
        use_cpu=True,
        label_names=["labels"],
    )
    model = CountsOnes()
    trainer = ResumableTrainer(
        model,
        settings,
        data_collator=DataCollatorWithPadding(byte_tokenizer),
        eval_dataset=records,
        compute_metrics=compute_metric(TASK) if classifies else None,
    )
    metrics = trainer.evaluate()
    widths = [shape[1] for shape in model.shapes]
    if classifies:
        assert widths == [17, 11, 3]
        assert metrics[f"eval_{TASK.metric}"] == pytest.approx(9 / 11)
    else:
        assert widths != [17, 11, 3]
    per_sample = torch.nn.functional.cross_entropy(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])).item()
    assert metrics["eval_loss"] == pytest.approx(per_sample + 2 / 11, abs=1e-6)
