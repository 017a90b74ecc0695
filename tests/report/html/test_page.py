"""The page: all in one file, what it says, and that no text can become markup."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuroada.report.html.page import breakable, report_page
from neuroada.report.html.run import read_runs
from run_folders import HOSTILE, score

FINISHED = {
    "trainable_parameters": 1000,
    "parameters": 100_000,
    "surviving_deltas": None,
    "steps": 4,
    "training_seconds": 300.0,
    "seconds": 400.0,
    "tokens_per_second": 1234.5,
    "peak_memory_bytes": 2_000_000,
    "peak_memory_of": "resident, whole process",
    "adapter_bytes": 5_000,
    "merge": {"equal": False, "logits": 10, "differing": 2, "largest": 0.5},
}
COMMONSENSE = {"task": "commonsense", "train_set": "commonsense_15k", "train_records": 100}


class Parsed(HTMLParser):
    """A page as a browser reads it: elements in order with the names of their attributes, texts, and values."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.unseen = False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.unseen = tag in ("script", "style")
        if tag != "wbr":
            self.elements.append((tag, tuple(sorted(name for name, _ in attributes))))
            self.values += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        self.unseen = False

    def handle_data(self, data):
        if not self.unseen:
            self.texts.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    @property
    def text(self) -> str:
        return "".join(self.texts)


def page_of(*folders: Path) -> str:
    return report_page(read_runs(folders))


def words(page: str) -> str:
    return " ".join(Parsed(page).text.split())


def scored(when: str, *scores: dict) -> dict:
    return {"event": "scores", "when": when, "scores": list(scores)}


def test_a_trained_run_shows_all_its_parts(trained):
    page = page_of(trained["neuroada"])
    summary = json.loads((trained["neuroada"] / "summary.json").read_text())
    text = words(page)
    for phrase in (
        "NeuroAda k=2",
        f"{summary['trainable_parameters']:,}",
        f"{summary['held_out_loss_after']:.4f}before: {summary['held_out_loss_before']:.4f}",
        "bit for bit",
        "Scores in percent, with 95 % intervals",
        "The models differ: no published row is of tiny-llama; the rows are of",
        "Training loss",
        "Learning rate",
        f"{summary['surviving_deltas']:,} (",
        "change their weight after rounding to bfloat16",
        "Median size relative to the weight",
        "layer 1, down_proj: ",
        "training.learning_rate",
        "packages.torch",
    ):
        assert phrase in text
    elements = [tag for tag, _ in Parsed(page).elements]
    assert elements.count("script") == elements.count("style") == 1


def test_runs_stand_side_by_side(trained):
    text = words(page_of(trained["neuroada"], trained["lora"]))
    for phrase in ("2 runs", "neuroada, after", "lora, after", "before training", "Left out for LoRA", "ours: lora"):
        assert phrase in text


def test_a_page_is_the_same_each_time(trained):
    assert page_of(*trained.values()) == page_of(*trained.values())


def test_nothing_is_asked_of_a_network(trained):
    page = page_of(*trained.values())
    parsed = Parsed(page)
    links = [value for _, name, value in parsed.values if name in ("src", "href", "srcset", "action", "data", "poster")]
    assert links
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert not re.search(r"@import|url\(", page)
    assert not {"iframe", "object", "embed", "img", "base"} & {tag for tag, _ in parsed.elements}
    for link in links:
        assert link == "data:," or f'id="{link[1:]}"' in page


def test_only_our_script_is_allowed(trained):
    page = page_of(trained["neuroada"])
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (policy,) = [
        value for tag, name, value in Parsed(page).values if tag == "meta" and value and "default-src" in value
    ]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert not [name for _, names in Parsed(page).elements for name in names if name.startswith("on")]


def test_it_is_readable_without_the_script(trained):
    hidden = [tag for tag, names in Parsed(page_of(*trained.values())).elements if "hidden" in names]
    assert hidden == ["button", "form"]  # the toggle and the filters, which do nothing without it


def full_of(make_run, name: str, text: str) -> Path:
    """A run folder with this text wherever a file can hold one."""
    answer = {"test": text, "prompt": text, "answer": text, "generated": text, "right": True, "source": text}
    tested = {**score(text, 0.5), "metric": text, "note": text}
    return make_run(
        name,
        records=[{"event": "train", "step": 1, "loss": 1.0}, scored("before", tested), scored("after", tested)],
        answers={"before": [answer], "after": [answer]},
        summary={**FINISHED, "peak_memory_of": text},
        model={"name": text, "dtype": text},
        data={"task": text, "file": text, text: text},
        method=text,
        training={"max_steps": text, "list": [text], text: {text: text}},
    )


