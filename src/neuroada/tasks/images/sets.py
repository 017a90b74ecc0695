"""Image classification: the parts of a set of pictures, and files among them that are no images."""

from __future__ import annotations

import base64
import importlib.util
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from neuroada.errors import ConfigError, MissingInputError
from neuroada.tasks.classification import Classification, stratified
from neuroada.tasks.images.files import SUFFIXES, Picture, PictureSet, read_folder
from neuroada.tasks.images.hub import read_hub

if TYPE_CHECKING:
    from PIL.Image import Image

SEED = 42
"""Of the held-out part and of the training subset, whatever the seed of a training."""

MOST_PIXELS = 89_478_485
"""Of an image. It is where Pillow begins to warn: a quarter of a gigabyte in three channels."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""That are decoded: Pillow knows more, one of which starts another program."""

THUMBNAIL = 72
"""Longest side of what a report shows, in pixels: a choice."""

NAMED = 5
"""Files that a message names; a run folder's records name all."""


@dataclass(frozen=True)
class LeftOut:
    """A file that cannot be decoded, and why."""

    place: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """selection: the part that chooses epochs and settings; it is never trained on, and never tested on.
    untested: those of `left_out` that are of the test part.
    """

    task: Classification
    source: str
    train: list[Picture]
    selection: list[Picture]
    test: list[Picture]
    left_out: list[LeftOut]
    untested: list[LeftOut]


@dataclass(frozen=True)
class Counts:
    """How many pictures each part has at most; none for all there are. test_seed: of the choice of test pictures."""

    train: int | None = None
    selection: int = 500
    test: int | None = None
    test_seed: int = SEED


def require_pillow() -> None:
    """Raise MissingInputError unless Pillow, which decodes images, is there."""
    if importlib.util.find_spec("PIL") is None:
        raise MissingInputError("images", "package pillow is not installed", "pip install 'neuroada[images]'")


def find_pictures(name: str, data_dir: Path | None, label: str | None = None, to_test: bool = False) -> PictureSet:
    """The set called `name` in `data_dir`, the folder `images` in it left out or not; without a folder, from the hub.
    to_test: only the split that is tested on is wanted, and no other need be there.

    Raises:
        MissingInputError: it is not there, or not laid out as it should be.
    """
    if data_dir is None:
        return read_hub(name, label, to_test)
    for folder in (data_dir / "images", data_dir):
        for path in (folder / f"{name}{suffix}" for suffix in ("", *SUFFIXES)):
            if path.exists():
                return read_folder(path, to_test)
    found = f"no images/{name} or {name} in it, folder or archive" if data_dir.is_dir() else "no such folder"
    raise MissingInputError(f"data folder {data_dir}", found, f"Put images/{name}/train/CLASS/FILE and so on there")


def load_images(found: PictureSet, name: str, counts: Counts, strict: bool = False, seed: int = SEED) -> ImageSet:
    """Choose the parts of a set, and decode every picture in them once; those that cannot be are left out.

    strict: refuse the set instead. seed: of the held-out part and of the subset, so keep it while the seeds of
    trainings vary.

    Raises:
        ConfigError: more training pictures asked for than there are.
        MissingInputError: Pillow is not there; `strict`, and a picture cannot be decoded; or none of a part can.
    """
    parts = choose(found, counts, seed)
    (train, selection, test), left_out = _decodable(parts, strict)
    few = sorted(set(found.labels) - {picture.label for picture in parts[0]})
    if few:
        has = f"no picture of class {few[0]!r} is among the {len(parts[0])} to train on"
        raise ConfigError(f"training on {found.source}", has, "Raise data.train_records, or hold fewer out")
    gone = sorted({picture.label for picture in parts[0]} - {picture.label for picture in train})
    empty = f"class {gone[0]!r} of the training" if gone else "" if selection and test else "the held-out or the test"
    if empty:
        reason = f"no picture of {empty} part can be decoded: {left_out[0].place} ({left_out[0].reason})"
        raise MissingInputError(f"image set {found.source}", reason, "Repair the files, or take the class out")
    tested = {picture.place for picture in parts[2]}
    untested = [each for each in left_out if each.place in tested]
    task = Classification(name, found.labels, "accuracy")
    return ImageSet(task, found.source, train, selection, test, left_out, untested)


def load_tests(found: PictureSet, name: str, counts: Counts, strict: bool = False) -> ImageSet:
    """The pictures to test on alone: as `load_images`, of a set that was read to test."""
    asked = _chosen(found.splits["test"], counts.test, counts.test_seed)
    (test,), left_out = _decodable([asked], strict)
    if not test:
        reason = f"no picture of the test part can be decoded: {left_out[0].place} ({left_out[0].reason})"
        raise MissingInputError(f"image set {found.source}", reason, "Repair the files")
    task = Classification(name, found.labels, "accuracy")
    return ImageSet(task, found.source, [], [], test, left_out, left_out)


