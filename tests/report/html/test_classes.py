"""Runs on images: accuracy by class, the confusion matrix, and pictures as examples."""

import base64
import re
from html.parser import HTMLParser
from itertools import count

import pytest
from scipy.stats import binomtest

from neuroada.report.html.charts import RIGHT, TOP
from neuroada.report.html.classes import LETTERS, MOST_CLASSES, PAIRS, class_views
from neuroada.report.html.examples import LARGEST, PICTURES_PER_KIND, read_examples
from neuroada.report.html.page import report_page
from neuroada.report.html.run import read_runs
from run_folders import HOSTILE

IMAGE = "data:image/jpeg;base64," + base64.b64encode(b"\xff\xd8 a picture \xff\xd9").decode()
COLOURS = {"task": "images", "name": "colours"}


def answers(*pairs: tuple[str, str], image: str | None = IMAGE) -> list[dict]:
    """Of (class, what it was taken for)."""
    return [
        {"test": "colours", "answer": true, "generated": guess, "right": true == guess, "source": f"{n}.png"}
        | ({} if image is None else {"image": image})
        for n, (true, guess) in enumerate(pairs)
    ]


BEFORE = answers(("red", "blue"), ("red", "blue"), ("red", "red"), ("blue", "blue"), ("green", "blue"))
AFTER = answers(("red", "red"), ("red", "green"), ("red", "red"), ("blue", "red"), ("green", "green"))


@pytest.fixture
def runs_of(make_run):
    numbers = count()

    def runs(*given: dict, data=COLOURS, labels=None) -> list:
        folders = []
        for each in given:
            folders.append(make_run(f"run{next(numbers)}", answers=each, data=data))
            if labels is not None:
                (folders[-1] / "environment.json").write_text(f'{{"labels": {labels}}}'.replace("'", '"'))
        return read_runs(folders)

    return runs


def texts(row) -> list[str]:
    return [cell.text for cell in row.cells]


def test_accuracy_by_class_before_and_after_with_intervals(runs_of):
    (view,) = class_views(runs_of({"before": BEFORE, "after": AFTER}))
    assert view.table.header == ["class", "pictures", "before training", "after training", "most often mistaken for"]
    assert [texts(row) for row in view.table.rows] == [
        ["blue", "1", "100.0", "0.0", "red"],
        ["green", "1", "0.0", "100.0", "—"],
        ["red", "3", "33.3", "66.7", "green"],
    ]
    red = view.table.rows[2].cells
    low, high = binomtest(2, 3).proportion_ci(0.95, method="wilson")
    assert red[3].detail == f"[{100 * low:.1f}, {100 * high:.1f}]"
    assert red[4].detail == "1 of 3"
    assert view.pairs is None


def test_the_matrix_has_a_row_for_each_true_class(runs_of):
    (view,) = class_views(runs_of({"before": BEFORE, "after": AFTER}, labels=["red", "green", "blue"]))
    matrix = view.matrix
    assert matrix.title == "Confusion matrix, after training"
    assert [name for _, name in matrix.rows] == [name for _, name in matrix.columns] == ["red", "green", "blue"]
    found = {cell.title: cell for cell in matrix.cells}
    assert found.keys() == {
        "red, rightly: 2 of 3",
        "red, taken for green: 1 of 3",
        "green, rightly: 1 of 1",
        "blue, rightly: 0 of 1",
        "blue, taken for red: 1 of 1",
    }
    assert [found[t].strength for t in ("red, rightly: 2 of 3", "blue, taken for red: 1 of 1")] == [0.667, 1.0]
    assert (found["red, rightly: 2 of 3"].text, found["blue, rightly: 0 of 1"].text) == ("2", "")
    wrong = found["red, taken for green: 1 of 3"]
    assert wrong.y == found["red, rightly: 2 of 3"].y == TOP, "the first row"
    assert wrong.x == found["green, rightly: 1 of 1"].x, "the second column"


