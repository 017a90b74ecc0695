"""MetaMath: its rules for numbers and expressions case by case, and which spellings are the same answer."""

import pytest

from neuroada.tasks.arithmetic import METAMATH, boxed, is_right_metamath, normalise

METAMATH_NUMBERS = [
    ("It is 9. The answer is: 18", True),
    ("The answer is: 18.", True),
    ("The answer is: $18", True),
    ("The answer is: 36/2", True),
    ("The answer is: 18.4", True),
    ("The answer is: 18.6", False),
    ("The answer is: 1,8", True),
    ("The answer is: 17. No. The answer is: 18", True),
    ("The answer is: 18. No. The answer is: 17", False),
    ("The answer is: -18", False),
    ("The answer is: 18/0", True),
    ("The answer is: eighteen", False),
    ("The answer is:18", False),
    ("18", False),
    ("The answer is: " + "9" * 400, False),
    ("", False),
]


@pytest.mark.parametrize(("generated", "right"), METAMATH_NUMBERS)
def test_metamaths_rule_for_numbers(generated, right):
    assert is_right_metamath(generated, "18.0", METAMATH.tests["gsm8k"]) is right


METAMATH_EXPRESSIONS = [
    (r"So x. The answer is: \frac{1}{2}", r"\dfrac12", True),
    (r"The answer is: \frac{1}{2}.", r"\frac{1}{2}", True),
    ("The answer is: 1/2", r"\frac{1}{2}", True),
    ("The answer is: 0.5", r"\frac{1}{2}", True),
    ("The answer is: x = 5", "5", True),
    ("The answer is: 3.\nNext question 4", "3", True),
    (r"The answer is: 10\%", "10", True),
    (r"The answer is: \$10", "10", True),
    (r"The answer is: \left(3, 4\right)", "(3,4)", True),
    (r"The answer is: (4, 3)", "(3,4)", False),
    (r"so \boxed{7}", "7", True),
    (r"so \boxed{6} and \boxed{7}", "7", True),
    (r"so \boxed{7", "7", False),
    (r"\boxed{7} The answer is: 8", "7", False),
    ("7", "7", False),
    ("", "", False),
]


@pytest.mark.parametrize(("generated", "answer", "right"), METAMATH_EXPRESSIONS)
def test_the_rule_for_expressions(generated, answer, right):
    assert is_right_metamath(generated, answer, METAMATH.tests["MATH"]) is right


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so $\boxed{4}$.", "4"),
        (r"\boxed{1} no, \boxed{\frac{1}{2^{n}}}.", r"\frac{1}{2^{n}}"),
        (r"$\boxed 5$ apples", "5"),
        (r"\boxed{}", ""),
    ],
)
def test_what_is_boxed(solution, answer):
    assert boxed(solution) == answer


@pytest.mark.parametrize("solution", ["so 4", r"\boxed{4", r"\boxed{\frac{1}{2}"])
def test_a_solution_without_a_box_is_refused(solution):
    with pytest.raises(ValueError, match="boxed"):
        boxed(solution)


@pytest.mark.parametrize(
    "same",
    [
        (r"\frac{3}{4}", r"\tfrac34", r"\dfrac{3}4", r"\frac3{4}", "3/4", r" \frac {3} {4} "),
        (r"\sqrt{2}", r"\sqrt2", r"\sqrt 2"),
        ("0.25", ".25", "x=0.25"),
        ("-0.25", "-.25"),
        (r"(0.1,0.2]", r"\left( .1, .2 \right]"),
        ("90", r"90^\circ", r"90^{\circ}", r"90\%", r"\$90", r"90\text{ apples}", r"90 \text{ square feet}"),
        ("1000", r"1\!000"),
        (r"\frac{1}{2}", "0.5", ".5", "1/2"),
    ],
)
def test_spellings_of_the_same_answer(same):
    assert len({normalise(text) for text in same}) == 1


def test_different_answers_stay_different():
    different = [r"\frac{3}{4}", r"\frac{4}{3}", "34", r"\sqrt{2}", "2", "-2", "0.25", r"\text{even}", "x+2", "(1,2)"]
    assert len({normalise(text) for text in different}) == len(different)
    assert normalise(r"\leftarrow") == r"\leftarrow"