def _decodable(parts: Sequence[list[Picture]], strict: bool) -> tuple[list[list[Picture]], list[LeftOut]]:
    """The parts without the files that cannot be decoded, and those."""
    require_pillow()
    problems = decode_all([picture for part in parts for picture in part])
    left_out = [LeftOut(place, reason) for place, reason in problems.items()]
    if left_out and strict:
        reason = f"it cannot be decoded ({left_out[0].reason}){_others_text(left_out[1:])}"
        do = "Repair or remove what is named; without strict such files are left out and counted"
        raise MissingInputError(f"image {left_out[0].place}", reason, do)
    return [[each for each in part if each.place not in problems] for part in parts], left_out


def choose(found: PictureSet, counts: Counts, seed: int) -> tuple[list[Picture], list[Picture], list[Picture]]:
    """(train, selection, test), each with about the whole's share of each class.

    A set with both a validation and a test split gives them as selection and test. Of a set with one of them that is
    the test, whole, and a tenth of the train split at most is held out of training for selection.
    """
    train, validation, test = (found.splits.get(name, []) for name in ("train", "validation", "test"))
    if validation and test:
        selection = _chosen(validation, counts.selection, seed)
    else:
        test = test or validation
        selection = _chosen(train, min(counts.selection, max(1, len(train) // 10)), seed)
        held_out = {picture.place for picture in selection}
        train = [picture for picture in train if picture.place not in held_out]
    if counts.train is not None and counts.train > len(train):
        has = f"it has {len(train):,} pictures to train on, beside those that are held out"
        raise ConfigError(
            f"train_records={counts.train} of {found.source}", has, f"Give 1 to {len(train)}, or null for all"
        )
    return _chosen(train, counts.train, seed), selection, _chosen(test, counts.test, counts.test_seed)


def _chosen(pictures: list[Picture], count: int | None, seed: int) -> list[Picture]:
    if count is None or count >= len(pictures):
        return pictures
    return [pictures[place] for place in stratified([picture.label for picture in pictures], count, seed)]


def decode_all(pictures: Sequence[Picture]) -> dict[str, str]:
    """By the places of those that cannot be decoded, why not; in their order."""
    from PIL import Image

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what it warns of is refused
        reasons = list(pool.map(_problem, pictures))
    return {picture.place: reason for picture, reason in zip(pictures, reasons, strict=True) if reason is not None}


def _problem(picture: Picture) -> str | None:
    from PIL import UnidentifiedImageError

    try:
        decoded(picture)
    except UnidentifiedImageError:  # its text repeats the place
        return "no image of a known format"
    except Exception as error:  # each of Pillow's decoders has errors of its own
        return (str(error).splitlines() or [type(error).__name__])[0].removesuffix(".")
    return None


def decoded(picture: Picture) -> Image:
    """The picture upright, in RGB: of several frames the first, and what is transparent on white.

    Raises:
        Exception: of many kinds, where it is no image, a part of one, or larger than MOST_PIXELS.
    """
    from PIL import Image, ImageOps

    with Image.open(picture.open(), formats=FORMATS) as file:
        if file.width * file.height > MOST_PIXELS:
            raise ValueError(f"{file.width:,} x {file.height:,} pixels are more than {MOST_PIXELS:,}")
        ImageOps.exif_transpose(file, in_place=True)
        if file.mode.startswith("I;16"):
            return file.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
        if file.mode in ("I", "F"):
            raise ValueError(f"values of mode {file.mode} have no known range")
        if file.has_transparency_data:
            ground = Image.new("RGBA", file.size, "white")
            return Image.alpha_composite(ground, file.convert("RGBA")).convert("RGB")
        return file.convert("RGB")


def thumbnail(picture: Picture) -> str:
    """The picture as a small JPEG, in a data URL."""
    image, file = decoded(picture), BytesIO()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file, "JPEG", quality=70, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def sizes_text(images: ImageSet) -> str:
    """What a run's header says of the parts."""
    train, selection, test = (f"{len(part):,}" for part in (images.train, images.selection, images.test))
    text = f"{len(images.task.labels)} classes; {train} pictures to train, {selection} to select by, {test} to test"
    return f"{text}; {left_out_text(images.left_out)}" if images.left_out else text


def left_out_text(left_out: Sequence[LeftOut]) -> str:
    """How many there are, and the first of them by name."""
    first = ", ".join(f"{each.place} ({each.reason})" for each in left_out[:NAMED])
    more = f", and {len(left_out) - NAMED:,} more" if len(left_out) > NAMED else ""
    return f"{len(left_out):,} cannot be decoded and {'is' if len(left_out) == 1 else 'are'} left out: {first}{more}"


def _others_text(others: Sequence[LeftOut]) -> str:
    if not others:
        return ""
    more = f" and {len(others) - NAMED:,} more" if len(others) > NAMED else ""
    return f", as are {', '.join(each.place for each in others[:NAMED])}{more}"
