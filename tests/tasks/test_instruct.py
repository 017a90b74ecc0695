"""The user's own data: every shape of record, with a chat template and without, and what malformed ones are told."""

import json
from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer

from neuroada.errors import ConfigError, MissingInputError
from neuroada.tasks.completion import encode
from neuroada.tasks.instruct import load, to_examples

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:\n"
)
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def write(tmp_path: Path):
    def write(*records: object) -> Path:
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


@pytest.fixture
def chat_tokenizer(byte_tokenizer):
    byte_tokenizer.chat_template = TEMPLATE
    return byte_tokenizer


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


SHAPES = [
    {"prompt": "Say x.", "completion": "x"},
    {"prompt": said("Say x."), "completion": [{"role": "assistant", "content": "x"}]},
    {"instruction": "Say x.", "output": "x"},
    {"instruction": "Say x.", "input": "", "output": "x", "id": 7},
    {"messages": said("Say x.", "x")},
]


@pytest.mark.parametrize("record", SHAPES)
def test_every_shape_of_record_reads_alike(write, byte_tokenizer, chat_tokenizer, record):
    chats, source = load(write(record), None)
    assert source == str(write(record))
    (plain,) = to_examples(chats, byte_tokenizer, template=False)
    assert (plain.prompt, plain.target, plain.answer) == (ALPACA.format("Say x."), "x", "x")
    assert plain.source == f"{source}:1"
    (templated,) = to_examples(chats, chat_tokenizer)
    assert (templated.prompt, templated.target) == ("<|user|>Say x.<|end|>\n<|assistant|>", "x")


def test_without_a_template_the_prompt_is_alpacas(write, byte_tokenizer):
    chats, _ = load(write(SHAPES[0]), None)
    assert to_examples(chats, byte_tokenizer)[0].prompt == ALPACA.format("Say x.")


def test_an_input_stands_below_its_instruction(write, byte_tokenizer):
    chats, _ = load(write({"instruction": "Double.", "input": "x", "output": "xx"}), None)
    assert to_examples(chats, byte_tokenizer)[0].prompt == ALPACA.format("Double.\n\nx")


def test_a_system_message_comes_first(write, byte_tokenizer, chat_tokenizer):
    record = {"messages": [{"role": "system", "content": "Be brief."}, *said("Say x.", "x")]}
    chats, _ = load(write(record), None)
    assert to_examples(chats, chat_tokenizer)[0].prompt.startswith("<|system|>Be brief.<|end|>\n<|user|>")
    assert to_examples(chats, byte_tokenizer, template=False)[0].prompt == ALPACA.format("Be brief.\n\nSay x.")


def test_each_turn_of_the_assistant_is_learnt_after_what_came_before(write, chat_tokenizer):
    chats, _ = load(write({"messages": said("one", "1", "two", "2")}, SHAPES[0]), None)
    first, second, other = to_examples(chats, chat_tokenizer)
    assert (first.target, second.target, other.target) == ("1", "2", "x")
    assert second.prompt == "<|user|>one<|end|>\n<|assistant|>1<|end|>\n<|user|>two<|end|>\n<|assistant|>"
    assert first.source == second.source != other.source


def test_the_whole_text_is_the_templates_own(write, chat_tokenizer):
    chats, _ = load(write({"messages": said("one", "1", "two", " 2\n")}), None)
    rows, _ = encode(to_examples(chats, chat_tokenizer), chat_tokenizer, 256)
    whole = chat_tokenizer.apply_chat_template(chats[0].messages, tokenize=False)
    assert chat_tokenizer.decode(rows[1]["input_ids"]) == whole.rstrip("\n")


def test_a_template_that_ends_turns_otherwise_keeps_its_end(write, byte_tokenizer):
    byte_tokenizer.chat_template = TEMPLATE.replace("<|end|>", "<turn>")
    chats, _ = load(write(SHAPES[0]), None)
    assert to_examples(chats, byte_tokenizer)[0].target == "x<turn>\n"