def test_texts_of_every_file_stay_texts(make_run):
    page = page_of(full_of(make_run, "hostile", HOSTILE))
    assert Parsed(page).elements == Parsed(page_of(full_of(make_run, "plain", "plain"))).elements
    assert Parsed(page).text.count(HOSTILE) > 10
    assert "{{ 7 * 7 }}" in page
    assert "<script>alert" not in page


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1).filter(str.strip))
def test_no_text_changes_the_structure(make_run, tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("any")
    plain, other = (full_of(make_run, str(folder / name), each) for name, each in (("p", "plain"), ("o", text)))
    assert Parsed(page_of(other)).elements == Parsed(page_of(plain)).elements


def test_a_text_that_escapes_would_be_noticed(make_run):
    page = page_of(full_of(make_run, "run", "plain<b>x"))
    loose = page.replace("&lt;", "<").replace("&gt;", ">")
    assert Parsed(loose).elements != Parsed(page).elements


def test_text_attacks_of_trained_runs_stay_texts(trained):
    parsed = Parsed(page_of(trained["neuroada"]))
    assert HOSTILE in parsed.text
    assert "img" not in {tag for tag, _ in parsed.elements}


def test_half_a_surrogate_pair_can_be_written(make_run):
    folder = make_run(answers={"after": [{"test": "t", "prompt": "a\ud800b", "generated": "", "right": True}]})
    page = page_of(folder)
    assert "a?b" in page
    page.encode("utf-8")


def test_names_may_break_after_their_signs():
    assert breakable("a_b/c.d-1<i>") == "a_<wbr>b/<wbr>c.<wbr>d-1&lt;i&gt;"


def test_an_unfinished_run_shows_what_there_is(make_run):
    records = [
        {"event": "evaluate", "when": "before", "loss": 3.5},
        scored("before", score("boolq", 0.4)),
        *({"event": "train", "step": step, "loss": 3.0 / step} for step in (1, 2)),
    ]
    folder = make_run("stopped", records=records, data=COMMONSENSE)
    text = words(page_of(folder))
    for phrase in (
        "unfinishedlast recorded step: 2",
        "before: 3.5000",
        "40.0[35.0, 45.0]",
        "Training loss",
        "There is no adapter in the folder yet.",
    ):
        assert phrase in text
    assert "Beside published" not in text


def test_a_run_without_any_record_is_a_page(make_run):
    assert "unfinishedno step recorded" in words(page_of(make_run()))


def test_different_tasks_stand_apart(make_run):
    one = make_run("one", data=COMMONSENSE, records=[scored("after", score("boolq", 0.5))])
    two = make_run("two", data={"task": "glue", "name": "cola"}, records=[scored("after", score("cola", 0.5))])
    parsed = Parsed(page_of(one, two, make_run("three", data=COMMONSENSE)))
    sections = [value for tag, name, value in parsed.values if (tag, name) == ("section", "id")]
    assert [name for name in sections if "-" not in name] == ["part1", "part2"]
    assert "GLUE cola" in parsed.text
    assert "part2-published" in sections


def test_costs_and_a_merge_that_differs(make_run):
    text = words(page_of(make_run(summary=FINISHED)))
    for phrase in (
        "1,0001.000 % of 100,000 parameters",
        "5 min4 steps; whole run 7 min",
        "tokens a second1,234",
        "2.00 MBresident, whole process",
        "5.00 kB",
        "no2 of 10 logits of a held-out batch differ, by up to 0.5",
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


def test_settings_that_differ_are_marked_and_stand_with_their_neighbours(make_run):
    one = make_run("one")
    two = make_run("two", neuroada={"k": 20, "budget": None}, training={"max_steps": 4, "learning_rate": 0.02})
    page = page_of(one, two)
    rows = re.findall(r"<tr( class=\"differs\")?>\s*<th scope=\"row\">(.*?)</th>", page, re.DOTALL)
    differing = [re.sub("<wbr>", "", name) for kind, name in rows if kind]
    assert differing == ["neuroada.k", "training.learning_rate"]
    names = [re.sub("<wbr>", "", name) for _, name in rows]
    assert names.index("neuroada.budget") == names.index("neuroada.k") + 1


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


@pytest.mark.parametrize("method", ["lora", "full", "ia3", "unheard-of"])
def test_other_methods_say_why_there_are_no_deltas(make_run, method):
    label = {"lora": "LoRA", "full": "full fine-tuning", "ia3": "(IA)³"}.get(method, method)
    assert f"Left out for {label}: " in words(page_of(make_run(method=method)))
