"""Pictures in folders of class names, or in tar archives of the same."""

from __future__ import annotations

import gzip
import lzma
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from neuroada.errors import MissingInputError
from neuroada.tasks.images.bounded import Bounded

SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
"""Splits by the names that their folders and archives may have."""

SUFFIXES = (".tar.gz", ".tgz", ".tar")

MOST_BYTES = 4 * 2**30
"""Of all files of an archive, which are kept in memory: a choice."""

BLOCK = 1 << 20
"""Bytes that headers may take beyond an eighth of the files: a choice."""

UNSHOWN = ("Cc", "Cs", "Zl", "Zp")
"""Kinds of characters, as Unicode calls them, that names may not have: controls, half characters, ends of lines."""

TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Characters that change the direction of what is shown after them, which names may not have either."""

LAYOUT = "Lay files out as SPLIT/CLASS/FILE, with SPLIT train, validation (or val) or test"

Open = Callable[[], BinaryIO | Path]


@dataclass(frozen=True)
class Picture:
    """A file that should be an image. place: what messages call it. label: its class. open: gives its content."""

    place: str
    label: str
    open: Open


@dataclass(frozen=True)
class PictureSet:
    """Pictures by split ("train", "validation", "test"), each with all labels, which are in the order of the head."""

    source: str
    labels: tuple[str, ...]
    splits: dict[str, list[Picture]]


@dataclass(frozen=True)
class _Member:
    """A file or, without `open`, a folder. parts: of its name, from the split on."""

    place: str
    parts: tuple[str, ...]
    open: Open | None


def read_folder(path: Path, to_test: bool = False) -> PictureSet:
    """The set in a folder of `train/CLASS/FILE` and so on, or of archives such as `train.tar.gz` of the same, or in one
    archive of all splits. Names that begin with a dot are passed over.

    Nothing is unpacked on disk: an archive's files are read into memory, after their names and kinds are checked.

    to_test: only the split that is tested on is wanted, and no other need be there.

    Raises:
        MissingInputError: a split or class is missing or empty, something else lies between them, or an archive is
            damaged or holds what it should not, such as a path that leads out of it.
    """
    if not path.exists():
        raise MissingInputError(f"image set {path}", "no such folder or archive", LAYOUT)
    try:
        members = list(_in_archive(path) if path.is_file() else _in_folder(path, to_test))
    except OSError as error:
        if isinstance(error, MissingInputError):
            raise
        found = f"it cannot be read ({error.strerror or error})"
        raise MissingInputError(f"image set {path}", found, "Give files that you may read") from error
    found = _by_class(members)
    splits = {
        split: [picture for name in sorted(classes) for picture in sorted(classes[name], key=lambda each: each.place)]
        for split, classes in found.items()
    }
    names = {name for classes in found.values() for name in classes}
    return checked(str(path), sorted(names), splits, to_test)


def _in_folder(path: Path, to_test: bool) -> Iterator[_Member]:
    """Of the folder's splits, each a folder or an archive; what else lies beside them is passed over."""
    for name in (split for split in SPLITS if split != "train" or not to_test):
        if (path / name).is_dir():
            yield _Member(str(path / name), (name,), None)
            yield from _walk(path / name, (name,))
        else:
            archives = (path / f"{name}{suffix}" for suffix in SUFFIXES)
            for archive in filter(Path.is_file, archives):
                yield from _in_archive(archive, name)
                break


def _walk(folder: Path, parts: tuple[str, ...]) -> Iterator[_Member]:
    """A split's folder, and the folders in it."""
    for path in folder.iterdir():
        if not path.name.startswith("."):
            here = (*parts, path.name)
            if path.is_dir():
                yield _Member(str(path), here, None)
                if len(here) == 2:
                    yield from _walk(path, here)
            elif path.is_file():
                yield _Member(str(path), here, partial(Path, path))
            else:
                raise MissingInputError(str(path), "it is neither a file nor a folder", "Take it out")


def _in_archive(path: Path, split: str | None = None) -> Iterator[_Member]:
    """Of a tar archive of one split, or of all; each is checked before it is read.

    gzip and tarfile report damage in errors of many kinds.
    """
    room, seen = MOST_BYTES, set()
    try:
        with _content_of(path) as content, tarfile.open(fileobj=content, mode="r|") as archive:
            for info in archive:
                place = f"{path}: {ascii(info.name)[1:-1]}"
                parts = _sound_parts(info, place)
                if info.size < 0:
                    raise MissingInputError(place, "its size is negative", "Make the archive again")
                room -= info.size
                if room < 0:
                    raise _too_large(path)
                if not parts or any(part.startswith(".") for part in parts):
                    continue
                if split is not None and parts[0] != split:
                    raise MissingInputError(place, f"it is not in {split}/", f"Put {split}/CLASS/FILE into {path.name}")
                if info.isdir():
                    yield _Member(place, parts, None)
                    continue
                if parts in seen:
                    raise MissingInputError(place, "the archive holds it twice", "Make the archive again")
                seen.add(parts)
                file = archive.extractfile(info)
                assert file is not None
                yield _Member(place, parts, partial(BytesIO, file.read()))
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MissingInputError(f"archive {path}", f"it is not a whole tar file ({reason})", "Copy it again") from error