def test_a_template_that_writes_another_beginning_of_the_turn(write, byte_tokenizer):
    byte_tokenizer.chat_template = TEMPLATE.replace("%}<|assistant|>{%", "%}<|assistant|><think>{%")
    chats, _ = load(write(SHAPES[0]), None)
    (example,) = to_examples(chats, byte_tokenizer)
    assert example.prompt.endswith("\n<|assistant|><think>")
    assert example.target == "x"


def test_rows_of_the_hub(monkeypatch, byte_tokenizer):
    asked = []
    rows = datasets.Dataset.from_list([{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or rows)
    chats, source = load(None, "owner/name/config", part="test")
    assert asked == [(("owner/name", "config"), {"split": "test"})]
    assert source == "hub:owner/name/config/test"
    assert [chat.source for chat in chats] == ["hub:owner/name/config/test:1", "hub:owner/name/config/test:2"]
    assert to_examples(chats, byte_tokenizer)[1].target == "d"


MALFORMED = {
    "no shape": (
        {"question": "a", "answer": "b"},
        "line 2: it has 'question', 'answer'. Write prompt and completion, ins",
    ),
    "no field": ({}, "line 2: it has no field"),
    "list": ([1], "line 2: a list, not an object"),
    "empty completion": ({"prompt": "a", "completion": " "}, "line 2: 'completion' is empty"),
    "empty prompt": ({"prompt": "", "completion": "b"}, "line 2: 'prompt' is empty"),
    "number": ({"prompt": "a", "completion": 3}, "line 2: 'completion' is a whole number. Write text or a list there"),
    "input": ({"instruction": "a", "input": [1], "output": "b"}, "line 2: 'input' is a list. Write text there"),
    "message": ({"messages": ["a"]}, "line 2, message 1: text, not an object"),
    "role": ({"messages": [{"content": "a"}]}, "line 2, message 1: no 'role'"),
    "pictures": ({"messages": [{"role": "user", "content": []}]}, "line 2, message 1: 'content' is a list"),
    "no answer": ({"messages": said("a")}, "line 2: no message of the assistant"),
    "no message": ({"messages": []}, "line 2: no message of the assistant"),
    "empty answer": ({"messages": said("a", "")}, "line 2, message 2: 'content' is empty"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_records_are_named_by_file_and_line(write, case):
    record, message = MALFORMED[case]
    with pytest.raises(MissingInputError, match=rf"mine.jsonl, {message}"):
        load(write(SHAPES[0], record), None)


def test_data_that_are_not_there(tmp_path):
    with pytest.raises(MissingInputError, match=r"data file .*none.jsonl: no such file"):
        load(tmp_path / "none.jsonl", None)
    with pytest.raises(MissingInputError, match="data set 'mine': no name of a data set on the hub"):
        load(None, "mine")
    with pytest.raises(MissingInputError, match=r"hub:owner/none/train: the hub does not give it .*or connect"):
        load(None, "owner/none")


def test_several_turns_need_a_template(write, byte_tokenizer):
    chats, _ = load(write(SHAPES[0], {"messages": said("a", "b", "c", "d")}), None)
    with pytest.raises(MissingInputError, match=r"mine.jsonl:2: a chat of several turns, .* Choose an instruct model"):
        to_examples(chats, byte_tokenizer)


def test_a_template_that_refuses_a_chat_is_quoted(write, byte_tokenizer):
    byte_tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    chats, _ = load(write(SHAPES[0]), None)
    with pytest.raises(MissingInputError, match=r"mine.jsonl:1: the model's chat template refuses it .roles must alt"):
        to_examples(chats, byte_tokenizer)


def test_a_template_that_is_not_there(write, byte_tokenizer):
    chats, _ = load(write(SHAPES[0]), None)
    with pytest.raises(ConfigError, match=r"it has no chat template. Choose an instruct model"):
        to_examples(chats, byte_tokenizer, template=True)


def test_smollm2s_own_template(write, smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    chats, _ = load(write(SHAPES[0]), None)
    (example,) = to_examples(chats, tokenizer)
    assert example.prompt.endswith("<|im_start|>user\nSay x.<|im_end|>\n<|im_start|>assistant\n")
    assert example.target == "x"
