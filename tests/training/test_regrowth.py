"""Drop and grow in a recipe: off by default, refused where it cannot be meant, and its training exact."""

from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from neuroada.errors import ConfigError
from neuroada.layers import NeuroAdaLinear
from neuroada.recipe.loading import load_recipe, to_yaml
from neuroada.run_folder.folder import RunFolder
from neuroada.training import regrowth
from neuroada.training import train as training
from neuroada.training.train import train
from specimens import base_weights, changed

QUIET = Console(quiet=True)


@pytest.fixture
def recipe(make_recipe, tiny_model_dir: Path):
    sections = {
        "model": {"name": str(tiny_model_dir), "dtype": "bfloat16"},
        "neuroada": {"k": 3},
        "training": {"max_steps": 5, "learning_rate": 0.01, "per_device_train_batch_size": 4},
        "calibration_records": 6,
    }
    return lambda *overrides, **changes: make_recipe(*overrides, **(sections | changes))


def test_a_training_with_it_is_exact_and_recorded(recipe, tmp_path, monkeypatch):
    seen = []
    prepare, compare = training.prepare, training.compare_merged

    def prepared(*given):
        found = prepare(*given)
        seen.append((found.model, base_weights(found.model), indices(found.model)))
        return found

    def ended(*given):
        model, before, start = seen[0]
        seen.append((changed(before, model), indices(model) != start))
        return compare(*given)

    monkeypatch.setattr(training, "prepare", prepared)
    monkeypatch.setattr(training, "compare_merged", ended)
    summary = train(recipe("regrowth.every=2", "regrowth.stop_after=1"), tmp_path / "run", QUIET)
    assert seen[1] == ([], True)
    assert summary is not None
    assert summary["merge"]["equal"]
    records = RunFolder(tmp_path / "run").records("regrow")
    assert [record["step"] for record in records] == [2, 4]
    assert all(record["changed"] > 0 for record in records)


def indices(model: torch.nn.Module) -> list:
    layers = [layer for layer in model.modules() if isinstance(layer, NeuroAdaLinear)]
    return [layer.neuroada_indices["default"].tolist() for layer in layers]


def test_the_header_says_how_often(recipe, tmp_path):
    assert regrowth.regrowth_text(recipe().regrowth, 10) is None
    text = regrowth.regrowth_text(recipe("regrowth.every=2", "regrowth.stop_after=0.6").regrowth, 10)
    assert text == "2 times, every 2 steps before 60% of 10: 30% of each neuron's deltas, by gradient"
    assert (regrowth.regrowth_text(recipe("regrowth.every=11").regrowth, 10) or "").startswith(
        "0 times, every 11 steps"
    )


def test_it_is_off_by_default(recipe, tmp_path):
    assert recipe().regrowth.every is None
    assert regrowth.regrowth(recipe().regrowth, 8, None, RunFolder(tmp_path)) == []
    assert "regrowth" not in to_yaml(recipe())


def test_a_resolved_recipe_says_all_of_it(recipe, tmp_path):
    asked = recipe("regrowth.every=50")
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(asked))
    assert load_recipe(path) == asked
    assert yaml.safe_load(path.read_text())["regrowth"] == {
        "every": 50,
        "drop_fraction": 0.3,
        "criterion": "gradient",
        "stop_after": 0.75,
        "max_memory": 1 << 28,
    }


BAD = {
    "another method": (
        {"method": "lora"},
        "regrowth.every is for method neuroada; leave it out, or choose that method",
    ),
    "criterion": ({"criterion": "gradeint"}, r"no such criterion. Did you mean 'gradient'\? Known: magnitude, random"),
    "unknown key": ({"evry": 3}, r"unknown key 'regrowth.evry'. Did you mean 'every'\?"),
    "every": ({"every": 0}, "regrowth.every = 0: Input should be greater than 0"),
    "drop_fraction": ({"drop_fraction": 1.5}, "regrowth.drop_fraction = 1.5: Input should be less than or equal to 1"),
    "stop_after": ({"stop_after": 0}, "regrowth.stop_after = 0: Input should be greater than 0"),
}


def test_settings_that_would_do_nothing_are_told(recipe):
    with pytest.raises(ConfigError, match=r"regrowth: .*it is off without every; give every"):
        recipe(regrowth={"drop_fraction": 0.5})
    assert recipe(regrowth={"every": None, "drop_fraction": 0.5}).regrowth.every is None, "switched off"


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_told(case, recipe):
    given, message = BAD[case]
    given = dict(given)
    method = {"method": given.pop("method")} if "method" in given else {}
    with pytest.raises(ConfigError, match=message):
        recipe(regrowth={"every": 2} | given, **method)


def test_sharded_training_is_refused_before_it_begins(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(regrowth, "is_sharded", lambda: True)
    with pytest.raises(ConfigError, match=r"regrowth.every=2 under FSDP: deltas are sharded over the processes"):
        train(recipe("regrowth.every=2"), tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()
