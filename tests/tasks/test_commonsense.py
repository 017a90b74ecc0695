"""Commonsense: the published prompt, target and rule, and the published form of the hub's rows."""

import re
from pathlib import Path

import pytest

from neuroada.tasks import commonsense
from neuroada.tasks.commonsense import COMMONSENSE, HUB, is_right, prompt, target
from neuroada.tasks.generative import load_test, load_train
from neuroada.tasks.records import read_records

SHARED = Path(__file__).parents[3] / "shared" / "data"
TEST = COMMONSENSE.tests["boolq"]

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")


def test_the_published_prompt_and_target():
    record = {"instruction": "Is it?\n\nAnswer format: true/false", "answer": "true"}
    assert prompt(record) == "Is it?\n\nAnswer format: true/false\n"
    assert target(record) == "the correct answer is true"
    assert COMMONSENSE.max_new_tokens == 32


CASES = [
    ("the correct answer is answer3", True),
    ("the correct answer is answer3\n", True),
    ("the correct answer is   answer3  ", True),
    ("I think the correct answer is answer3", True),
    ("the correct answer is answer3.", False),
    ("the correct answer is Answer3", False),
    ("the correct answer is answer33", False),
    ("the correct answer is answer3 because", False),
    ("the correct answer is answer3\nthe correct answer is answer3", False),
    ("the correct answer is answer1", False),
    ("answer3", False),
    ("The correct answer is answer3", False),
    ("the correct answer isanswer3", False),
    ("the correct answer is ", False),
    ("", False),
]


@pytest.mark.parametrize(("generated", "right"), CASES)
def test_all_that_follows_the_phrase_must_be_the_answer(generated, right):
    assert is_right(generated, "answer3", TEST) is right
    assert is_right(generated, " answer3\n", TEST) is right


def test_an_absent_phrase_is_wrong_even_for_an_answer_that_is_not_there():
    assert not is_right("true", "true", TEST)


ROWS = {
    "boolq": {"question": "is the sky green", "answer": False, "passage": "never shown"},
    "piqa": {"goal": "To eat soup,", "sol1": "use a spoon.", "sol2": "use a fork.", "label": 0},
    "social_i_qa": {
        **{"context": "Kim ran.", "question": "Why?", "answerA": "late", "answerB": "bored", "answerC": "hungry"},
        "label": "3",
    },
    "hellaswag": {
        **{"activity_label": "Baking", "ctx": "A man bakes. he", "endings": ["a.", "b.", "c.", "d."]},
        "label": "1",
    },
    "winogrande": {
        "sentence": "The cup fell off the table as _ shook.",
        "option1": "cup",
        "option2": "table",
        "answer": "2",
    },
    "ARC-Easy": {
        "question": "Which?",
        "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]},
        "answerKey": "2",
    },
    "openbookqa": {
        **{"question_stem": "Sun is", "choices": {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]}},
        "answerKey": "D",
    },
}

