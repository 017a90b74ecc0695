"""Tasks of lm-eval, run by the harness on our models: small local ones, without a network."""

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, LlamaForCausalLM, PreTrainedTokenizerFast

from neuroada import NeuroAdaConfig
from neuroada.errors import ConfigError, MissingInputError
from neuroada.evaluation import harness as module
from neuroada.evaluation.harness import HarnessTests
from neuroada.ops.sparse_delta import is_held
from neuroada.recipe.schema import EvaluationSection

QUESTIONS = [
    {"question": f"Which one, {number}?", "choices": ["red", "a longer answer", "blue"], "answer": number % 3}
    for number in range(6)
]
CHOICE = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
WRITE = """
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "red"
generation_kwargs: {{until: ["###"], max_gen_toks: 3}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a task's YAML and data; returns the YAML's path."""
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # seconds of asking the system

    def writing(task: str, name: str = "data.jsonl") -> str:
        data = tmp_path / "data.jsonl"
        data.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
        path = tmp_path / f"{task.split()[1]}.yaml"
        path.write_text(task.format(data=tmp_path / name))
        return str(path)

    return writing


@pytest.fixture
def adapted(tiny_llama: LlamaForCausalLM) -> nn.Module:
    """The tiny Llama with random deltas."""
    model = get_peft_model(tiny_llama, NeuroAdaConfig(k=2, target_modules="all-linear"))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "deltas" in name:
                parameter.normal_(0, 0.3)
    return model


def likeliest(model: nn.Module, tokenizer: PreTrainedTokenizerFast, record: dict) -> int:
    """The choice of the largest summed log-probability after the question and a space, by plain PyTorch."""
    sums = []
    for choice in record["choices"]:
        prompt, whole = (
            tokenizer(text)["input_ids"] for text in (record["question"], f"{record['question']} {choice}")
        )
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        sums.append(sum(scores[place - 1, whole[place]].item() for place in range(len(prompt), len(whole))))
    return max(range(3), key=sums.__getitem__)


def test_choices_are_those_of_plain_pytorch_and_the_same_merged(
    write, adapted: nn.Module, byte_tokenizer: PreTrainedTokenizerFast
):
    tests = HarnessTests.load([write(CHOICE)], EvaluationSection(batch_size=4))
    assert tests.records == 6
    done = []
    scored = tests.score(adapted, byte_tokenizer, lambda test, count: done.append((test, count)))
    expected = [likeliest(adapted, byte_tokenizer, record) for record in QUESTIONS]
    assert [answer["generated"] for answer in scored.answers] == expected
    assert [answer["prompt"] for answer in scored.answers] == [record["question"] for record in QUESTIONS]
    (score,) = scored.scores
    right = [guess == record["answer"] for guess, record in zip(expected, QUESTIONS, strict=True)]
    share = sum(right) / 6
    assert (score.name, score.metric, score.value, score.count) == ("colours", "acc", pytest.approx(share), 6)
    reach = 1.96 * (share * (1 - share) / 5) ** 0.5
    assert (score.low, score.high) == pytest.approx((max(0.0, share - reach), min(1.0, share + reach)))
    assert done == [("colours", 6)]
    assert not any(is_held(p) for p in adapted.parameters())
    merged = adapted.merge_and_unload()
    again = HarnessTests.load([write(CHOICE)], EvaluationSection()).score(merged, byte_tokenizer, lambda *_: None)
    assert [answer["generated"] for answer in again.answers] == expected


def test_written_answers_and_a_limit(write, adapted: nn.Module, byte_tokenizer: PreTrainedTokenizerFast):
    tests = HarnessTests.load([write(WRITE)], EvaluationSection(records=2))
    assert tests.counts == {"words": 2}
    adapted.train()
    scored = tests.score(adapted, byte_tokenizer, lambda *_: None)
    assert adapted.training
    (score,) = scored.scores
    assert (score.name, score.metric, score.count) == ("words", "exact_match", 2)
    inputs = byte_tokenizer(QUESTIONS[0]["question"], return_tensors="pt")
    adapted.eval()
    written = adapted.generate(**inputs, max_new_tokens=3, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert scored.answers[0]["generated"] == byte_tokenizer.decode(written, skip_special_tokens=True)


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        MissingInputError, match=r"arc_easy: package lm_eval, .* not installed. pip install 'neuroada\["
    ):
        HarnessTests.load(["arc_easy"], EvaluationSection())


def test_unknown_tasks_and_settings(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"--sampling published: tasks of the harness bring their own settings"):
        HarnessTests.load(["arc_easy"], EvaluationSection(sampling="published"))
    with pytest.raises(MissingInputError, match=r"absent\.yaml: no such file. Give a task's YAML file, or its name"):
        HarnessTests.load([str(tmp_path / "absent.yaml")], EvaluationSection())
    with pytest.raises(MissingInputError, match=r"data of harness tasks .*: FileNotFoundError: .*absent\.jsonl"):
        HarnessTests.load([write(CHOICE, "absent.jsonl")], EvaluationSection())
    known = type("Known", (), {"__init__": lambda self, **_: None, "all_tasks": ["arc_easy", "hellaswag"]})
    monkeypatch.setattr("lm_eval.tasks.TaskManager", known)
    with pytest.raises(ConfigError, match=r"'arc_esy': no such task. Did you mean 'arc_easy'\? `lm_eval ls tasks`"):
        HarnessTests.load(["arc_esy"], EvaluationSection())


def test_a_classifier_cannot_answer(write, tiny_bert_dir: Path, byte_tokenizer: PreTrainedTokenizerFast):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir)
    tests = HarnessTests.load([write(CHOICE)], EvaluationSection())
    with pytest.raises(ConfigError, match=r"BertForSequenceClassification is no causal language model"):
        tests.score(model, byte_tokenizer, lambda *_: None)


def test_groups_filters_and_values_without_an_error():
    scored = module._scored(
        {
            "results": {
                "a": {"alias": "a", "sample_len": 4, "acc,none": 0.5, "acc_stderr,none": 0.1},
                "b": {"exact_match,strict": 0.25, "exact_match_stderr,strict": 0.2, "word_perplexity,none": 9.0},
                "both": {"acc,none": 0.4},
            },
            "groups": {"both": {"acc,none": 0.4, "acc_stderr,none": "N/A", "sample_len": 8}},
            "n-samples": {name: {"original": 4, "effective": 4} for name in "ab"},
        }
    )
    assert [(s.name, s.metric, s.value, s.count) for s in scored.scores] == [
        ("a", "acc", 0.5, 4),
        ("b", "exact_match (strict)", 0.25, 4),
        ("b", "word_perplexity", 9.0, 4),
        ("both", "acc", 0.4, 8),
    ]
    assert (scored.scores[1].low, scored.scores[1].high) == (0.0, pytest.approx(0.25 + 1.96 * 0.2))
    assert (scored.scores[2].low, scored.scores[2].high) == (9.0, 9.0)
    assert set(scored.notes) == {"b", "both"}
