"""Image classification from recipe to run folder, and what is scored and merged from it, on a tiny ViT."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, TrainerCallback

import neuroada.training.fit as fitting
from neuroada.errors import ConfigError, MissingInputError, RunFolderError
from neuroada.evaluation.evaluate import evaluate, read_settings
from neuroada.evaluation.loading import load_trained
from neuroada.evaluation.merged import merge
from neuroada.inputs.models import Head, load_model
from neuroada.recipe.files import bundled_recipes
from neuroada.recipe.loading import check_recipe, load_recipe
from neuroada.tasks.classification import Classification, head_parameters, head_settings
from neuroada.tasks.images.files import read_folder
from neuroada.training.prepared import prepare
from neuroada.training.train import train
from neuroada.training.trainer import ResumableTrainer
from pictures import COLOURS, noisy, pack, write_dinov2, write_set, write_vit

QUIET = Console(quiet=True)
SHARED = Path(__file__).parents[3] / "shared"
TRAINING = {
    "num_train_epochs": 2,
    "learning_rate": 0.02,
    "head_learning_rate": 0.01,
    "per_device_train_batch_size": 6,
    "per_device_eval_batch_size": 8,
}
SETTINGS = {"neuroada": {"k": 2}, "lora": {"r": 2}, "ia3": {"target_modules": ["q_proj"], "feedforward_modules": []}}


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Path:
    return write_vit(tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("data") / "colours", train=10, test=4)


def recipe_of(
    model: Path, method: str = "neuroada", training: dict[str, Any] | None = None, dtype="float32", **data: Any
):
    content = {
        "model": {"name": str(model), "dtype": dtype},
        "data": {"task": "images", **{k: str(v) if isinstance(v, Path) else v for k, v in data.items()}},
        "method": method,
        method: SETTINGS.get(method, {}),
        "training": TRAINING | (training or {}),
    }
    return check_recipe(content, "recipe")


def trained(recipe, output: Path, **options: Any) -> dict[str, Any]:
    summary = train(recipe, output, QUIET, **options)
    assert summary is not None
    return summary


@pytest.mark.parametrize("method", ["neuroada", "lora", "bitfit", "mask", "full"])
def test_methods_train_a_head_too_and_are_scored_again_from_the_folder(method, vit, folder, tmp_path):
    training = {"load_best_model_at_end": True}
    summary = trained(recipe_of(vit, method, training, folder=folder), tmp_path / "run")
    assert summary["steps"] == 2 * 5  # 27 pictures, 3 held out
    assert summary["held_out_loss_after"] < summary["held_out_loss_before"]
    (score,) = summary["scores_after"]
    assert (score["name"], score["metric"], score["count"]) == ("colours", "accuracy", 12)
    assert summary["tokens_per_second"] is None
    assert summary["samples_per_second"] > 0
    assert summary["merge"] is None or summary["merge"]["largest"] < 1e-5
    again = evaluate(str(tmp_path / "run"), [], None, read_settings({}), QUIET)
    assert again.plain() == summary["scores_after"]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["labels"] == list(COLOURS)


def test_answers_name_classes_and_keep_some_thumbnails(vit, folder, tmp_path):
    trained(recipe_of(vit, folder=folder), tmp_path / "run")
    for when in ("before", "after"):
        answers = [json.loads(line) for line in (tmp_path / "run" / f"answers-{when}.jsonl").open()]
        assert [answer["answer"] for answer in answers] == [name for name in COLOURS for _ in range(4)]
        assert {answer["generated"] for answer in answers} <= set(COLOURS)
        assert [answer["right"] for answer in answers] == [a["answer"] == a["generated"] for a in answers]
        assert [answer["source"] for answer in answers] == [p.place for p in read_folder(folder).splits["test"]]
        assert all(answer["image"].startswith("data:image/jpeg;base64,") for answer in answers)


def test_only_a_sample_of_many_pictures_has_thumbnails(vit, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("neuroada.inputs.tests.SHOWN", 2)
    trained(recipe_of(vit, folder=folder), tmp_path / "run")
    answers = [json.loads(line) for line in (tmp_path / "run" / "answers-before.jsonl").open()]
    for right in (True, False):
        with_image = [answer for answer in answers if answer["right"] is right and "image" in answer]
        assert len(with_image) == min(2, sum(answer["right"] is right for answer in answers))


def test_the_head_has_a_learning_rate_of_its_own(vit, folder, tmp_path):
    rates = []

    class Rates(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            rates.extend((group["initial_lr"], len(group["params"])) for group in kwargs["optimizer"].param_groups)

    recipe = recipe_of(vit, "neuroada", folder=folder)
    model = prepare(recipe, QUIET).model
    assert {name.split(".")[2] for name in head_parameters(model)} == {"classifier"}
    train(recipe, tmp_path / "run", QUIET, callbacks=[Rates()])
    assert sum(count for rate, count in rates if rate == 0.01) == 2
    assert sum(count for rate, count in rates if rate == 0.02) == 12


@pytest.mark.parametrize("write", [write_vit, write_dinov2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_size_is_trained_and_merged_to_a_model_of_that_size(write, dtype, folder, tmp_path):
    size = 21 if write is write_dinov2 else 24
    recipe = recipe_of(write(tmp_path / "model"), folder=folder, size=size, dtype=dtype)
    summary = trained(recipe, tmp_path / "run")
    assert summary["merge"] == {"equal": True, "logits": 9, "differing": 0, "largest": 0.0}
    merge(str(tmp_path / "run"), tmp_path / "merged", QUIET)
    plain = AutoModelForImageClassification.from_pretrained(tmp_path / "merged", dtype=getattr(torch, dtype)).eval()
    assert plain.config.id2label == dict(enumerate(COLOURS))
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "merged")(noisy(COLOURS["red"], 0), return_tensors="pt")
    pixels = {"pixel_values": pixels["pixel_values"].to(plain.dtype)}
    assert pixels["pixel_values"].shape[-2:] == (size, size)
    if write is write_vit:
        pixels["interpolate_pos_encoding"] = True
    adapted = load_trained(str(tmp_path / "run")).model
    assert torch.equal(plain(**pixels).logits, adapted(**pixels).logits)


class InEpochTwo(TrainerCallback):
    """Ctrl-C in the midst of an epoch, after a checkpoint in it."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 8:
            raise KeyboardInterrupt


