"""The head of a checkpoint is kept by the names of its classes, or made anew and said so."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from neuroada.inputs.heads import order_of
from neuroada.inputs.models import Head, load_model
from neuroada.tasks.classification import head_settings
from neuroada.tasks.glue import glue_task
from neuroada.tuners.new_weights import find_new

OURS = glue_task("mnli").labels


def settings(*labels: str) -> dict:
    return {"id2label": dict(enumerate(labels)), "num_labels": len(labels)}


def config(*labels: str, kind: str = "BertForSequenceClassification") -> BertConfig:
    return BertConfig(id2label=dict(enumerate(labels)), architectures=[kind])


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (["a", "b"], ["a", "b"], None),
        (["B", "A"], ["a", "b"], [1, 0]),
        (["Not-Entailment", "ENTAILMENT"], ["entailment", "not_entailment"], [1, 0]),
        (["c", "a", "b"], ["a", "b", "c"], [1, 2, 0]),
        (["LABEL_0", "LABEL_1"], ["a", "b"], None),
        (["a", "b", "c"], ["a", "b"], "it tells 3 classes apart, and the task has 2"),
        (["good", "bad"], ["a", "b"], "its classes are good, bad, and those of the task a, b"),
    ],
)
def test_classes_are_matched_by_name(theirs, ours, expected):
    assert order_of(config(*theirs), settings(*ours)) == expected
    assert order_of(config(*theirs, kind="BertModel"), settings(*ours)) is None


def checkpoint(folder: Path, tiny_bert_dir: Path, labels: list[str]) -> BertForSequenceClassification:
    body = BertConfig.from_pretrained(tiny_bert_dir)
    body.id2label = dict(enumerate(labels))
    body.label2id = {name: number for number, name in enumerate(labels)}
    torch.manual_seed(3)
    model = BertForSequenceClassification(body)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert_dir).save_pretrained(folder)
    return model


def load(folder: Path) -> tuple[torch.nn.Module, str]:
    console = Console(file=io.StringIO(), width=200)
    head = Head(head_settings(glue_task("mnli")))
    return load_model(str(folder), "float32", console, head).model, console.file.getvalue()  # type: ignore[attr-defined]


def test_a_head_in_another_order_gives_the_same_classes(tiny_bert_dir: Path, tmp_path: Path):
    theirs = [OURS[2].upper(), OURS[0], OURS[1]]
    model = checkpoint(tmp_path, tiny_bert_dir, theirs).eval()
    found, printed = load(tmp_path)
    ids = torch.arange(5, 11)[None]
    with torch.no_grad():
        before, after = model(input_ids=ids).logits, found.eval()(input_ids=ids).logits
    assert torch.equal(found.classifier.weight, model.classifier.weight[[1, 2, 0]])
    assert torch.allclose(before[:, [1, 2, 0]], after, rtol=0, atol=1e-6)
    assert "in another order: it is kept, by their names" in printed
    assert find_new(found).modules == []


@pytest.mark.parametrize("labels", [["x", "y", "z"], ["x", "y"], ["a", "b", "c", "d"]], ids=len)
def test_another_head_gives_way_and_is_new(labels: list[str], tiny_bert_dir: Path, tmp_path: Path):
    model = checkpoint(tmp_path, tiny_bert_dir, labels)
    found, printed = load(tmp_path)
    assert "The checkpoint's head is not kept, and a new one is trained: it" in printed
    assert found.classifier.out_features == 3
    assert find_new(found).modules == ["classifier"]
    if len(labels) == 3:
        assert not torch.equal(found.classifier.weight, model.classifier.weight)


def test_a_head_without_names_is_kept_as_it_is(tiny_bert_dir: Path, tmp_path: Path):
    model = checkpoint(tmp_path, tiny_bert_dir, ["LABEL_0", "LABEL_1", "LABEL_2"])
    found, printed = load(tmp_path)
    assert torch.equal(found.classifier.weight, model.classifier.weight)
    assert printed == ""