@pytest.mark.parametrize("size", [2, 10, MOST_CLASSES, MOST_CLASSES + 1])
def test_many_classes_stay_inside_the_figure_or_are_listed(runs_of, size):
    names = [f"class number {n:03} of {size}" for n in range(size)]
    given = answers(*((name, names[(n + n % 2) % size]) for n, name in enumerate(names)))
    (view,) = class_views(runs_of({"after": given}))
    assert len(view.table.rows) == size
    if size > MOST_CLASSES:
        assert view.matrix is None
        assert len(view.pairs.rows) == PAIRS
        assert texts(view.pairs.rows[0]) == [names[1], names[2], "1"]
        return
    matrix = view.matrix
    assert all(len(name) <= LETTERS for _, name in matrix.rows)
    for cell in matrix.cells:
        assert 0 <= cell.x <= cell.x + matrix.cell_width <= RIGHT + 0.5
        assert TOP <= cell.y <= cell.y + matrix.cell_height <= matrix.bottom + 0.5 < matrix.height
    assert all(cell.text for cell in matrix.cells if cell.strength) == (size <= 10)


def test_before_training_alone_is_shown_as_that(runs_of):
    (view,) = class_views(runs_of({"before": BEFORE}))
    assert view.matrix.title == "Confusion matrix, before training"
    assert view.table.header[2:-1] == ["before training"]


def test_only_runs_on_images_with_answers_have_classes(runs_of):
    assert class_views(runs_of({"after": AFTER}, data={"task": "glue", "name": "cola"})) == []
    one, two = runs_of({}, {"after": AFTER}, data={"task": "images", "folder": "photos"})
    assert [(view.run, view.colour) for view in class_views([one, two])] == [(two, 1)]
    assert two.subject == "images photos"


def test_examples_with_a_picture_are_shown_before_others(runs_of):
    plain = answers(*[("red", "blue")] * 30, image=None)
    for answer in plain[5:25]:
        answer["image"] = IMAGE
    (run,) = runs_of({"after": plain})
    found = read_examples(run)
    assert found.counts == {"colours": {"wrong": 30}}
    assert len(found.shown) == PICTURES_PER_KIND
    assert all(example.image == IMAGE for example in found.shown)
    assert [example.place for example in found.shown][:2] == ["5.png", "6.png"]


def test_a_picture_of_either_time_will_do(runs_of):
    (run,) = runs_of({"before": BEFORE, "after": answers(("red", "red"), image=None)})
    assert {example.image for example in read_examples(run).shown} == {IMAGE}


@pytest.mark.parametrize(
    "image",
    [
        "https://example.org/a.jpg",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:text/html;base64,AAAA",
        "javascript:alert(1)",
        IMAGE + '" onerror="alert(1)',
        IMAGE + "\n",
        "data:image/jpeg;base64," + "A" * LARGEST,
    ],
)
def test_what_is_no_small_jpeg_is_not_shown(runs_of, image):
    (run,) = runs_of({"after": answers(("red", "blue"), image=image)})
    assert [example.image for example in read_examples(run).shown] == [None]
    assert "<img" not in report_page([run])


class Elements(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag != "wbr":
            self.tags.append((tag, tuple(sorted(name for name, _ in attributes))))

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_classes_matrix_and_pictures_and_asks_for_nothing(runs_of):
    page = report_page(runs_of({"before": BEFORE, "after": AFTER}))
    found = Elements(page)
    text = " ".join(found.text.split())
    for phrase in (
        "images colours",
        "most often mistaken for",
        "Confusion matrix, after training",
        "wrong → right: 2 of 2",
    ):
        assert phrase in text
    assert "red, taken for green: 1 of 3" in text
    assert 'aria-label="Confusion matrix, after training, by true class downwards and predicted class' in page
    sources = re.findall(r'<img src="([^"]*)"', page)
    assert sources == [IMAGE] * 5
    assert "before: blue" in text
    assert "by layer and projection" not in page


def test_hostile_names_of_classes_and_files_stay_texts(runs_of):
    def page(text: str) -> str:
        given = answers((text, text), ("red", text))
        for answer in given:
            answer["source"] += text
        return report_page(runs_of({"before": given, "after": given}))

    hostile = page(HOSTILE)
    assert "<script>alert" not in hostile
    assert HOSTILE in Elements(hostile).text


def test_samples_a_second_stand_where_there_are_no_tokens(make_run):
    summary = {"samples_per_second": 5.25, "tokens_per_second": None}
    images, text = (
        make_run("images", summary=summary, data=COLOURS),
        make_run("text", summary=summary | {"tokens_per_second": 100.0}),
    )
    assert "samples a second5.2" in "".join(Elements(report_page(read_runs([images]))).text.split("\n"))
    assert "samples a second" not in report_page(read_runs([text]))
