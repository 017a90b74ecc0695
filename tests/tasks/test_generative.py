"""Families: which tests and train sets there are, how they are thinned and split, how a model is scored."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from neuroada.errors import ConfigError, MissingInputError
from neuroada.tasks import generative
from neuroada.tasks.arithmetic import ARITHMETIC
from neuroada.tasks.commonsense import COMMONSENSE
from neuroada.tasks.examples import Example, split, subset
from neuroada.tasks.generative import evaluate, load_test, load_train


def write(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def questions(count: int, first: int = 0) -> list[dict]:
    return [
        {"instruction": f"Is {n} odd?", "answer": "true" if n % 2 else "false"} for n in range(first, first + count)
    ]


def examples(prompts: list[str]) -> list[Example]:
    return [Example(prompt, "t", "a", f"file:{number}") for number, prompt in enumerate(prompts)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "commonsense" / "boolq" / "test.jsonl", questions(40))
    write(tmp_path / "boolq" / "train.jsonl", questions(50))
    write(tmp_path / "commonsense_15k" / "train.jsonl", questions(30))
    write(tmp_path / "commonsense_15k" / "validation.jsonl", questions(10, first=30))
    return tmp_path


def test_a_test_is_read_in_order_with_file_and_line(folder):
    found = load_test(COMMONSENSE, "boolq", folder)
    path = folder / "commonsense" / "boolq" / "test.jsonl"
    assert found[1] == Example("Is 1 odd?\n", "the correct answer is true", "true", f"{path}:2")
    assert len(found) == 40


def test_a_limit_is_a_seeded_subset_in_file_order(folder):
    chosen = load_test(COMMONSENSE, "boolq", folder, limit=10, seed=1)
    lines = [int(example.source.rsplit(":", 1)[1]) for example in chosen]
    assert len(set(lines)) == 10
    assert lines == sorted(lines) != list(range(1, 11))
    assert chosen == load_test(COMMONSENSE, "boolq", folder, limit=10, seed=1)
    assert chosen != load_test(COMMONSENSE, "boolq", folder, limit=10, seed=2)
    assert len(load_test(COMMONSENSE, "boolq", folder, limit=99)) == 40


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="limit 0: it leaves no record"):
        subset(examples(["a", "b"]), 0, seed=0)


def test_the_published_validation_part_is_used_whatever_share_is_asked(folder):
    train, validation = load_train(COMMONSENSE, "commonsense_15k", folder, limit=5, held_out=0.5, seed=0)
    assert len(train) == 5
    assert [example.prompt for example in validation] == [f"Is {n} odd?\n" for n in range(30, 40)]


def test_a_number_is_held_out_and_at_most_a_tenth():
    examples = [Example(f"{n}", "t", "a", f"f:{n}") for n in range(100)]
    assert [len(part) for part in split(examples, 4, seed=0)] == [96, 4]
    assert [len(part) for part in split(examples, 400, seed=0)] == [90, 10]


def test_a_share_is_held_out_before_the_limit(folder):
    whole, validation = load_train(COMMONSENSE, "boolq", folder, limit=None, held_out=0.2, seed=0)
    thin, same = load_train(COMMONSENSE, "boolq", folder, limit=7, held_out=0.2, seed=0)
    assert (len(whole), len(validation), len(thin)) == (40, 10, 7)
    assert validation == same
    assert set(thin) <= set(whole)
    assert not set(whole) & set(validation)
    assert load_train(COMMONSENSE, "boolq", folder, limit=None, held_out=0.0, seed=0)[1] == []


def test_equal_prompts_stay_on_one_side():
    repeated = examples([f"question {number % 20}" + " " * (number % 3) for number in range(100)])
    rest, held_out = split(repeated, 0.3, seed=0)
    assert len(held_out) == 30
    assert not {e.prompt.strip() for e in rest} & {e.prompt.strip() for e in held_out}
    assert [*map(repeated.index, rest)] == sorted(map(repeated.index, rest))
    assert split(repeated, 0.3, seed=1)[1] != held_out


def test_the_last_records_are_for_validation_where_published(tmp_path):
    from neuroada.tasks.arithmetic import GSM8K

    rows = [{"question": f"{n} + 1?", "answer": f"Add.\n#### {n + 1}"} for n in range(310)]
    write(tmp_path / "gsm8k" / "train.jsonl", rows)
    train, validation = load_train(GSM8K, "gsm8k", tmp_path, limit=None, held_out=0.5, seed=0)
    assert (len(train), len(validation)) == (10, 300)
    assert validation[0].answer == "11"


def test_nothing_left_to_train_on(tmp_path):
    from neuroada.tasks.arithmetic import GSM8K

    write(tmp_path / "gsm8k" / "train.jsonl", [{"question": "1 + 1?", "answer": "#### 2"}] * 300)
    with pytest.raises(ConfigError, match="train set 'gsm8k' of gsm8k: 300 records, none left to train on"):
        load_train(GSM8K, "gsm8k", tmp_path, limit=None, held_out=0.0, seed=0)


@pytest.mark.parametrize(
    ("family", "name", "full"),
    [
        (COMMONSENSE, "siqa", "social_i_qa"),
        (COMMONSENSE, "ARC-c", "ARC-Challenge"),
        (COMMONSENSE, "arc-e", "ARC-Easy"),
        (COMMONSENSE, "obqa", "openbookqa"),
        (COMMONSENSE, "BoolQ", "boolq"),
        (ARITHMETIC, "aqua", "AQuA"),
        (ARITHMETIC, "MAWPS", "mawps"),
    ],
)
def test_short_names(family, name, full):
    assert family.test_name(name) == full


def test_unknown_names_are_told_the_near_and_the_known_ones(tmp_path):
    with pytest.raises(
        ConfigError, match=r"test 'bolq' of commonsense: no such name. Did you mean 'boolq'\? Known: bo"
    ):
        load_test(COMMONSENSE, "bolq", tmp_path)
    with pytest.raises(ConfigError, match=r"train set 'math10k' of arithmetic: .* mean 'math_10k'\? Known: math_10k\."):
        load_train(ARITHMETIC, "math10k", tmp_path, None, 0.1, 0)
    with pytest.raises(ConfigError, match=r"no such name. Known: boolq"):
        load_test(COMMONSENSE, "zzzzzz", tmp_path)


def test_a_missing_test_says_what_was_looked_for(tmp_path):
    with pytest.raises(MissingInputError, match="no commonsense/piqa/test or piqa/test"):
        load_test(COMMONSENSE, "piqa", tmp_path)
    with pytest.raises(MissingInputError, match="math/AddSub/test: it is not on the hub in its published form"):
        load_test(ARITHMETIC, "AddSub", None)


@pytest.mark.parametrize(
    ("test", "answer", "message"),
    [
        ("SVAMP", "eight", "the answer 'eight' is not a number"),
        ("SVAMP", "nan", "the answer 'nan' is not a number"),
        ("AQuA", "F", "the answer 'F' is no letter of A to E"),
        ("AQuA", "AB", "the answer 'AB' is no letter of A to E"),
    ],
)
def test_an_answer_that_cannot_be_scored_is_named_before_anything_is_generated(tmp_path, test, answer, message):
    good = {"instruction": "?", "answer": "A" if test == "AQuA" else "-1.5"}
    write(tmp_path / test / "test.jsonl", [good, {"instruction": "?", "answer": answer}])
    with pytest.raises(MissingInputError, match=rf"test.jsonl:2: {message}"):
        load_test(ARITHMETIC, test, tmp_path)


def test_a_row_whose_fields_do_not_fit_together_is_named(tmp_path):
    from neuroada.tasks.arithmetic import GSM8K

    write(tmp_path / "gsm8k" / "train.jsonl", [{"question": "1 + 1?", "answer": "two"}])
    with pytest.raises(MissingInputError, match=r"train.jsonl:1: its fields do not fit together \(no ####"):
        load_train(GSM8K, "gsm8k", tmp_path, None, 0.0, 0)


def test_every_average_is_of_tests_that_there_are():
    for family in (COMMONSENSE, ARITHMETIC):
        for members in family.averages.values():
            assert set(members) <= set(family.tests)


def test_scoring_gives_a_row_an_example(monkeypatch, tiny_llama, byte_tokenizer):
    written = ["the correct answer is true", "the correct answer is false", "no idea"]
    asked = {}

    def generate(model, tokenizer, prompts, **settings):
        asked.update(settings, prompts=prompts)
        return written

    monkeypatch.setattr(generative, "generate", generate)
    data = [Example(f"p{n}", "t", "true", f"file:{n}") for n in range(3)]
    chosen = [replace(data[0], answer="false"), *data[1:]]
    score, _ = evaluate(tiny_llama, byte_tokenizer, COMMONSENSE, "boolq", chosen, batch_size=2)
    assert score.majority == pytest.approx(2 / 3)
    free = replace(COMMONSENSE, tests={"boolq": replace(COMMONSENSE.tests["boolq"], kind="number")})
    assert evaluate(tiny_llama, byte_tokenizer, free, "boolq", chosen, batch_size=2)[0].majority is None
    score, rows = evaluate(tiny_llama, byte_tokenizer, COMMONSENSE, "BoolQ", data, batch_size=2)
    assert (score.name, score.metric, score.count) == ("boolq", "accuracy", 3)
    assert score.value == pytest.approx(1 / 3)
    assert rows[0] == {
        "prompt": "p0",
        "answer": "true",
        "generated": "the correct answer is true",
        "right": True,
        "source": "file:0",
    }
    assert [row["right"] for row in rows] == [True, False, False]
    assert (asked["max_new_tokens"], asked["batch_size"], asked["prompts"]) == (32, 2, ["p0", "p1", "p2"])


def test_a_test_may_have_its_own_length_and_a_family_its_stop_words(monkeypatch, tiny_llama, byte_tokenizer):
    asked = {}

    def generate(*_, **settings):
        asked.update(settings)
        return ["the correct answer is true STOP more END"]

    monkeypatch.setattr(generative, "generate", generate)
    tests = {"boolq": replace(COMMONSENSE.tests["boolq"], max_new_tokens=7)}
    family = replace(COMMONSENSE, tests=tests, stop=("END", "STOP"))
    _, rows = evaluate(tiny_llama, byte_tokenizer, family, "boolq", examples(["p"]), batch_size=1)
    assert asked["max_new_tokens"] == 7
    assert rows[0]["generated"] == "the correct answer is true "


def test_a_model_is_scored_end_to_end(folder, tiny_llama, byte_tokenizer):
    data = load_test(COMMONSENSE, "boolq", folder, limit=3)
    done = []
    score, rows = evaluate(tiny_llama, byte_tokenizer, COMMONSENSE, "boolq", data, batch_size=2, advance=done.append)
    assert (score.count, len(rows), sum(done)) == (3, 3, 3)
    assert [row["prompt"] for row in rows] == [example.prompt for example in data]
