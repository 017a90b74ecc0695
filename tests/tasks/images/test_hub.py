"""Pictures of sets of the hub, and what is wrong with them."""

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from neuroada.errors import MissingInputError
from neuroada.tasks.images.hub import read_hub
from pictures import PNG, contents, counts


@pytest.fixture
def hub(monkeypatch):
    """What `load_dataset` gives, by hub id."""
    sets: dict[str, DatasetDict] = {}

    def load(name):
        if name not in sets:
            raise ConnectionError("no connection.")
        return sets[name]

    monkeypatch.setattr(datasets, "load_dataset", load)
    return sets


def rows(labels: list[int], names: list[str] | None = None, **columns) -> Dataset:
    features = {"img": datasets.Image(), "label": ClassLabel(names=names or ["cat", "dog"])}
    features |= {name: ClassLabel(names=["x", "y"]) for name in columns}
    content = {"img": [{"bytes": PNG, "path": None}] * len(labels), "label": labels}
    return Dataset.from_dict(content | columns, features=Features(features))


def test_a_set_of_the_hub(hub):
    hub["uoft-cs/cifar10"] = DatasetDict(train=rows([0, 1, 0, 1]), test=rows([1, 0]))
    found = read_hub("cifar10")
    assert (found.source, found.labels) == ("hub:uoft-cs/cifar10", ("cat", "dog"))
    assert counts(found) == {"train": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}}
    assert contents(found)["test"] == [PNG, PNG]
    assert found.splits["test"][0].place == "hub:uoft-cs/cifar10/test, row 1"


def test_a_column_of_classes_is_named_where_there_are_two(hub):
    hub["some/set"] = DatasetDict(train=rows([0, 1], kind=[1, 0]), test=rows([0, 1], kind=[0, 1]))
    with pytest.raises(
        MissingInputError, match=r"columns of kind ClassLabel are label, kind. Name the column with data.lab"
    ):
        read_hub("some/set")
    assert read_hub("some/set", "kind").labels == ("x", "y")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (DatasetDict(train=rows([0, 1]), test=rows([0, -1])), r"hub:a/b/test, row 2: it has no label"),
        (DatasetDict(train=rows([0, 1]), test=rows([0, 0])), r"train and test have different classes: test lacks dog"),
        (DatasetDict(train=rows([0, 1])), r"there is neither a validation nor a test split in it"),
        (DatasetDict(all=rows([0, 1])), r"its splits are all. Name a set with train and test"),
        (
            DatasetDict(train=Dataset.from_dict({"text": ["a"]}, features=Features({"text": Value("string")}))),
            r"its columns of kind Image are none. Name another set",
        ),
    ],
)
def test_sets_of_the_hub_that_cannot_be_used(hub, found, message):
    hub["a/b"] = found
    with pytest.raises(MissingInputError, match=message):
        read_hub("a/b")


def test_a_set_that_the_hub_does_not_give(hub):
    with pytest.raises(
        MissingInputError, match=r"the hub does not give it \(no connection\). Give --data-dir .*, or connec"
    ):
        read_hub("cifar10")
    with pytest.raises(MissingInputError, match=r"image set clothing10: it is not one that is known to be on the hub"):
        read_hub("clothing10")


def test_a_set_to_test_on_needs_no_other_split(hub):
    hub["a/b"] = DatasetDict(validation=rows([0]), test=rows([1, 0, 0]))
    found = read_hub("a/b", to_test=True)
    assert (found.labels, counts(found)) == (("cat", "dog"), {"test": {"cat": 2, "dog": 1}})