def test_a_resumed_run_sees_the_same_augmented_pictures(vit, folder, tmp_path, monkeypatch):
    training = {"save_steps": 7, "logging_steps": 1, "lr_scheduler_type": "constant", "head_learning_rate": None}
    recipe = recipe_of(vit, training=training, folder=folder)
    expected = trained(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(
            fitting,
            "ResumableTrainer",
            lambda *a, callbacks, **k: ResumableTrainer(*a, callbacks=[*callbacks, InEpochTwo()], **k),
        )
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "run", QUIET)
    assert trained(recipe, tmp_path / "run", resume=True)["scores_after"] == expected["scores_after"]
    saved = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "run")]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_the_same_seed_gives_the_same_run_and_augmentation_matters(vit, folder, tmp_path):
    losses = {}
    for name, data in (("one", {}), ("two", {}), ("plain", {"augment": False})):
        summary = trained(recipe_of(vit, folder=folder, **data), tmp_path / name)
        losses[name] = summary["held_out_loss_after"]
    assert losses["one"] == losses["two"] != losses["plain"]


def test_pictures_that_cannot_be_decoded_are_recorded_or_refused(vit, tmp_path):
    folder = write_set(tmp_path / "set", train=10, test=2)
    bad = folder / "test" / "red" / "000.png"
    bad.write_bytes(b"")
    console = Console(record=True, width=400, file=(tmp_path / "printed.txt").open("w"))
    train(recipe_of(vit, folder=folder), tmp_path / "run", console)
    assert f"1 cannot be decoded and is left out: {bad} (no image of a known format)" in console.export_text()
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert records[0] == {"event": "left out", "place": str(bad), "reason": "no image of a known format"}
    with pytest.raises(MissingInputError, match=rf"image {bad}: it cannot be decoded"):
        train(recipe_of(vit, folder=folder, strict=True), tmp_path / "other", QUIET)
    assert not (tmp_path / "other").exists()


def test_files_of_a_test_that_cannot_be_decoded_are_said_with_its_score(vit, folder, tmp_path):
    summary = trained(recipe_of(vit, folder=folder), tmp_path / "run")
    assert summary["scores_after"][0]["note"] == ""
    other = write_set(tmp_path / "more", test=3)
    bad = [other / "test" / "blue" / f"00{number}.png" for number in (0, 2)]
    for path in bad:
        path.write_bytes(b"")
    (score,) = evaluate(str(tmp_path / "run"), [], other, read_settings({}), QUIET).plain()
    reason = "no image of a known format"
    assert score["count"] == 7
    assert score["note"] == f"2 cannot be decoded and are left out: {bad[0]} ({reason}), {bad[1]} ({reason})"
    with pytest.raises(MissingInputError, match=rf"image {bad[0]}: it cannot be decoded .*, as are {bad[1]}"):
        evaluate(str(tmp_path / "run"), [], other, read_settings({}), QUIET, strict=True)
    for path in (other / "test").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(MissingInputError, match=r"no picture of the test part can be decoded: .*blue/000.png"):
        evaluate(str(tmp_path / "run"), [], other, read_settings({}), QUIET)


def test_a_model_that_gives_classes_is_asked_for_no_words(vit, folder, tmp_path):
    trained(recipe_of(vit, folder=folder), tmp_path / "run")
    for asked in ({"tests": ["boolq"]}, {"tests": [], "harness": ["piqa"]}):
        with pytest.raises(ConfigError, match=r"the run's task is images: its model gives classes, not words. Leave"):
            evaluate(str(tmp_path / "run"), asked.pop("tests"), folder, read_settings({}), QUIET, **asked)