def _content_of(path: Path) -> Bounded:
    """The decompressed archive, names and headers included."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    stream = cast("BinaryIO", gzip.open(path) if packed else path.open("rb"))  # noqa: SIM115 (`Bounded` closes it)
    return Bounded(stream, MOST_BYTES + MOST_BYTES // 8 + BLOCK, _too_large(path))


def _too_large(path: Path) -> MissingInputError:
    found = f"its files are more than {MOST_BYTES:,} bytes"
    return MissingInputError(f"archive {path}", found, "Unpack it, and give the folder")


def _sound_parts(info: tarfile.TarInfo, place: str) -> tuple[str, ...]:
    """Of the name of a plain file or folder, which must lie in the archive."""
    name = PurePosixPath(info.name)
    if name.is_absolute() or ".." in name.parts or "\\" in info.name:
        raise MissingInputError(place, "its name leads out of the archive", "Make the archive again")
    plain = info.isdir() or (info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.issparse())
    if not plain:
        raise MissingInputError(place, "it is a link or a special file", "Make the archive again, of plain files")
    return name.parts


def _by_class(members: Iterable[_Member]) -> dict[str, dict[str, list[Picture]]]:
    """Pictures by split and class."""
    found: dict[str, dict[str, list[Picture]]] = {}
    folders: dict[tuple[str, str], str] = {}
    for member in members:
        if not all(_is_shown(letter) for part in member.parts for letter in part):
            raise MissingInputError(ascii(member.place), "its name has characters that cannot be shown", "Rename it")
        split = SPLITS.get(member.parts[0])
        if split is None:
            raise MissingInputError(member.place, f"no split is called {member.parts[0]!r}", LAYOUT)
        classes = found.setdefault(split, {})
        if len(member.parts) == 1 and member.open is None:
            continue
        if len(member.parts) == 2 and member.open is None:
            classes.setdefault(member.parts[1], [])
            folders[split, member.parts[1]] = member.place
        elif len(member.parts) == 3 and member.open is not None:
            classes.setdefault(member.parts[1], []).append(Picture(member.place, member.parts[1], member.open))
        else:
            kind = "a folder inside a class's folder" if member.open is None else "not in the folder of a class"
            raise MissingInputError(member.place, f"it is {kind}", LAYOUT)
    for (split, name), place in folders.items():
        if not found[split][name]:
            raise MissingInputError(f"class folder {place}", "there is no file in it", "Put images there, or remove it")
    return found


def _is_shown(letter: str) -> bool:
    return unicodedata.category(letter) not in UNSHOWN and unicodedata.bidirectional(letter) not in TURNING


def checked(source: str, names: Iterable[str], splits: dict[str, list[Picture]], to_test: bool) -> PictureSet:
    """The set, if it can train and test a classifier, or else `to_test` test one. names: of classes, in their order."""
    asked = f"image set {source}"
    if not to_test and "train" not in splits:
        raise MissingInputError(asked, "there is no train split in it", LAYOUT)
    tested = [split for split in ("test", "validation") if split in splits]
    if not tested:
        raise MissingInputError(asked, "there is neither a validation nor a test split in it", LAYOUT)
    if to_test:
        splits = {"test": splits[tested[0]]}
    empty = [split for split, pictures in splits.items() if not pictures]
    if empty:
        raise MissingInputError(asked, f"its {empty[0]} split is empty", "Put images there, or remove it")
    there = {picture.label for picture in splits["test" if to_test else "train"]}
    labels = tuple(name for name in names if name in there)
    if len(labels) < 2 and not to_test:
        raise MissingInputError(asked, f"the only class of its train split is {labels[0]}", "Give two classes or more")
    for split, pictures in splits.items():
        others = {picture.label for picture in pictures}
        lacking, more = sorted(set(labels) - others), sorted(others - set(labels))
        if lacking or more:
            parts = [f"{split} lacks {', '.join(lacking)}"] if lacking else []
            parts += [f"train lacks {', '.join(more)}"] if more else []
            do = "Give all splits pictures of the same classes"
            raise MissingInputError(asked, f"train and {split} have different classes: {'; '.join(parts)}", do)
    return PictureSet(source, labels, splits)
