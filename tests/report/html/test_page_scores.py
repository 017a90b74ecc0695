"""The page: scores beside published ones, what is said about them, and costs."""

import re

from run_folders import COMMONSENSE, FINISHED, score, scored

from .pages import page_of, words


def test_costs_and_a_merge_that_differs(make_run):
    text = words(page_of(make_run(summary=FINISHED)))
    for phrase in (
        "1,0001.000 % of 100,000 parameters",
        "5 min4 steps; whole run 7 min",
        "tokens a second1,234",
        "2.00 MBresident, whole process",
        "5.00 kB",
        "not bit for bit2 of 10 logits of a held-out batch differ, by up to 0.5",
    ):
        assert phrase in text


def test_only_plain_text_has_a_perplexity(make_run):
    records = [{"event": "evaluate", "when": when, "loss": loss} for when, loss in (("before", 2.0), ("after", 1.0))]
    assert "perplexity2.72before: 7.39" in words(page_of(make_run(records=records)))
    assert "perplexity2.72" not in words(page_of(make_run("other", records=records, data=COMMONSENSE)))


def test_published_rows_of_the_same_model_come_first_and_ours_are_marked(make_run):
    tests = ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa")
    scores = [score(name, 0.7) for name in (*tests, "commonsense")]
    folder = make_run("mine", data=COMMONSENSE, model={"name": "org/Llama-2-7b-hf"}, records=[scored("after", *scores)])
    page = page_of(folder)
    text = words(page)
    assert "The models differ" not in text
    assert "Rows of our base model come first" in text
    assert "Ours are scored on 50 records a test." in text
    assert "Ours are trained on 100 records of commonsense_15k, 4 steps." in text
    assert "An average is over the tests that its row shows." in text
    table = page[page.index("Published scores, ours first") :]
    table = table[: table.index("</table>")]
    rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
    assert 'class="ours"' in rows[1]
    assert "ours: mine" in rows[1]
    models = [re.sub(r"<.*?>", "", re.findall(r"<td>(.*?)</td>", row, re.DOTALL)[0]) for row in rows[2:]]
    same = models.count("Llama-2-7B")
    assert models[:same] == ["Llama-2-7B"] * same
    assert {"LLaMA-7B", "LLaMA-13B", "Llama-3-8B"} <= set(models[same:])
    for value in ("73.6", "86.5", "84.3"):  # NeuroAda k=20 of the paper's Table 2
        assert value in table


def test_contamination_is_said_wherever_a_score_is(make_run):
    note = "contaminated: 471 of 600 questions are in math_10k"
    scores = [
        score("MultiArith", 0.5, note=note),
        score("gsm8k", 0.1),
        score("arithmetic", 0.3, note="contaminated: M"),
    ]
    folder = make_run(data={"task": "arithmetic", "train_set": "math_10k"}, records=[scored("after", *scores)])
    text = words(page_of(folder))
    assert text.count(note) == 1
    assert "contaminated: M" in text[: text.index("In percent")]
    assert "50.0†" in text
    assert "30.0†" in text
    assert "† shares questions with the train set, in the papers too" in text


def test_scores_before_that_are_equal_stand_once(make_run):
    records = [scored("before", score("cola", 0.1)), scored("after", score("cola", 0.4))]
    data = {"task": "glue", "name": "cola"}
    same = [make_run(name, records=records, data=data) for name in ("one", "two")]
    other = make_run("three", records=[scored("before", score("cola", 0.2))], data=data)
    assert "before training" in words(page_of(*same))
    text = words(page_of(*same, other))
    assert "before training ↕" not in text
    for phrase in ("one, before", "two, before", "three, before"):
        assert phrase in text


def test_a_single_run_shows_the_change(make_run):
    records = [scored("before", score("cola", 0.15)), scored("after", score("cola", 0.4))]
    text = words(page_of(make_run(records=records, data={"task": "glue", "name": "cola"})))
    assert "+25.0" in text


def test_values_that_are_not_finite_are_no_error(make_run):
    nan = float("nan")
    records = [
        {"event": "train", "step": 1, "loss": nan, "learning_rate": 0.1},
        {"event": "train", "step": 2, "loss": 1.0},
        {"event": "train", "step": 3, "loss": 0.5},
        {"event": "evaluate", "when": "after", "loss": float("inf")},
        scored("after", score("boolq", nan)),
    ]
    text = words(page_of(make_run(records=records, data=COMMONSENSE)))
    assert "1 values are not finite and are left out" in text


def test_what_guessing_would_reach_stands_beside_a_tests_name(make_run):
    runs = [
        make_run(name, data=COMMONSENSE, records=[scored("after", score("boolq", 0.7, **known))])
        for name, known in (("a", {"majority": 0.6}), ("b", {"majority": 0.625}), ("c", {}))
    ]
    assert "always the most frequent answer: 60.0–62.5" in words(page_of(*runs))
    assert "most frequent" not in words(page_of(runs[-1]))
