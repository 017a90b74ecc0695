"""Study files, and the cells that they mean."""

import re
from pathlib import Path

import pytest
import yaml

from neuroada.errors import ConfigError
from neuroada.measure.studies.grid import bundled_studies, find_study, load_study, rows_of
from neuroada.recipe.loading import to_yaml


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    content = {"model": {"name": "somewhere"}, "method": "neuroada", "training": {"max_steps": 2, "learning_rate": 1}}
    path.write_text(yaml.safe_dump(content))
    return path


def study(tmp_path: Path, **content):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"seeds": [0, 1], **content}, sort_keys=False))
    return load_study(path)


def test_each_method_is_a_row_at_each_point(tmp_path, recipe):
    points = {
        1: {"set": {"neuroada.k": 1}, "learning_rates": [0.2, 0.1]},
        5: {"set": {"neuroada.k": 5}, "learning_rates": [0.3]},
    }
    methods = {
        "magnitude": {"set": {"neuroada.selection": "magnitude"}},
        "random": {"set": {"neuroada.selection": "random"}},
    }
    found = study(tmp_path, recipe=str(recipe), methods=methods, axis={"name": "k", "points": points})
    rows = list(rows_of(found, {"model.name": "elsewhere"}))
    assert [(row.label, row.point, row.learning_rates) for row in rows] == [
        ("magnitude", 1.0, [0.1, 0.2]),
        ("magnitude", 5.0, [0.3]),
        ("random", 1.0, [0.1, 0.2]),
        ("random", 5.0, [0.3]),
    ]
    cell = rows[3].cell(0.3, 1)
    assert cell.recipe.neuroada == {"k": 5, "selection": "random"}
    assert (cell.recipe.seed, cell.recipe.training.learning_rate, cell.recipe.model.name) == (1, 0.3, "elsewhere")
    assert cell.name.startswith("random-at5-lr0.3-seed1-")


def test_a_name_tells_contents_apart_and_nothing_else(tmp_path, recipe):
    found = study(tmp_path, recipe=str(recipe), methods={"a": {"learning_rates": [0.1]}})

    def name(**values) -> str:
        (row,) = rows_of(found, {key.replace("__", "."): value for key, value in values.items()})
        return row.cell(0.1, 0).name

    assert name() == name(data__data_dir="/elsewhere"), "the same data in another place"
    assert name() == name(calibration_records=128), "a default that is written out"
    assert name() == name(lora={"r": 3}), "a block of a method that is not trained"
    assert len({name(), name(neuroada__k=2), name(training__max_steps=3), name(model__name="other")}) == 4


def test_the_cells_of_a_row_have_the_same_content_and_other_rows_another(tmp_path, recipe):
    methods = {name: {"set": {"neuroada.k": k}, "learning_rates": [0.1, 0.2]} for k, name in ((1, "a"), (2, "b"))}
    one, other = rows_of(study(tmp_path, recipe=str(recipe), methods=methods), {})
    assert len({one.cell(rate, seed).row_content for rate in (0.1, 0.2) for seed in (0, 1)}) == 1
    assert one.cell(0.1, 0).row_content != other.cell(0.1, 0).row_content


@pytest.mark.parametrize(
    ("methods", "axis", "message"),
    [
        ({"a": {}}, None, "a: learning_rates are given nowhere"),
        (
            {"a": {"learning_rates": [1]}},
            {"name": "k", "points": {1: {"learning_rates": [1]}}},
            "a at 1: learning_rates are given twice",
        ),
        ({"a": {"learning_rates": [1, 1]}}, None, r"learning_rates: \[1.0, 1.0\] repeats a value"),
        ({"a": {"learning_rates": [1]}}, {"name": "k", "points": {}}, "axis.points: Dictionary should have at least 1"),
        ({"a": {"learning_rates": [1]}}, {"name": "k", "points": {"x": {}}}, "axis.points.x"),
    ],
)
def test_rates_stand_in_one_place(tmp_path, methods, axis, message):
    with pytest.raises(ConfigError, match=message):
        study(tmp_path, recipe="x", methods=methods, axis=axis)


def test_a_section_that_is_set_belongs_to_its_cell_alone(tmp_path, recipe):
    methods = {
        "a": {"set": {"neuroada": {"k": 1}, "training.warmup_steps": 7}, "learning_rates": [0.1]},
        "b": {"learning_rates": [0.1]},
    }
    axis = {"name": "coverage", "points": {0.5: {"set": {"neuroada.coverage": 0.5}}, 1.0: {}}}
    common = {"training": {"max_steps": 3, "learning_rate": 1}}
    made = study(tmp_path, recipe=str(recipe), set=common, methods=methods, axis=axis)
    cells = [row.cell(0.1, seed).recipe for row in rows_of(made, {}) for seed in (0, 1)]
    assert [cell.neuroada.get("coverage", 1) for cell in cells] == [0.5, 0.5, 1, 1] * 2
    assert [cell.training.warmup_steps for cell in cells] == [7] * 4 + [0] * 4
    assert made.set == common


