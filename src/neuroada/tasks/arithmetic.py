"""Word problems answered by a chain of thought: math_10k as in LLM-Adapters, GSM8K alone, and MetaMathQA.

What counts as the answer are the published rules, quirks included: of "3/4" the number is 4, of "5%" it is 5, and
"A pencil costs" is answer A. `tests/tasks/test_arithmetic.py` lists such cases.
"""

import re
from typing import Any

from neuroada.tasks.generation import Sampling
from neuroada.tasks.generative import Contamination, Family, Form, Kind, Place, Test, TrainSet
from neuroada.tasks.records import Hub

PUBLISHED_SAMPLING = Sampling(temperature=0.3, top_p=0.75, top_k=40, num_beams=4)
"""Of the paper's arithmetic scores (Appendix C.1), with the family's 512 new tokens."""

TOLERANCE = 0.001
"""How far a number may be from the answer, as published."""

HEADER = "Below is an instruction that describes a task. Write a response that appropriately completes the request."

STEPS = "Answer the above question. First think step by step and then answer the final number."

METAMATH_ANSWER = "The answer is: "

NUMBER = re.compile(r"-?\d+\.?\d*")

SIGNED_FRACTION = re.compile(r"([-+]?\d*\.?\d+)(?:/(\d+))?")

Record = dict[str, Any]


def alpaca_prompt(instruction: str) -> str:
    """The prompt of Alpaca for an instruction without an input."""
    return f"{HEADER}\n\n### Instruction:\n{instruction}\n\n### Response:\n"


def prompt(record: Record) -> str:
    """Alpaca's, as published for math_10k."""
    return alpaca_prompt(record["instruction"])


def gsm8k_prompt(record: Record) -> str:
    """That of the published runs on GSM8K alone."""
    return f"{record['instruction']}\n{STEPS}\n"


def metamath_prompt(record: Record) -> str:
    """MetaMath's; the NEAT paper, which trains on its data, prints none."""
    return f"{alpaca_prompt(record['instruction']).rstrip()} Let's think step by step."


def target(record: Record) -> str:
    """The chain of thought; tests need not have one."""
    return record.get("output", "")


def extract_number(generated: str) -> float | None:
    """The last number, commas taken out; None where there is none."""
    numbers = NUMBER.findall(generated.replace(",", ""))
    return float(numbers[-1]) if numbers else None


def extract_letter(generated: str) -> str:
    """The first capital from A to E anywhere; empty where there is none."""
    found = re.search("[A-E]", generated)
    return found.group() if found else ""


def is_right(generated: str, answer: str, test: Test) -> bool:
    """The published rule: the last number close enough, or the first letter equal."""
    if test.kind == "letter":
        return extract_letter(generated) == answer.strip()
    number = extract_number(generated)
    return number is not None and abs(number - float(answer)) <= TOLERANCE


def is_right_metamath(generated: str, answer: str, test: Test) -> bool:
    """MetaMath's rule for what follows its last "The answer is: ": the first number, rounded, or an equal expression.

    Without that phrase, which a model learns from MetaMathQA, the last boxed expression counts for MATH.
    """
    _, phrase, claimed = generated.rpartition(METAMATH_ANSWER)
    if test.kind == "number":
        found = SIGNED_FRACTION.search(claimed.replace(",", "")) if phrase else None
        if found is None:
            return False
        number = float(found.group(1)) / (float(found.group(2) or 1) or 1)
        return abs(number) < float("inf") and round(number) == round(float(answer))
    if phrase:
        claimed = claimed.split(".\n")[0].strip().removesuffix(".")
    else:
        try:
            claimed = boxed(generated)
        except ValueError:
            return False
    return normalise(claimed) == normalise(answer)


def boxed(solution: str) -> str:
    r"""What stands in the last \boxed{...} of a solution.

    Raises:
        ValueError: there is none, or its braces do not close.
    """
    _, found, rest = solution.rpartition(r"\boxed")
    if not found:
        raise ValueError(r"no \boxed{} in the solution")
    if not rest.startswith("{"):
        return next(iter(rest.partition("$")[0].split()), "")
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if not depth:
            return rest[1:place]
    raise ValueError(r"the braces of the last \boxed{} do not close")


