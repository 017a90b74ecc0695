"""Every key of a recipe × every wrong type and extreme value: a recipe comes of it, or an error in plain words."""

import os
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuroada.errors import NeuroAdaError
from neuroada.recipe.data import DATA
from neuroada.recipe.loading import check_recipe, load_recipe, to_yaml
from neuroada.recipe.methods import ADAPTERS, METHODS, known_settings
from neuroada.recipe.schema import Recipe

BASE = {
    "model": {"name": "somewhere"},
    "method": "neuroada",
    "training": {"max_steps": 2, "learning_rate": 1e-3},
}
NEEDED = {"glue": {"name": "sst2"}, "instruct": {"file": "a.jsonl"}, "images": {"name": "dtd"}}
EXAMPLES = int(os.environ.get("NEUROADA_FUZZ", "400"))


def keys() -> dict[str, tuple[dict[str, Any], tuple[str, ...]]]:
    """By what to call it, each key: a sound recipe and the place in it."""
    found: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {}
    for name, field in Recipe.model_fields.items():
        found[name] = BASE, (name,)
        for key in getattr(field.annotation, "model_fields", ()):
            found[f"{name}.{key}"] = BASE, (name, key)
    for task, kind in DATA.items():
        content = BASE | {"data": {"task": task, **NEEDED.get(task, {})}}
        found |= {f"data.{task}.{key}": (content, ("data", key)) for key in kind.model_fields}
    for method in METHODS:
        content = BASE | {"method": method}
        names = known_settings(method) if method in ADAPTERS or method == "mask" else ["anything"]
        found |= {f"{method}.{key}": (content, (method, key)) for key in names}
    found["no_such_key"] = BASE, ("no_such_key",)
    found["training.no_such_key"] = BASE, ("training", "no_such_key")
    return found


KEYS = keys()

EXTREME = [
    *(None, True, False, 0, 1, -1, -(10**20), 10**20, 10**5000, 2**31, 2**32, 2**63, 2**64, 10**9 + 1, 1e30),
    *(0.0, -0.0, -0.5, 1.5, 1e308, 5e-324, float("nan"), float("inf"), -float("inf")),
    *("", " ", "a", "\0", "a\0b", "\ud800", "é" * 300, "x" * 5_000, "x" * 1_000_000, "/" * 10_000, "~nobody/x", "((("),
    *("[a-", "*", "(a{99999999999})", "(" * 5_000, "a\nb", "🦙", "1", "none", "true", "{}", "../..", "[red]"),
    *([], [[]], [None], [""], ["a"], [1], [-1], [10**20], ["("], [True], ["\0"], [{}], list(range(10_000))),
    *({}, {"a": 1}, {"a": None}, {"(": 1}, {"": 1}, {1: 2}, {None: None}, {"a": {"b": {"c": [1]}}}, {"task": []}),
    *({"task": "text"}, {"a" * 5_000: 1}, {f"k{n}": n for n in range(1_000)}, (), (1,), set(), {"a"}, b"a"),
    *(date(2024, 1, 2), object(), 1j, Path("a"), Path(""), len),
]


def nested(levels: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if kind is list else {"a": value}
    return value


def with_value(content: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed = deepcopy(content)
    section = changed
    for name in place[:-1]:
        section = section.setdefault(name, {})
    section[place[-1]] = value
    return changed


def require_plain_end(read: Any) -> Recipe | None:
    """What was read, if it was; all else than a recipe and a short error is a failure."""
    try:
        recipe = read()
    except NeuroAdaError as error:
        message = str(error)
        assert 10 < len(message) < 2_000, message[:3_000]
        assert message.count("\n") <= 3, message
        message.encode()
        for word in ("Traceback", "object at 0x", "pydantic", "For further information"):
            assert word not in message
        return None
    assert isinstance(recipe, Recipe)
    return recipe


@pytest.mark.parametrize("key", KEYS)
def test_extreme_values_of_every_key(key: str, tmp_path: Path):
    content, place = KEYS[key]
    for value in [*EXTREME, *(nested(levels, kind) for levels in (20, 500) for kind in (list, dict))]:
        changed = with_value(content, place, value)
        recipe = require_plain_end(lambda changed=changed: check_recipe(changed, "a recipe"))
        if recipe is not None:
            path = tmp_path / "again.yaml"
            path.write_text(to_yaml(recipe), encoding="utf-8")
            assert load_recipe(path).resolved() == recipe.resolved(), "what is accepted is written, and reads back"


texts = st.text(max_size=30) | st.sampled_from([value for value in EXTREME if isinstance(value, str)])
single = st.none() | st.booleans() | st.integers() | st.integers(-(10**30), 10**30) | st.floats() | texts
anything = st.recursive(
    single | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.lists(st.tuples(st.sampled_from(sorted(KEYS)), anything), min_size=1, max_size=3))
def test_any_values_of_several_keys(changes: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory):
    content = KEYS[changes[0][0]][0]
    for key, value in changes:
        place = KEYS[key][1]
        if isinstance(content.get(place[0], {}), dict):
            content = with_value(content, place, value)
    require_plain_end(lambda: check_recipe(content, "a recipe"))
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=False), encoding="utf-8")
    require_plain_end(lambda: load_recipe(path))


@settings(max_examples=EXAMPLES, deadline=None)
@given(key=st.sampled_from(sorted(KEYS)), value=anything, text=st.none() | texts)
def test_any_value_by_set(key: str, value: Any, text: str | None, tmp_path_factory: pytest.TempPathFactory):
    content, place = KEYS[key]
    path = tmp_path_factory.getbasetemp() / "set.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    written = yaml.safe_dump(value, default_flow_style=True, width=10**9) if text is None else text
    dotted = ".".join(place)
    require_plain_end(lambda: load_recipe(path, [f"{dotted}={written}"]))
    require_plain_end(lambda: load_recipe(path, values={dotted: value}, options={dotted: "--option"}))


@settings(max_examples=EXAMPLES, deadline=None)
@given(text=st.text(max_size=200) | texts | anything.map(yaml.safe_dump))
def test_any_text_as_a_file(text: str, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.getbasetemp() / "text.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    require_plain_end(lambda: load_recipe(path))


@settings(max_examples=EXAMPLES // 4, deadline=None)
@given(base=anything, variants=anything, more=st.dictionaries(texts | st.integers(), anything, max_size=2))
def test_any_base_and_variants(base: Any, variants: Any, more: Any, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.getbasetemp() / "base.yaml"
    for content in ({"base": base}, {"variants": variants}, {"base": base, "variants": variants, **more}, more):
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        require_plain_end(lambda: load_recipe(path))
