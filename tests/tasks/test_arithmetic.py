"""Arithmetic: published prompts and rules case by case, and the overlap of tests with the train set."""

from dataclasses import asdict
from pathlib import Path

import pytest

from neuroada.tasks.arithmetic import (
    ARITHMETIC,
    GSM8K,
    METAMATH,
    PUBLISHED_SAMPLING,
    aqua_record,
    extract_letter,
    extract_number,
    gsm8k_prompt,
    gsm8k_record,
    is_right,
    math_record,
    metamath_prompt,
    metamath_record,
    prompt,
)
from neuroada.tasks.generative import load_test, load_train

SHARED = Path(__file__).parents[3] / "shared" / "data"
NUMBERS, LETTERS = ARITHMETIC.tests["gsm8k"], ARITHMETIC.tests["AQuA"]

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")


def test_the_published_prompts():
    record = {"instruction": "1 + 1?\n "}
    header = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    assert prompt(record) == f"{header}\n\n### Instruction:\n1 + 1?\n \n\n### Response:\n"
    assert gsm8k_prompt({"instruction": "1 + 1?"}) == (
        "1 + 1?\nAnswer the above question. First think step by step and then answer the final number.\n"
    )
    assert metamath_prompt({"instruction": "1 + 1?"}) == (
        f"{header}\n\n### Instruction:\n1 + 1?\n\n### Response: Let's think step by step."
    )


def test_the_published_settings():
    assert asdict(PUBLISHED_SAMPLING) == {
        **{"temperature": 0.3, "top_p": 0.75, "top_k": 40, "num_beams": 4},
        "seed": 0,
    }
    assert (ARITHMETIC.max_new_tokens, GSM8K.max_new_tokens) == (512, 256)
    lengths = {name: test.max_new_tokens or METAMATH.max_new_tokens for name, test in METAMATH.tests.items()}
    assert lengths == {"gsm8k": 256, "MATH": 512}


NUMBER_CASES = [
    ("The answer is 18.", 18.0),
    ("The answer is 18", 18.0),
    ("-1,234.50", -1234.5),
    ("$1,000", 1000.0),
    ("it costs $1,000,000 now", 1000000.0),
    ("5.", 5.0),
    ("first 3, then 4", 4.0),
    ("18 (not 17)", 17.0),
    ("5%", 5.0),
    ("12.5 %", 12.5),
    ("3/4", 4.0),
    ("10 - 3 = 7", 7.0),
    ("10-3", -3.0),
    ("- 3", 3.0),
    (".5", 5.0),
    ("0.5", 0.5),
    ("+7", 7.0),
    ("1.5.2", 2.0),
    ("2^3", 3.0),
    ("1e3", 3.0),
    ("x2 = 9", 9.0),
    ("1 000", 0.0),
    ("#### 42", 42.0),
    ("The final answer is:  42", 42.0),
    ("42 apples\n\n### Instruction:\nAnother 7", 7.0),
    ("forty-two", None),
    ("-", None),
    (",", None),
    ("", None),
]


@pytest.mark.parametrize(("generated", "number"), NUMBER_CASES)
def test_the_number_is_the_last_one(generated, number):
    assert extract_number(generated) == number


@pytest.mark.parametrize(
    ("generated", "answer", "right"),
    [
        ("so 18.0009", "18.0", True),
        ("so 17.9991", "18", True),
        ("so 18.0011", "18.0", False),
        ("-1,234.50", "-1234.5", True),
        ("1234.5", "-1234.5", False),
        ("1.83", "1.8333333333333335", False),
        ("1.833", "1.8333333333333335", True),
        ("no number", "0", False),
        ("", "0.0", False),
        ("9" * 400, "9", False),
    ],
)
def test_a_number_is_right_within_the_tolerance(generated, answer, right):
    assert is_right(generated, answer, NUMBERS) is right


LETTER_CASES = [
    ("Answer: B.", "A"),
    ("The answer is (B).", "B"),
    ("the answer is B", "B"),
    ("(C) or (D)", "C"),
    ("A pencil costs 3, so B", "A"),
    ("Because of that, C", "B"),
    ("Rationale: x. The answer is (D).", "D"),
    ("it is E, none of these", "E"),
    ("answer b", ""),
    ("F", ""),
    ("", ""),
]


@pytest.mark.parametrize(("generated", "letter"), LETTER_CASES)
def test_the_letter_is_the_first_capital_from_a_to_e_anywhere(generated, letter):
    assert extract_letter(generated) == letter
    assert is_right(generated, "B", LETTERS) is (letter == "B")