def normalise(expression: str) -> str:
    r"""One spelling of a LaTeX answer, after the rules of the MATH data set: no white space, units, signs of percent
    and currency, \left and \right; one kind of fraction and root, their arguments in braces; no "x =" before it."""
    text = re.sub(r"\\(?:text|mbox)\{\s[^{}]*\}\s*$", "", expression.strip())
    text = re.sub(r"\\!|\\left(?![a-z])|\\right(?![a-z])|\^\{?\\circ\}?|\\?[$%]|\s", "", text)
    text = re.sub(r"\\[td]frac", r"\\frac", text)
    text = re.sub(r"^[A-Za-z]{1,2}=", "", text)
    text = re.sub(r"(^|[{,(\[])(-?)\.(?=\d)", r"\1\g<2>0.", text)
    text = re.sub(r"\\sqrt([^{\[])", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac([^{])", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\{[^{}]*\})([^{])", r"\1{\2}", text)
    text = re.sub(r"^(-?\d+)/(\d+)$", r"\\frac{\1}{\2}", text)
    return r"\frac{1}{2}" if text == "0.5" else text


def gsm8k_record(row: Record) -> Record:
    """A row of openai/gsm8k: the number after the hashes is the answer."""
    solution, hashes, answer = row["answer"].rpartition("####")
    if not hashes:
        raise ValueError("no #### before the answer")
    return {
        "instruction": row["question"],
        "output": f"{solution}The final answer is: {answer}",
        "answer": answer.strip().replace(",", ""),
    }


def aqua_record(row: Record) -> Record:
    """A row of deepmind/aqua_rat, its choices spaced as published: around every bracket."""
    choices = "".join(f"({choice}" for choice in row["options"])
    spaced = choices.replace("(", " (").replace(")", ") ")
    return {"instruction": f"{row['question']} Answer Choices:{spaced}", "answer": row["correct"]}


def metamath_record(row: Record) -> Record:
    """A row of meta-math/MetaMathQA."""
    return {"instruction": row["query"], "output": row["response"]}


def math_record(row: Record) -> Record:
    """A row of MATH: the boxed expression of the solution is the answer."""
    return {"instruction": row["problem"], "output": row["solution"], "answer": boxed(row["solution"])}


TEST = Form({"instruction": str, "answer": str})
TRAIN = Form({"instruction": str, "output": str})
GSM8K_ROW = Form({"question": str, "answer": str}, gsm8k_record)
AQUA_ROW = Form({"question": str, "options": list, "correct": str}, aqua_record)
METAMATH_ROW = Form({"query": str, "response": str}, metamath_record)
MATH_ROW = Form({"problem": str, "solution": str}, math_record)


def _files(name: str, part: str) -> tuple[str, ...]:
    return f"math/{name}/{part}", f"{name}/{part}"


def _test(name: str, kind: Kind = "number", shared: tuple[int, int] | None = None) -> Test:
    contamination = Contamination("math_10k", *shared) if shared else None
    return Test(Place(_files(name, "test"), TEST), kind, contamination)


def _gsm8k_test(max_new_tokens: int | None = None) -> Test:
    hub: Hub = ("openai/gsm8k", "main", "test")
    return Test(Place(_files("gsm8k", "test"), TEST, hub, GSM8K_ROW), "number", max_new_tokens=max_new_tokens)


ARITHMETIC = Family(
    name="arithmetic",
    tests={
        "MultiArith": _test("MultiArith", shared=(471, 600)),
        "gsm8k": _gsm8k_test(),
        "AddSub": _test("AddSub", shared=(327, 395)),
        "AQuA": Test(
            Place(_files("AQuA", "test"), TEST, ("deepmind/aqua_rat", "raw", "test"), AQUA_ROW),
            "letter",
        ),
        "SingleEq": _test("SingleEq", shared=(311, 508)),
        "SVAMP": _test("SVAMP"),
        "mawps": _test("mawps", shared=(53, 238)),
        "mathqa": _test("mathqa", "letter"),
    },
    train_sets={"math_10k": TrainSet(Place(_files("math_10k", "train"), TRAIN))},
    averages={
        "arithmetic": ("MultiArith", "gsm8k", "AddSub", "AQuA", "SingleEq", "SVAMP", "mawps"),
        "arithmetic-hu": ("MultiArith", "gsm8k", "AddSub", "AQuA", "SingleEq", "SVAMP"),
        "arithmetic-wu": ("gsm8k", "AQuA", "SVAMP", "mawps"),
    },
    max_new_tokens=512,
    prompt=prompt,
    target=target,
    is_right=is_right,
)
"""The averages: all seven, as the NeuroAda paper's k=20 rows and README state; Hu et al. 2023's six; Wu et al. 2024's
four, of the paper's k=1 rows. Table 3 sets the mean of seven (68.4, LLaMA-7B) beside others' means of six."""

GSM8K = Family(
    name="gsm8k",
    tests={"gsm8k": _gsm8k_test()},
    train_sets={
        "gsm8k": TrainSet(
            Place(_files("gsm8k", "train"), GSM8K_ROW, ("openai/gsm8k", "main", "train")),
            last=300,
        )
    },
    averages={},
    max_new_tokens=256,
    prompt=gsm8k_prompt,
    target=target,
    is_right=is_right,
)
"""The published protocol for choosing settings: the last 300 training records are for validation."""

METAMATH = Family(
    name="metamath",
    tests={
        "gsm8k": _gsm8k_test(max_new_tokens=256),
        "MATH": Test(
            Place(_files("MATH", "test"), MATH_ROW, ("DigitalLearningGmbH/MATH-lighteval", None, "test")),
            "expression",
        ),
    },
    train_sets={
        "MetaMathQA": TrainSet(
            Place(_files("MetaMathQA", "train"), METAMATH_ROW, ("meta-math/MetaMathQA", None, "train"))
        )
    },
    averages={"metamath": ("gsm8k", "MATH")},
    max_new_tokens=512,
    prompt=metamath_prompt,
    target=target,
    is_right=is_right_metamath,
    stop=("Question", "USER", "ASSISTANT", "Instruction", "Response"),
)
"""NEAT's Table 2, with its 256 and 512 new tokens (Appendix C.4); MetaMath's evaluation ends a text at those words."""