def test_tests_are_of_the_classes_that_the_model_knows(vit, folder, tmp_path):
    trained(recipe_of(vit, folder=folder), tmp_path / "run")
    other = write_set(tmp_path / "more", train=2, test=3)
    assert evaluate(str(tmp_path / "run"), [], other, read_settings({}), QUIET).scores[0].count == 9
    assert evaluate(str(tmp_path / "run"), [], None, read_settings({"records": 5}), QUIET).scores[0].count == 5
    shutil.rmtree(other / "train")
    assert evaluate(str(tmp_path / "run"), [], other, read_settings({}), QUIET).scores[0].count == 9
    (other / "test" / "red").rename(other / "test" / "rouge")
    message = (
        r"its classes are blue, green, rouge, and those of the model are blue, green, red. Give pictures of the same"
    )
    with pytest.raises(ConfigError, match=message):
        evaluate(str(tmp_path / "run"), [], other, read_settings({}), QUIET)
    environment = tmp_path / "run" / "environment.json"
    for content in ("{}", "[]", '{"labels": 5}', '{"labels": [1]}', '{"labels"'):
        environment.write_text(content)
        with pytest.raises(RunFolderError, match=r"environment.json does not say which classes it was trained on"):
            load_trained(str(tmp_path / "run"))


def test_sets_by_name_and_recipes_that_cannot_be_meant(vit, folder, tmp_path):
    pack(folder, tmp_path / "data" / "images" / "colours.tar.gz")
    named = recipe_of(vit, name="colours", data_dir=tmp_path / "data", train_records=9, held_out_records=3)
    data = prepare(named, QUIET).data
    assert (len(data.train), len(data.held_out), data.tests.records) == (9, 3, 12)
    for wrong in ({}, {"name": "a", "folder": folder}):
        with pytest.raises(ConfigError, match="give either name or folder"):
            recipe_of(vit, **wrong)
    with pytest.raises(ConfigError, match="folder and data_dir are both given; give one of them"):
        recipe_of(vit, folder=folder, data_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"unknown key 'data\.stritc'. Did you mean 'strict'\?"):
        recipe_of(vit, folder=folder, stritc=True)
    with pytest.raises(ConfigError, match=r"method 'prefix': prefix tuning is for text, and the task is images"):
        prepare(recipe_of(vit, "prefix", folder=folder), QUIET)


def test_a_model_that_was_trained_for_other_classes_gets_a_new_head(vit, tmp_path):
    old = load_model(
        str(vit), "float32", head=Head(head_settings(Classification("old", tuple("abcde"), "accuracy")), True)
    )
    old.model.save_pretrained(tmp_path)
    old.processor.save_pretrained(tmp_path)
    new = load_model(
        str(tmp_path), "float32", head=Head(head_settings(Classification("new", ("x", "y"), "accuracy")), True)
    )
    assert new.model.classifier.out_features == 2
    assert torch.equal(new.model.vit.layernorm.weight, old.model.vit.layernorm.weight)


def test_a_model_without_an_image_processor(tiny_bert_dir, folder):
    with pytest.raises(
        MissingInputError, match=r"no usable image processor in .*wrote for both model and image processor"
    ):
        prepare(recipe_of(tiny_bert_dir, folder=folder), QUIET)


@pytest.mark.parametrize("name", [name for name in bundled_recipes() if name.startswith("dinov2")])
def test_bundled_recipes_run_on_tiny_data(name, tiny_dinov2_dir, data_dir, tmp_path):
    values = {"model.name": str(tiny_dinov2_dir), "data.data_dir": str(data_dir), "data.train_records": 21}
    summary = trained(load_recipe(bundled_recipes()[name], values=values | {"data.size": 28}), tmp_path / "run")
    assert summary["scores_after"][0]["count"] == 9


@pytest.mark.long
@pytest.mark.parametrize("name", ["cifar10", "clothing10"])
def test_dinov2_learns_the_sets_at_hand(name, tmp_path):
    model, data_dir = SHARED / "models" / "dinov2_small", SHARED / "data"
    for needed in (model, data_dir / "images" / name):
        if not needed.is_dir():
            pytest.skip(f"no {needed}")
    values = {
        "model.name": str(model),
        "data.data_dir": str(data_dir),
        "data.train_records": 120,
        "data.held_out_records": 20,
        "data.size": 56,
        "evaluation.records": 100,
        "evaluation.before": False,
    }
    summary = trained(load_recipe(bundled_recipes()[f"dinov2-{name}"], values=values), tmp_path / "run")
    assert summary["scores_after"][0]["value"] > 0.2, "a tenth is chance"
    assert summary["merge"]["equal"]