INSTRUCTIONS = {
    "boolq": ("Please answer the following question with true or false, question: is the sky green?\n\n"
              "Answer format: true/false", "false"),
    "piqa": ("Please choose the correct solution to the question: To eat soup,\n\nSolution1: use a spoon.\n\n"
             "Solution2: use a fork.\n\nAnswer format: solution1/solution2", "solution1"),
    "social_i_qa": ("Please choose the correct answer to the question: Kim ran. Why?\n\nAnswer1: late Answer2: bored "
                    "Answer3: hungry\n\nAnswer format: answer1/answer2/answer3", "answer3"),
    "hellaswag": ("Please choose the correct ending to complete the given sentence: Baking: A man bakes. he\n\n"
                  "Ending1: a. Ending2: b. Ending3: c. Ending4: d.\n\n"
                  "Answer format: ending1/ending2/ending3/ending4", "ending2"),
    "winogrande": ("Please choose the correct answer to fill in the blank to complete the given sentence: The cup "
                   "fell off the table as _ shook.\n\nOption1: cup Option2: table "
                   "Answer format: option1/option2", "option2"),
    "ARC-Easy": ("Please choose the correct answer to the question: Which?\n\nAnswer1: x Answer2: y Answer3: z\n\n"
                 "Answer format: answer1/answer2/answer3", "answer2"),
    "openbookqa": ("Please choose the correct answer to the question: Sun is\n\nAnswer1: a Answer2: b Answer3: c "
                   "Answer4: d\n\nAnswer format: answer1/answer2/answer3/answer4", "answer4"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_hub_row_becomes_the_published_record(name):
    _, form = HUB[name]
    assert set(form.fields) <= set(ROWS[name])
    instruction, answer = INSTRUCTIONS[name]
    assert form.convert(ROWS[name]) == {"instruction": instruction, "answer": answer}


UNUSABLE = {"social_i_qa": {"label": ""}, "hellaswag": {"label": "4"}, "openbookqa": {"answerKey": "E"}}


@pytest.mark.parametrize(("name", "change"), [*UNUSABLE.items(), ("winogrande", {"answer": ""})])
def test_a_hub_row_without_a_usable_label_is_refused(name, change):
    with pytest.raises(ValueError, match=r"label|literal|not in list"):
        HUB[name][1].convert(ROWS[name] | change)


PARTS = {
    "boolq": r"Please .* question: (?P<question>.*)\?\n\nAnswer format: true/false",
    "piqa": r"Please .*? question: (?P<goal>.*)\n\nSolution1: (?P<sol1>.*)\n\nSolution2: (?P<sol2>.*)\n\nAnswer f.*",
    "social_i_qa": r"Please .*? question: (?P<context>.*) (?P<question>[^ ]*)\n\nAnswer1: (?P<answerA>.*) "
    r"Answer2: (?P<answerB>.*) Answer3: (?P<answerC>.*)\n\nAnswer format.*",
    "hellaswag": r"Please .*? sentence: (?P<activity_label>.*?): (?P<ctx>.*)\n\nEnding1: (.*) Ending2: (.*) "
    r"Ending3: (.*) Ending4: (.*)\n\nAnswer format.*",
    "winogrande": r"Please .*? sentence: (?P<sentence>.*)\n\nOption1: (?P<option1>.*) Option2: (?P<option2>.*) "
    r"Answer format.*",
    "ARC-Easy": r"Please .*? question: (?P<question>.*)\n\n(Answer1: .*)\n\nAnswer format.*",
    "ARC-Challenge": r"Please .*? question: (?P<question>.*)\n\n(Answer1: .*)\n\nAnswer format.*",
    "openbookqa": r"Please .*? question: (?P<question_stem>.*)\n\n(Answer1: .*)\n\nAnswer format.*",
}


def row_of(name: str, record: dict) -> dict:
    """The hub's row behind a published record, by its parts."""
    found = re.fullmatch(PARTS[name], record["instruction"], re.DOTALL)
    assert found, record
    row, number = found.groupdict(), record["answer"][-1]
    if name == "boolq":
        return row | {"answer": record["answer"] == "true"}
    if name == "hellaswag":
        return row | {"endings": list(found.groups()[2:]), "label": str(int(number) - 1)}
    if "(?P<answerA>" in PARTS[name]:
        return row | {"label": number}
    if name in ("piqa", "winogrande"):
        return row | ({"label": int(number) - 1} if name == "piqa" else {"answer": number})
    texts = re.split(r" ?Answer\d: ", found.groups()[-1])[1:]
    labels = [str(index) for index in range(1, len(texts) + 1)]
    return row | {"choices": {"text": texts, "label": labels}, "answerKey": number}


@needs_data
@pytest.mark.parametrize("name", PARTS)
def test_every_published_test_record_comes_back_from_its_parts(name):
    records = read_records(SHARED / "commonsense" / name / "test.jsonl.gz", {"instruction": str, "answer": str})
    convert = HUB[name][1].convert
    for record in records:
        assert convert(row_of(name, record)) == {"instruction": record["instruction"], "answer": record["answer"]}


@needs_data
@pytest.mark.parametrize("name", COMMONSENSE.tests)
def test_targets_are_the_published_outputs_and_are_right(name):
    records = read_records(SHARED / "commonsense" / name / "test.jsonl.gz", {"output": str})
    examples = load_test(COMMONSENSE, name, SHARED)
    assert [example.target for example in examples] == [record["output"] for record in records]
    assert all(is_right(example.target, example.answer, TEST) for example in examples)
    assert not any(is_right(example.prompt, example.answer, TEST) for example in examples)


@needs_data
def test_the_published_split_of_commonsense_15k():
    train, validation = load_train(COMMONSENSE, "commonsense_15k", SHARED, None, 0.0, 0)
    assert len(train) / (len(train) + len(validation)) == pytest.approx(0.7, abs=0.001)


@needs_data
def test_commonsense_15k_is_of_the_per_task_train_sets_as_its_note_warns():
    asked = "Please answer the following question with true or false"
    own = {example.prompt for example in load_train(COMMONSENSE, "boolq", SHARED, None, 0.0, 0)[0]}
    parts = load_train(COMMONSENSE, "commonsense_15k", SHARED, None, 0.0, 0)
    questions = [example.prompt for part in parts for example in part if example.prompt.startswith(asked)]
    assert len(questions) > 500
    assert sum(question in own for question in questions) / len(questions) > 0.95
    assert "subset" in COMMONSENSE.train_sets["commonsense_15k"].note


def test_every_part_that_is_published_is_there():
    assert list(COMMONSENSE.tests) == list(COMMONSENSE.averages["commonsense"])
    assert len(COMMONSENSE.tests) == 8
    assert {"commonsense_15k", "commonsense_170k"} < set(COMMONSENSE.train_sets)
    assert commonsense.TRIGGER == "the correct answer is "
