"""The page: all in one file, and which parts it has."""

import base64
import hashlib
import json
import re

import pytest

from run_folders import COMMONSENSE, score, scored

from .pages import Parsed, page_of, words


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


def test_settings_that_differ_are_marked_and_stand_with_their_neighbours(make_run):
    one = make_run("one")
    two = make_run("two", neuroada={"k": 20, "budget": None}, training={"max_steps": 4, "learning_rate": 0.02})
    page = page_of(one, two)
    rows = re.findall(r"<tr( class=\"differs\")?>\s*<th scope=\"row\">(.*?)</th>", page, re.DOTALL)
    differing = [re.sub("<wbr>", "", name) for kind, name in rows if kind]
    assert differing == ["neuroada.k", "training.learning_rate"]
    names = [re.sub("<wbr>", "", name) for _, name in rows]
    assert names.index("neuroada.budget") == names.index("neuroada.k") + 1


@pytest.mark.parametrize("method", ["lora", "full", "ia3", "unheard-of"])
def test_other_methods_say_why_there_are_no_deltas(make_run, method):
    label = {"lora": "LoRA", "full": "full fine-tuning", "ia3": "(IA)³"}.get(method, method)
    assert f"Left out for {label}: " in words(page_of(make_run(method=method)))
