"""The page: no text can become markup."""

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuroada.report.html.page import breakable
from run_folders import FINISHED, HOSTILE, score, scored

from .pages import Parsed, page_of


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