def test_no_letter_is_wrong_whatever_the_answer():
    assert not any(is_right("none of them", answer, LETTERS) for answer in "ABCDE")


def test_hub_rows_become_published_records():
    row = {"question": "Janet has 2 ducks?", "answer": "She has <<2*540=1080>>1080.\n#### 1,080"}
    assert gsm8k_record(row) == {
        "instruction": "Janet has 2 ducks?",
        "output": "She has <<2*540=1080>>1080.\nThe final answer is:  1,080",
        "answer": "1080",
    }
    options = ["A)5(√3 + 1)", "B)6(√3 + √2)", "C)7(√3 – 1)", "D)8(√3 – 2)", "E)None of these"]
    assert aqua_record({"question": "How tall?", "options": options, "correct": "A"}) == {
        "instruction": "How tall? Answer Choices: (A) 5 (√3 + 1)  (B) 6 (√3 + √2)  (C) 7 (√3 – 1)  (D) 8 (√3 – 2)  "
        "(E) None of these",
        "answer": "A",
    }
    assert metamath_record({"query": "q", "response": "r"}) == {"instruction": "q", "output": "r"}
    solution = r"so $x=\boxed{\frac{1}{2}}$"
    assert math_record({"problem": "p", "solution": solution}) == {
        **{"instruction": "p", "output": solution},
        "answer": r"\frac{1}{2}",
    }


def test_published_averages():
    """Of the paper's Table 3 and README, LLaMA-7B: the k=20 row's mean is of seven, baselines' are of six."""
    k20 = {
        "MultiArith": 96.0,
        "gsm8k": 36.5,
        "AddSub": 92.4,
        "AQuA": 22.0,
        "SingleEq": 94.1,
        "SVAMP": 53.2,
        "mawps": 84.5,
    }
    lora = {"MultiArith": 95.0, "gsm8k": 37.5, "AddSub": 83.3, "AQuA": 18.9, "SingleEq": 84.4, "SVAMP": 52.1}
    k1 = {"gsm8k": 30.3, "AQuA": 22.8, "SVAMP": 48.9, "mawps": 77.7}

    def mean(scores, average):
        members = ARITHMETIC.averages[average]
        return round(sum(scores[name] for name in members) / len(members), 1)

    assert mean(k20, "arithmetic") == 68.4
    assert mean(k20, "arithmetic-hu") == 65.7
    assert mean(lora, "arithmetic-hu") == 61.9
    assert mean(k1, "arithmetic-wu") == 44.9


def test_contamination_is_told():
    told = {name: str(test.contamination) for name, test in ARITHMETIC.tests.items() if test.contamination}
    assert told == {
        "MultiArith": "471 of 600 questions are in math_10k",
        "AddSub": "327 of 395 questions are in math_10k",
        "SingleEq": "311 of 508 questions are in math_10k",
        "mawps": "53 of 238 questions are in math_10k",
    }


@pytest.fixture(scope="module")
def train_questions() -> set[str]:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    return {" ".join(e.prompt.split()) for e in load_train(ARITHMETIC, "math_10k", SHARED, None, 0.0, 0)[0]}


@pytest.mark.parametrize("name", ARITHMETIC.tests)
def test_contamination_is_as_told(name, train_questions):
    told = ARITHMETIC.tests[name].contamination
    shared = [" ".join(e.prompt.split()) in train_questions for e in load_test(ARITHMETIC, name, SHARED)]
    assert sum(shared) == (told.shared if told else 0)


@needs_data
@pytest.mark.parametrize("name", [name for name in ARITHMETIC.tests if ARITHMETIC.tests[name].kind == "number"])
def test_answers_are_right_by_the_published_rule(name):
    examples = load_test(ARITHMETIC, name, SHARED)
    assert all(is_right(f"So it is {example.answer}.", example.answer, NUMBERS) for example in examples)
    assert not any(is_right("So it is unclear.", example.answer, NUMBERS) for example in examples)


@needs_data
def test_most_published_outputs_reach_their_answers():
    """Test outputs are another model's, often wrong, and are not what is scored against."""
    train = load_train(ARITHMETIC, "math_10k", SHARED, 2000, 0.0, 0)[0]
    numbers = [example for example in train if example.answer.lstrip("-")[:1].isdigit()]
    right = sum(is_right(example.target, example.answer, NUMBERS) for example in numbers) / len(numbers)
    assert 0.9 < right <= 1