def test_a_recipe_lies_beside_the_study_wherever_one_is(tmp_path, recipe, monkeypatch):
    made = study(tmp_path, recipe=recipe.name, methods={"a": {"learning_rates": [0.1]}})
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    (row,) = rows_of(made, {})
    assert row.cell(0.1, 0).recipe.model.name == "somewhere"
    (tmp_path / "other" / "here.yaml").write_text(recipe.read_text().replace("somewhere", "here"))
    (row,) = rows_of(study(tmp_path, recipe="here.yaml", methods={"a": {"learning_rates": [0.1]}}), {})
    assert row.cell(0.1, 0).recipe.model.name == "here"


def test_of_settings_that_replace_each_other_the_point_s_counts(tmp_path, recipe):
    methods = {"a": {"set": {"neuroada.budget": 0.1}, "learning_rates": [0.1]}}
    axis = {"name": "k", "points": {k: {"set": {"neuroada.k": k}} for k in (1, 2)}}
    made = study(tmp_path, recipe=str(recipe), set={"neuroada.k": 3}, methods=methods, axis=axis)
    assert [row.cell(0.1, 0).recipe.neuroada for row in rows_of(made, {})] == [{"k": 1}, {"k": 2}]


@pytest.mark.parametrize("key", ["seed", "training.learning_rate"])
@pytest.mark.parametrize("place", ["study", "method", "point"])
def test_what_a_study_tries_cannot_be_set(tmp_path, place, key):
    given = {each: {"set": {key: 3}} if each == place else {} for each in ("study", "method", "point")}
    methods = {"a": {"learning_rates": [0.1], **given["method"]}}
    axis = {"name": "k", "points": {1: given["point"]}}
    with pytest.raises(ConfigError, match=rf"set: {key} is what a study tries: give it as seeds or learning_rates"):
        study(tmp_path, recipe="x", methods=methods, axis=axis, **given["study"])


@pytest.mark.parametrize("name", bundled_studies())
def test_the_bundled_studies_can_be_meant(name):
    found = load_study(find_study(name))
    rows = list(rows_of(found, {}))
    names = {row.cell(rate, seed).name for row in rows for rate in row.learning_rates for seed in found.seeds}
    assert len(names) == sum(len(row.learning_rates) for row in rows) * len(found.seeds)
    assert all(to_yaml(row.cell(row.learning_rates[0], 0).recipe) for row in rows)


def test_the_list_of_studies_tells_them_apart():
    first = {name: path.read_text().splitlines()[0] for name, path in bundled_studies().items()}
    for name, line in first.items():
        assert re.fullmatch(rf"# .+; neuroada study {name}( .+)?", line), "the command stands at the end of the line"
    assert len({line.split(";")[0] for line in first.values()}) == len(first)


def test_the_study_of_the_documentation_is_one(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "studies.md").read_text()
    file = tmp_path / "mine.yaml"
    file.write_text(page.split("```yaml\n")[1].split("```")[0])
    rows = [*rows_of(load_study(file), {})]
    assert [(row.label, row.point) for row in rows] == [
        (each, at) for each in ("few", "low rank") for at in (250.0, 500.0)
    ]
    cell = rows[2].cell(3e-4, 1).recipe
    assert (cell.method, cell.lora["r"], cell.data.train_records, cell.seed) == ("lora", 8, 250, 1)


def test_a_study_is_found_by_name_or_path(tmp_path):
    assert find_study("cola") == bundled_studies()["cola"]
    (tmp_path / "own.yaml").write_text("")
    assert find_study(str(tmp_path / "own.yaml")) == tmp_path / "own.yaml"
    with pytest.raises(ConfigError, match=r"study 'colla': neither a bundled study nor a file.*cola"):
        find_study("colla")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("recipe: x\nseeds: []\nmethods: {}", "seeds: List should have at least 1 item"),
        (
            "recipe: x\nseeds: [0]\nmethods: {a: {set: {}, learning_rates: [0]}}",
            "learning_rates.0: Input should be great",
        ),
        ("recipe: x\nseed: [0]", "seed: no such key. Did you mean 'seeds'"),
        ("a: [", "it is not valid YAML"),
    ],
)
def test_a_file_that_is_no_study(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_study(path)
