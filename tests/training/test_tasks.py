"""Each task from recipe to run folder, and what is scored from it afterwards, on tiny models and tiny data."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuroada.errors import ConfigError, MissingInputError
from neuroada.evaluation.evaluate import evaluate, read_settings
from neuroada.evaluation.loading import load_trained
from neuroada.evaluation.merged import merge
from neuroada.recipe.loading import check_recipe
from neuroada.recipe.schema import Recipe
from neuroada.run_folder.folder import RunFolder
from neuroada.training.prepared import prepare
from neuroada.training.train import train

QUIET = Console(quiet=True)


def recipe_of(model: Path, data: dict[str, Any], **changes: Any) -> Recipe:
    content = {
        "model": {"name": str(model), "dtype": "float32"},
        "data": {k: str(v) if isinstance(v, Path) else v for k, v in data.items()},
        "evaluation": {"records": 3, "batch_size": 4, "max_new_tokens": 4},
        "method": "neuroada",
        "neuroada": {"k": 2},
        "training": {"num_train_epochs": 1, "learning_rate": 0.01, "per_device_train_batch_size": 4},
    }
    return check_recipe(content | changes, "recipe")


def trained(recipe: Recipe, output: Path, **options: Any) -> dict[str, Any]:
    summary = train(recipe, output, QUIET, **options)
    assert summary is not None
    return summary


def test_commonsense_is_trained_on_completions_and_scored_before_and_after(tiny_model_dir, data_dir, tmp_path):
    data = {"task": "commonsense", "data_dir": data_dir, "held_out_records": 5, "max_length": 128}
    summary = trained(recipe_of(tiny_model_dir, data), tmp_path / "run")
    assert summary["steps"] == 32 / 4
    assert summary["held_out_loss_after"] < summary["held_out_loss_before"]
    assert summary["merge"]["equal"]
    for when in ("before", "after"):
        names = [score["name"] for score in summary[f"scores_{when}"]]
        assert len(names) == 9
        answers = [json.loads(line) for line in (tmp_path / "run" / f"answers-{when}.jsonl").open()]
        assert len(answers) == 8 * 3
        assert {"test", "prompt", "answer", "generated", "right", "source"} <= set(answers[0])


def test_a_run_folder_that_is_not_there_names_those_beside_it(tmp_path):
    (tmp_path / "commonsense").mkdir()
    with pytest.raises(MissingInputError, match=r"run .*commonsens: no such folder. Did you mean 'commonsense'\?"):
        load_trained(str(tmp_path / "commonsens"))


def test_arithmetic_marks_contaminated_tests(tiny_model_dir, data_dir, tmp_path):
    data = {"task": "arithmetic", "data_dir": data_dir, "train_records": 8, "max_length": 256}
    summary = trained(recipe_of(tiny_model_dir, data, method="lora", lora={"r": 2}), tmp_path / "run")
    notes = {score["name"]: score["note"] for score in summary["scores_after"]}
    assert "contaminated: 471 of 600" in notes["MultiArith"]
    assert notes["gsm8k"] == ""
    assert summary["steps"] == 2


def test_loss_is_on_the_prompt_only_where_asked(tiny_model_dir, data_dir, tmp_path):
    data = {"task": "commonsense", "data_dir": data_dir, "max_length": 128}
    settings = {"evaluation": {"records": 1, "tests": ["boolq"], "max_new_tokens": 2}}
    losses = [
        trained(recipe_of(tiny_model_dir, {**data, "train_on_prompt": on}, **settings), tmp_path / str(on))
        for on in (False, True)
    ]
    assert losses[0]["held_out_loss_before"] != losses[1]["held_out_loss_before"]


def test_the_base_model_is_looked_at_only_where_asked(tiny_model_dir, data_dir, tmp_path):
    data = {"task": "commonsense", "data_dir": data_dir, "max_length": 128}
    settings = {"evaluation": {"records": 1, "tests": ["boolq"], "before": False, "max_new_tokens": 2}}
    console = Console(record=True, width=100, file=StringIO())
    summary = train(recipe_of(tiny_model_dir, data, **settings), tmp_path / "run", console)
    assert summary is not None
    assert {name for name in summary if name.startswith("held_out")} == {"held_out_loss_after"}
    assert (summary["scores_before"], len(summary["scores_after"])) == ([], 1)
    assert " before" not in console.export_text().partition("held-out loss")[2]
    assert {record["when"] for record in RunFolder(tmp_path / "run").records("evaluate")} == {"after"}


@pytest.mark.parametrize("method", ["neuroada", "mask", "full"])
@pytest.mark.parametrize("name", ["cola", "stsb"])
def test_glue_keeps_the_best_epoch_and_is_scored_again_from_the_folder(name, method, tiny_bert_dir, data_dir, tmp_path):
    training = {
        "num_train_epochs": 3,
        "learning_rate": 0.01,
        "head_learning_rate": 0.02,
        "per_device_train_batch_size": 8,
        "load_best_model_at_end": True,
    }
    recipe = recipe_of(
        tiny_bert_dir,
        {"task": "glue", "name": name, "data_dir": data_dir, "max_length": 32},
        method=method,
        training=training,
        evaluation={"batch_size": 4},
    )
    summary = trained(recipe, tmp_path / "run")
    assert summary["steps"] == 12
    assert summary["scores_after"][0]["count"] == 12
    again = evaluate(str(tmp_path / "run"), [], None, read_settings({}), QUIET)
    assert again.plain() == summary["scores_after"]
    assert (tmp_path / "run" / ("adapter" if method == "neuroada" else "model")).is_dir()


def test_instruct_trains_and_merges_to_a_plain_model(tiny_model_dir, tmp_path):
    file = tmp_path / "mine.jsonl"
    pairs = [{"prompt": f"Say {n}", "completion": f"{n} it is"} for n in range(30)]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    recipe = recipe_of(tiny_model_dir, {"task": "instruct", "file": file, "max_length": 256})
    summary = trained(recipe, tmp_path / "run")
    assert summary["scores_after"] == []
    merge(str(tmp_path / "run"), tmp_path / "merged", QUIET)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(tmp_path / "merged")("Say 3", return_tensors="pt").input_ids
    adapted = load_trained(str(tmp_path / "run")).model
    assert torch.equal(plain(input_ids=ids).logits, adapted(input_ids=ids).logits)
    with pytest.raises(ConfigError, match="exists already and is not empty"):
        merge(str(tmp_path / "run"), tmp_path / "merged", QUIET)
    with pytest.raises(ConfigError, match="it is a whole model"):
        merge(str(tmp_path / "merged"), tmp_path / "other", QUIET)


def test_a_run_is_scored_by_its_own_settings_where_no_others_are_given(tiny_model_dir, data_dir, tmp_path):
    data = {"task": "commonsense", "data_dir": data_dir, "train_records": 8, "max_length": 128}
    settings = {"records": 2, "tests": ["piqa"], "max_new_tokens": 3, "before": False}
    summary = trained(recipe_of(tiny_model_dir, data, evaluation=settings, seed=7), tmp_path / "run")
    target = str(tmp_path / "run")
    assert evaluate(target, [], None, read_settings({}), QUIET).plain() == summary["scores_after"]
    other = evaluate(target, [], None, read_settings({"records": 4, "sampling": None}), QUIET)
    assert [(score.name, score.count) for score in other.scores] == [("piqa", 4)]
    whole = evaluate(target, ["piqa"], None, read_settings({"records": "all"}), QUIET)
    assert whole.scores[0].count > 4
    named = evaluate(target, ["piqa", "boolq", "gsm8k"], None, read_settings({"max_new_tokens": 3}), QUIET)
    assert named.plain()[0] == summary["scores_after"][0]
    counts = {score.name: score.count for score in named.scores}
    assert (counts["piqa"], counts["boolq"]) == (2, 2)
    assert counts["gsm8k"] > 2, "another task's tests take nothing of the run but its folder of data"


def test_the_records_of_a_glue_test_are_chosen_by_the_seed(tiny_bert_dir, data_dir):
    data = {"task": "glue", "name": "sst2", "data_dir": data_dir, "max_length": 32}
    chosen = []
    for seed, records in ((0, 5), (1, 5), (0, None)):
        recipe = recipe_of(tiny_bert_dir, data, evaluation={"records": records}, seed=seed)
        prepared = prepare(recipe, QUIET)
        assert prepared.data.tests is not None
        chosen.append([tuple(row) for row in prepared.data.tests.test["input_ids"]])
    assert [len(each) for each in chosen] == [5, 5, 12]
    assert chosen[0] != chosen[1]
    assert set(chosen[0]) <= set(chosen[2])


def test_one_record_cannot_be_trained_on(tiny_model_dir, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Say 1", "completion": "1"}\n')
    recipe = recipe_of(tiny_model_dir, {"task": "instruct", "file": tmp_path / "mine.jsonl"})
    with pytest.raises(ConfigError, match=r"it has one record, and one is held out. Give two or more"):
        prepare(recipe, QUIET)


def test_a_model_is_scored_on_any_tests(tiny_model_dir, data_dir):
    settings = read_settings({"records": 2, "max_new_tokens": 3})
    scored = evaluate(str(tiny_model_dir), ["boolq", "gsm8k"], data_dir, settings, QUIET, dtype="float32")
    assert [(score.name, score.count) for score in scored.scores] == [("boolq", 2), ("gsm8k", 2)]
    with pytest.raises(MissingInputError, match=r"run .*/nope: no such folder"):
        evaluate(str(tiny_model_dir / "nope"), [], data_dir, settings, QUIET)
    with pytest.raises(ConfigError, match=r"test 'bolq': no such test. Did you mean 'boolq'"):
        evaluate(str(tiny_model_dir), ["bolq"], data_dir, settings, QUIET)
    with pytest.raises(ConfigError, match=r"test 'sst2': a test of GLUE.* Score the run folder, without --tasks"):
        evaluate(str(tiny_model_dir), ["sst2"], data_dir, settings, QUIET)
    with pytest.raises(ConfigError, match=r"--dtype='bf16': not a known value. Did you mean 'bfloat16'"):
        evaluate(str(tiny_model_dir), ["boolq"], data_dir, settings, QUIET, dtype="bf16")
    with pytest.raises(ConfigError, match="it is no run, and no tests are named"):
        evaluate(str(tiny_model_dir), [], data_dir, settings, QUIET)
    with pytest.raises(ConfigError, match=r"--batch-size 0: Input should be greater than 0"):
        read_settings({"batch_size": 0})
    with pytest.raises(ConfigError, match=r"--records some: Input should be a valid integer"):
        read_settings({"records": "some"})


def test_a_run_that_is_not_complete_is_not_scored(tiny_model_dir, data_dir, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{name: {tiny_model_dir}}}\nmethod: neuroada\ntraining: {{max_steps: 1, learning_rate: 1}}\n"
    )
    with pytest.raises(MissingInputError, match="no adapter in it: the run is not complete"):
        load_trained(str(tmp_path))


def test_the_mask_refuses_weight_decay(tiny_model_dir):
    with pytest.raises(ConfigError, match="weight decay changes entries outside the mask"):
        recipe_of(tiny_model_dir, {}, method="mask", training={"max_steps": 1, "learning_rate": 1, "weight_decay": 0.1})
