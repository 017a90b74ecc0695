"""YAML as recipes, studies and search spaces are written: what is no YAML, too much of it, or says a thing twice."""

from collections.abc import Callable
from pathlib import Path

import pytest

from neuroada.errors import ConfigError
from neuroada.measure.studies.grid import load_study
from neuroada.recipe.files import RecipeFile
from neuroada.recipe.loading import load_recipe
from neuroada.recipe.plain import MAX_DEPTH
from neuroada.recipe.yaml_text import parse_yaml
from neuroada.tuning.space import load_space

READERS: dict[str, Callable[[Path], object]] = {
    "recipe": load_recipe,
    "study": load_study,
    "space": lambda path: load_space([str(path)], RecipeFile(path)),
}


@pytest.fixture(params=READERS)
def refusal(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    def read(text: str) -> str:
        path = tmp_path / "a.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            READERS[request.param](path)
        assert len(str(caught.value)) < 2000
        assert str(path) in str(caught.value)
        return str(caught.value)

    return read


TWICE = {
    "at the top": ("seed: 1\nmethod: lora\nseed: 2\n", "'seed'", (1, 3)),
    "in a section": ("training:\n  max_steps: 1\n  max_steps: 1\n", "'training.max_steps'", (2, 3)),
    "a section": ("training: {max_steps: 1}\nmodel: {name: a}\ntraining: {learning_rate: 1}\n", "'training'", (1, 3)),
    "in a variant": ("variants:\n  a:\n    neuroada:\n      k: 1\n\n      k: 2\n", "'variants.a.neuroada.k'", (4, 6)),
    "in a list": ("a:\n- {b: 1}\n- {b: 1,\n   b: 1}\n", "'a.1.b'", (3, 4)),
    "in one line": ("neuroada: {k: 1, k: 2}\n", "'neuroada.k'", (1, 1)),
    "in quotes": ("seed: 1\n'seed': 2\n", "'seed'", (1, 2)),
    "as another number": ("points:\n  1: 1\n  1.0: 2\n", "'points.1.0'", (2, 3)),
    "beside a merge": ("a: &a {x: 1}\nb:\n  <<: *a\n  y: 1\n  y: 2\n", "'b.y'", (4, 5)),
    "in the key of a key": ("? {a: 1, a: 2}\n: 1\n", "'a'", (1, 1)),
}


@pytest.mark.parametrize(("text", "key", "lines"), TWICE.values(), ids=TWICE)
def test_a_key_given_twice_is_told_with_both_lines(refusal, text: str, key: str, lines: tuple[int, int]):
    assert f"the key {key} is given twice, on lines {lines[0]} and {lines[1]}. Keep one of them" in refusal(text)


@pytest.mark.parametrize("depth", [0, 1, 2, 5, 20])
def test_at_any_depth(depth: int):
    places = [f"s{level}" for level in range(depth)]
    lines = [f"{'  ' * level}{place}:" for level, place in enumerate(places)]
    text = "\n".join([*lines, f"{'  ' * depth}k: 1", f"{'  ' * depth}k: 2"])
    with pytest.raises(ConfigError, match=rf"the key '{'.'.join([*places, 'k'])}' .*{depth + 1} and {depth + 2}"):
        parse_yaml(text, "a file")


def test_merged_mappings_repeat_nothing():
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: [*a, *b], z: 4}\nd: {<<: *b, x: 5}\n"
    found = parse_yaml(text, "a file")
    assert (found["b"], found["d"]) == ({"x": 3, "y": 2}, {"x": 5, "y": 2})


def test_what_is_set_twice_in_one_set_is_told(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("model: {name: a}\nmethod: lora\ntraining: {max_steps: 1, learning_rate: 1}\n")
    with pytest.raises(ConfigError, match=r"--set lora=\{r: 1, r: 2\}: the key 'r' is given twice"):
        load_recipe(tmp_path / "a.yaml", ["lora={r: 1, r: 2}"])


BROKEN = {
    "list": "a: [",
    "tabs": "a:\n\tb: 1",
    "date": "a: 2024-13-45",
    "tag bool": "a: !!bool maybe",
    "tag int": "a: !!int ''",
    "tag float": "a: !!float x",
    "tag timestamp": "a: !!timestamp x",
    "tag binary": "a: !!binary é",
    "tag map": "a: !!map x",
    "tag map as key": "!!map x: 1",
    "python": "a: !!python/object/apply:os.system [ls]",
    "value": "a: =",
    "list as key": "[a]: 1",
    "no such alias": "a: *b",
    "digits": f"a: {'1' * 5000}",
    "two documents": "a: 1\n---\na: 2",
    "control": "a: \x01",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_what_is_no_yaml_is_told_in_a_line(refusal, text: str):
    message = refusal(text)
    assert "it is not valid YAML (" in message
    assert "\n" not in message


NOT_PLAIN = {
    "nan": ("a: {b: .nan}", "a.b: nan is no finite number"),
    "inf": ("a: [1, -.inf]", "a.1: -inf is no finite number"),
    "too large a float": ("a: 1e999", "a: inf is no finite number"),
    "too large": ("a: 100000000000000000000", "a: 100000000000000000000 is beyond 64 bits"),
    "hexadecimal": (f"a: 0x{'f' * 9000}", "a: a number of too many digits is beyond 64 bits"),
    "date": ("a: 2024-01-02", "a: it is of the type date, which no setting has. Write it in quotes"),
    "binary": ("a: !!binary aGk=", "a: it is of the type bytes"),
    "NUL": ('a: "b\\0c"', "a: the text 'b\\x00c' has a NUL character in it"),
    "NUL in a key": ('"a\\0": 1', "a key: the text 'a\\x00' has a NUL"),
    "half a character": ('a: "\\ud800"', "has characters that are half of one"),
    "itself": ("a: &a [*a]", f"nested more than {MAX_DEPTH} levels deep"),
}


@pytest.mark.parametrize(("text", "message"), NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_values_that_no_key_has(refusal, text: str, message: str):
    assert message in refusal(text)


@pytest.mark.parametrize("levels", [MAX_DEPTH + 2, 3_000, 100_000])
@pytest.mark.parametrize("text", ["a: {0}{1}", "{0}{1}", "a: {2}1{3}"], ids=["list in a key", "list", "mapping"])
def test_deep_nesting_is_told(refusal, text: str, levels: int):
    text = text.format("[" * levels, "]" * levels, "{a: " * levels, "}" * levels)
    assert f"nested more than {MAX_DEPTH} levels deep. Write it with fewer levels" in refusal(text)


def test_aliases_of_aliases_are_counted(refusal):
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "it holds more than 100,000 values" in refusal("\n".join(["a0: &a0 [1]", *levels]))
