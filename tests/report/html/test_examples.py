"""Answers before and after training become examples by kind of change."""

import pytest

from neuroada.report.html.examples import CHANGES, LONGEST, PER_KIND, clipped, read_examples, spread
from neuroada.report.html.run import read_runs


def answers(*right: bool | None, test: str = "boolq") -> list[dict]:
    return [
        {"test": test, "prompt": f"p{n}", "answer": "true", "generated": f"g{n}", "right": r, "source": f"f:{n}"}
        for n, r in enumerate(right)
    ]


def examples_of(make_run, **given):
    (run,) = read_runs([make_run(answers=given)])
    return read_examples(run)


def test_records_are_paired_by_their_source_and_counted(make_run):
    after = list(reversed(answers(True, False, True, False)))
    found = examples_of(make_run, before=answers(False, True, True, False), after=after)
    assert found.counts == {"boolq": dict.fromkeys(CHANGES[:4], 1)}
    assert [example.change for example in found.shown] == list(CHANGES[:4])
    first = found.shown[0]
    assert (first.place, first.prompt, first.before, first.after) == ("f:0", "p0", "g0", "g0")


def test_answers_of_one_time_are_right_or_wrong(make_run):
    found = examples_of(make_run, after=answers(True, False))
    assert found.counts == {"boolq": {"right": 1, "wrong": 1}}
    assert [(example.before, example.given) for example in found.shown] == [(None, "g0"), (None, "g1")]


def test_labels_are_right_where_they_are_equal_and_values_are_neither(make_run):
    labels = [{"test": "cola", "index": n, "answer": 1, "generated": guess} for n, guess in enumerate((1, 0))]
    values = [{"test": "stsb", "index": 0, "answer": 2.5, "generated": 2.5}]
    found = examples_of(make_run, before=labels[::-1], after=[*labels, *values])
    assert found.counts == {
        "cola": {"right before and after": 1, "wrong before and after": 1},
        "stsb": {"neither right nor wrong": 1},
    }
    assert {example.place for example in found.shown} == {"record 0", "record 1"}


def test_a_few_of_each_kind_are_shown_from_all_over(make_run):
    found = examples_of(make_run, after=answers(*[True] * 99, False))
    assert [example.place for example in found.shown if example.change == "right"] == ["f:0", "f:24", "f:49", "f:74"]
    assert len(found.shown) == PER_KIND + 1
    assert found.counts["boolq"] == {"right": 99, "wrong": 1}
    assert spread([1, 2, 3], 5) == [1, 2, 3]


def test_no_answers_are_no_examples(make_run):
    assert examples_of(make_run) is None


@pytest.mark.parametrize("length", [LONGEST, LONGEST + 1])
def test_very_long_texts_say_how_much_is_left_out(length):
    shown = clipped("x" * length)
    assert shown == "x" * LONGEST + (" … (1 more characters)" if length > LONGEST else "")
