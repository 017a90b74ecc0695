"""Eight commonsense tests in the form of LLM-Adapters: the model names the right choice after a fixed phrase.

The hub has their sources instead; `*_record` make the published form of them, and its tests show that they do.
"""

from collections.abc import Sequence
from typing import Any

from neuroada.tasks.generative import Family, Form, Place, Test, TrainSet
from neuroada.tasks.records import Hub

TRIGGER = "the correct answer is "

MAX_NEW_TOKENS = 32

PUBLISHED = Form({"instruction": str, "answer": str})

Record = dict[str, Any]


def prompt(record: Record) -> str:
    """The instruction and a line break."""
    return f"{record['instruction']}\n"


def target(record: Record) -> str:
    """The phrase and the answer."""
    return TRIGGER + record["answer"]


def is_right(generated: str, answer: str, test: Test) -> bool:
    """Whether all that follows the first phrase is the answer, white space around it aside."""
    return extract(generated) == answer.strip()


def extract(generated: str) -> str:
    """What follows the first phrase, to the end, stripped; nothing where the phrase is absent."""
    return generated.partition(TRIGGER)[2].strip()


def boolq_record(row: Record) -> Record:
    """A row of google/boolq; the passage is not shown, as published."""
    question = f"Please answer the following question with true or false, question: {row['question']}?"
    return _record(question, "\n\nAnswer format: true/false", "true" if row["answer"] else "false")


def piqa_record(row: Record) -> Record:
    """A row of baber/piqa."""
    choices = [row["sol1"], row["sol2"]]
    question = f"Please choose the correct solution to the question: {row['goal']}"
    return _record(question, *_choices("solution", choices, "\n\n"), _named("solution", row["label"], choices))


def social_i_qa_record(row: Record) -> Record:
    """A row of lighteval/siqa, whose labels count from 1."""
    choices = [row["answerA"], row["answerB"], row["answerC"]]
    question = f"Please choose the correct answer to the question: {row['context']} {row['question']}"
    return _record(question, *_choices("answer", choices), _named("answer", int(row["label"]) - 1, choices))


def hellaswag_record(row: Record) -> Record:
    """A row of Rowan/hellaswag."""
    sentence = f"{row['activity_label']}: {row['ctx']}"
    question = f"Please choose the correct ending to complete the given sentence: {sentence}"
    answer = _named("ending", int(row["label"]), row["endings"])
    return _record(question, *_choices("ending", row["endings"]), answer)


def winogrande_record(row: Record) -> Record:
    """A row of allenai/winogrande, whose labels count from 1."""
    choices = [row["option1"], row["option2"]]
    asked = "Please choose the correct answer to fill in the blank to complete the given sentence"
    options, form = _choices("option", choices)
    answer = _named("option", int(row["answer"]) - 1, choices)
    return _record(f"{asked}: {row['sentence']}", options, form.replace("\n\n", " "), answer)


def choice_record(row: Record) -> Record:
    """A row of allenai/ai2_arc or allenai/openbookqa."""
    choices = row["choices"]["text"]
    question = row["question_stem"] if "question_stem" in row else row["question"]
    answer = _named("answer", row["choices"]["label"].index(row["answerKey"]), choices)
    return _record(
        f"Please choose the correct answer to the question: {question}", *_choices("answer", choices), answer
    )


def _choices(word: str, choices: Sequence[str], between: str = " ") -> tuple[str, str]:
    """The numbered choices, and the answer format that names them."""
    numbered = [f"{word.capitalize()}{number}: {choice}" for number, choice in enumerate(choices, start=1)]
    names = "/".join(f"{word}{number}" for number in range(1, len(choices) + 1))
    return "\n\n" + between.join(numbered), f"\n\nAnswer format: {names}"


def _named(word: str, index: int, choices: Sequence[str]) -> str:
    if not 0 <= index < len(choices):
        raise ValueError(f"label {index} for {len(choices)} choices")
    return f"{word}{index + 1}"


def _record(*parts: str) -> Record:
    *instruction, answer = parts
    return {"instruction": "".join(instruction), "answer": answer}


HUB: dict[str, tuple[Hub, Form]] = {
    "boolq": (("google/boolq", None, "validation"), Form({"question": str, "answer": bool}, boolq_record)),
    "piqa": (
        ("baber/piqa", None, "validation"),
        Form({"goal": str, "sol1": str, "sol2": str, "label": int}, piqa_record, ("sol1", "sol2")),
    ),
    "social_i_qa": (
        ("lighteval/siqa", None, "validation"),
        Form(
            {"context": str, "question": str, "answerA": str, "answerB": str, "answerC": str, "label": str},
            social_i_qa_record,
            ("answerA", "answerB", "answerC"),
        ),
    ),
    "hellaswag": (
        ("Rowan/hellaswag", None, "validation"),
        Form({"activity_label": str, "ctx": str, "endings": list, "label": str}, hellaswag_record),
    ),
    "winogrande": (
        ("allenai/winogrande", "winogrande_xl", "validation"),
        Form({"sentence": str, "option1": str, "option2": str, "answer": str}, winogrande_record),
    ),
    "ARC-Easy": (
        ("allenai/ai2_arc", "ARC-Easy", "test"),
        Form({"question": str, "choices": dict, "answerKey": str}, choice_record),
    ),
    "ARC-Challenge": (
        ("allenai/ai2_arc", "ARC-Challenge", "test"),
        Form({"question": str, "choices": dict, "answerKey": str}, choice_record),
    ),
    "openbookqa": (
        ("allenai/openbookqa", "main", "test"),
        Form({"question_stem": str, "choices": dict, "answerKey": str}, choice_record),
    ),
}
"""The source of each published test on the hub: validation parts where the tests' labels are secret."""


def _place(name: str, part: str, hub: Hub | None = None, hub_form: Form | None = None) -> Place:
    return Place((f"commonsense/{name}/{part}", f"{name}/{part}"), PUBLISHED, hub, hub_form)


def _train_set(name: str) -> TrainSet:
    (hub, configuration, _), form = HUB[name]
    return TrainSet(_place(name, "train", (hub, configuration, "train"), form))


COMMONSENSE = Family(
    name="commonsense",
    tests={name: Test(_place(name, "test", hub, form), "word") for name, (hub, form) in HUB.items()},
    train_sets={
        "commonsense_15k": TrainSet(
            _place("commonsense_15k", "train"),
            validation=_place("commonsense_15k", "validation"),
            note="a subset of the tests' own train sets: do not train on those and validate on it",
        ),
        "commonsense_170k": TrainSet(
            _place("commonsense_170k", "train", ("zwhe99/commonsense_170k", None, "train"), PUBLISHED)
        ),
        **{name: _train_set(name) for name in HUB},
    },
    averages={"commonsense": tuple(HUB)},
    max_new_tokens=MAX_NEW_TOKENS,
    prompt=prompt,
    target=target,
    is_right=is_right,
    aliases={"siqa": "social_i_qa", "ARC-e": "ARC-Easy", "ARC-c": "ARC-Challenge", "obqa": "openbookqa"},
)
"""Every choice counts the same within a test, and every test the same in the average, as in the papers."""
