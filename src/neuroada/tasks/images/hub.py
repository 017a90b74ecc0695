"""Pictures of a set of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import datasets

from neuroada.errors import MissingInputError
from neuroada.tasks.images.files import SPLITS, Picture, PictureSet, checked

HUB = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "dtd": "tanganke/dtd",
    "eurosat": "tanganke/eurosat",
    "fgvc": "HuggingFaceM4/FGVC-Aircraft",
    "oxford_pets": "timm/oxford-iiit-pet",
    "resisc45": "tanganke/resisc45",
    "stanford_cars": "tanganke/stanford_cars",
}
"""Hub ids of sets that are known by a shorter name."""


def read_hub(name: str, label: str | None = None, to_test: bool = False) -> PictureSet:
    """The set of a hub id, or of a name in HUB. label: its column of class names, where there are several such columns.
    to_test: only the split that is tested on is wanted, and no other need be there.

    Raises:
        MissingInputError: the hub does not give it, or it has no such columns or splits.
    """
    hub = HUB.get(name, name)
    asked, give = f"image set hub:{hub}", "Give --data-dir with its folder in it"
    if "/" not in hub:
        found = f"it is not one that is known to be on the hub ({', '.join(HUB)}), and hub ids have a slash"
        raise MissingInputError(f"image set {name}", found, f"{give}, or a hub id")
    try:
        found: Any = datasets.load_dataset(hub)
    except Exception as error:  # the transport library, and with it its errors, varies by version of the hub's client
        reason = (str(error).splitlines() or [type(error).__name__])[0].removesuffix(".")
        raise MissingInputError(asked, f"the hub does not give it ({reason})", f"{give}, or connect") from error
    parts = {SPLITS[split]: rows for split, rows in found.items() if split in SPLITS}
    if not parts:
        raise MissingInputError(asked, f"its splits are {', '.join(found)}", "Name a set with train and test")
    features = next(iter(parts.values())).features
    image = _column(asked, features, datasets.Image, None)
    classes = _column(asked, features, datasets.ClassLabel, label)
    names: list[str] = features[classes].names
    splits = {split: _rows(f"hub:{hub}/{split}", rows, image, classes, names) for split, rows in parts.items()}
    return checked(f"hub:{hub}", names, splits, to_test)


def _column(asked: str, features: Mapping[str, Any], kind: type, wanted: str | None) -> str:
    """The one column of a kind, or the wanted one."""
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if wanted in found:
        return wanted
    if len(found) == 1 and wanted is None:
        return found[0]
    what = f"its columns of kind {kind.__name__} are {', '.join(found) or 'none'}"
    raise MissingInputError(asked, what, "Name the column with data.label" if found else "Name another set")


def _rows(place: str, rows: Any, image: str, classes: str, names: list[str]) -> list[Picture]:
    plain = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    pictures = []
    for number, label in enumerate(rows[classes]):
        where = f"{place}, row {number + 1}"
        if label is None or label < 0:
            raise MissingInputError(where, "it has no label", "Name a set with labels in all its splits")
        pictures.append(Picture(where, names[label], partial(_content, plain, image, number)))
    return pictures


def _content(rows: Any, column: str, number: int) -> BinaryIO | Path:
    value = rows[number][column]
    return BytesIO(value["bytes"]) if value["bytes"] is not None else Path(value["path"])
