"""Pictures in folders and archives, and what is wrong with them."""

import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest

from neuroada.errors import MissingInputError
from neuroada.tasks.images import files as image_files
from neuroada.tasks.images.files import read_folder
from pictures import COLOURS, PNG, contents, counts, pack, write_set


def write_tar(path: Path, members: list[tuple[str, bytes | None]], **changes) -> Path:
    """Members (name, content), without content a folder; `changes` are fields of the last one."""
    with tarfile.open(path, "w:gz") as file:
        for place, (name, content) in enumerate(members):
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            info.size = len(content or b"")
            for field, value in changes.items() if place == len(members) - 1 else ():
                setattr(info, field, value)
            file.addfile(info, BytesIO(content or b""))
    return path


SOUND = [(f"{split}/{name}/1.png", PNG) for split in ("train", "test") for name in ("cat", "dog")]


def test_a_folder_of_splits(tmp_path):
    found = read_folder(write_set(tmp_path / "set", train=3, test=2))
    assert found.labels == ("blue", "green", "red")
    assert counts(found) == {"train": Counter(dict.fromkeys(COLOURS, 3)), "test": Counter(dict.fromkeys(COLOURS, 2))}
    assert [picture.place for picture in found.splits["test"]] == [
        str(tmp_path / "set" / "test" / name / f"00{number}.png") for name in COLOURS for number in (0, 1)
    ]
    assert found.source == str(tmp_path / "set")


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar"])
def test_archives_hold_what_folders_hold(tmp_path, suffix):
    folder = write_set(tmp_path / "set", train=3, val=2)
    whole = pack(folder, tmp_path / f"whole{suffix}")
    for split in ("train", "val"):
        (tmp_path / "one" / split).mkdir(parents=True)
        (folder / split).rename(tmp_path / "one" / split / split)
        pack(tmp_path / "one" / split, tmp_path / "parts" / f"{split}{suffix}")
    split_apart = read_folder(tmp_path / "parts")
    assert contents(read_folder(whole)) == contents(split_apart)
    assert split_apart.splits.keys() == {"train", "validation"}
    assert len(split_apart.splits["train"]) == 9
    assert split_apart.splits["train"][0].place == f"{tmp_path / 'parts'}/train{suffix}: train/blue/000.png"
    assert not (tmp_path / "parts" / "train").exists()


def test_the_order_is_that_of_names_whatever_the_file_system_or_archive_gives(tmp_path):
    members = [(f"{split}/{name}/{n}.png", PNG) for split in ("train", "test") for name in "ba" for n in (2, 10, 1)]
    found = read_folder(write_tar(tmp_path / "set.tar.gz", members))
    names = [picture.place.split(": ")[1] for picture in found.splits["train"]]
    assert names == [f"train/{name}/{n}.png" for name in "ab" for n in (1, 10, 2)]
    assert found.labels == ("a", "b")


def test_names_with_a_dot_before_them_are_passed_over(tmp_path):
    folder = write_set(tmp_path / "set", train=1, test=1)
    for place in (folder, folder / "train", folder / "train" / "red"):
        (place / ".DS_Store").write_bytes(b"x")
    (folder / "train" / ".cache").mkdir()
    assert sum(counts(read_folder(folder))["train"].values()) == 3
    members = [*SOUND, ("train/cat/._1.png", b"x"), ("./train/.hidden/1.png", b"x")]
    assert counts(read_folder(write_tar(tmp_path / "set.tgz", members)))["train"] == {"cat": 1, "dog": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "train" / "pink").mkdir(), r"class folder .*/train/pink: there is no file in it. Put images"),
        (lambda f: (f / "train" / "a.png").write_bytes(PNG), r"/train/a.png: it is not in the folder of a class. Lay"),
        (lambda f: (f / "test" / "red" / "more").mkdir(), r"/red/more: it is a folder inside a class's folder"),
        (
            lambda f: (f / "train" / "red" / "gone.png").symlink_to("nothing"),
            "neither a file nor a folder. Take it out",
        ),
        (
            lambda f: (f / "train" / "red").rename(f / "train" / "rouge"),
            "different classes: test lacks rouge; train lacks red",
        ),
        (
            lambda f: (f / "train").rename(f / "training"),
            "there is no train split in it. Lay files out as SPLIT/CLASS/FILE",
        ),
        (lambda f: [(f / "test").rename(f / "val"), (f / "test").mkdir()], "its test split is empty. Put images there"),
        (lambda f: (f / "test").rename(f / "dev"), "there is neither a validation nor a test split in it"),
        (
            lambda f: (f / "test" / "red" / "a\nb.png").write_bytes(PNG),
            r"a\\nb.png': its name has characters that cannot",
        ),
        (
            lambda f: (f / "test" / "red" / "a\u202egnp.exe").write_bytes(PNG),
            r"a\\u202egnp.exe': its name has characters that cannot",
        ),
    ],
    ids=[
        "empty class",
        "no class",
        "too deep",
        "broken link",
        "classes differ",
        "no train",
        "empty split",
        "no test",
        "line feed",
        "turned around",
    ],
)
def test_folders_that_are_no_sets(tmp_path, change, message):
    folder = write_set(tmp_path / "set", train=1, test=1)
    read_folder(folder)
    change(folder)
    with pytest.raises(MissingInputError, match=message):
        read_folder(folder)


@pytest.mark.parametrize(
    "name", ["Screenshot at 3.45\u202fPM.png", "a\u00a0b.png", "\U0001f469\u200d\U0001f373.png", "ö é.png"]
)
def test_names_with_spaces_of_any_kind_and_signs_are_taken(tmp_path, name):
    folder = write_set(tmp_path / "set", train=1, test=1)
    (folder / "train" / "red" / name).write_bytes(PNG)
    assert counts(read_folder(folder))["train"]["red"] == 2


def test_a_set_to_test_on_needs_no_other_split(tmp_path):
    folder = write_set(tmp_path / "set", val=1, test=2)
    archive = pack(folder, tmp_path / "set.tar")
    for path in (folder, archive):
        found = read_folder(path, to_test=True)
        assert found.labels == tuple(COLOURS)
        assert counts(found) == {"test": Counter(dict.fromkeys(COLOURS, 2))}
    (folder / "train.tar").write_bytes(b"damaged, and not looked at")
    read_folder(folder, to_test=True)
    for path in sorted((folder / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    with pytest.raises(MissingInputError, match="its test split is empty"):
        read_folder(folder, to_test=True)
    (folder / "test").rmdir()
    assert counts(read_folder(folder, to_test=True)) == {"test": Counter(dict.fromkeys(COLOURS, 1))}
    (folder / "val").rename(folder / "train")
    with pytest.raises(MissingInputError, match="there is neither a validation nor a test split"):
        read_folder(folder, to_test=True)


def test_one_class_is_not_enough_and_nothing_is_nothing(tmp_path):
    archive = write_tar(tmp_path / "set.tar", [("train/cat/1.png", PNG), ("test/cat/1.png", PNG)])
    with pytest.raises(MissingInputError, match=r"the only class of its train split is cat. Give two classes or more"):
        read_folder(archive)
    with pytest.raises(MissingInputError, match=r"image set .*/absent: no such folder or archive"):
        read_folder(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("../train/cat/2.png", {}, r"\.\./train/cat/2.png: its name leads out of the archive. Make"),
        ("train/../../cat/2.png", {}, "its name leads out of the archive"),
        ("/train/cat/2.png", {}, "its name leads out of the archive"),
        ("train\\..\\cat.png", {}, "its name leads out of the archive"),
        (
            "train/cat/2.png",
            {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0},
            "a link or a special file",
        ),
        ("train/cat/2.png", {"type": tarfile.LNKTYPE, "linkname": "train/cat/1.png", "size": 0}, "a link or a special"),
        ("train/cat/2.png", {"type": tarfile.FIFOTYPE, "size": 0}, "it is a link or a special file. Make the archive"),
        ("train/cat/2.png", {"type": tarfile.CHRTYPE, "size": 0}, "it is a link or a special file"),
        ("train/cat/2.png", {"pax_headers": {"GNU.sparse.map": "0,5", "GNU.sparse.size": "999999"}}, "a special file"),
        ("train/cat/1.png", {}, "train/cat/1.png: the archive holds it twice"),
        ("train/cat", {}, "train/cat: it is not in the folder of a class"),
        ("train/cat/more/2.png", {}, "train/cat/more/2.png: it is not in the folder of a class"),
        ("README.md", {}, "README.md: no split is called 'README.md'. Lay files out"),
        ("train/bird/", {}, "set.tar.gz: train/bird: there is no file in it"),
        ("train/bird/2.png", {}, "different classes: test lacks bird"),
        ("train/cat/\udc80.png", {}, r"its name has characters that cannot be shown"),
    ],
)
def test_odd_members_of_an_archive(tmp_path, name, changes, message):
    content = None if name.endswith("/") else PNG if "size" not in changes else b""
    archive = write_tar(tmp_path / "set.tar.gz", [*SOUND, (name, content)], **changes)
    with pytest.raises(MissingInputError, match=message):
        read_folder(archive)
    assert [path.name for path in tmp_path.rglob("*")] == ["set.tar.gz"]


def test_an_archive_of_one_split_holds_no_other(tmp_path):
    write_tar(tmp_path / "train.tar.gz", SOUND)
    with pytest.raises(
        MissingInputError, match=r"test/cat/1.png: it is not in train/. Put train/CLASS/FILE into train.tar"
    ):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"no tar", lambda b: b[:-40] + b"x" * 32 + b[-8:]]
)
def test_a_damaged_archive(tmp_path, damage):
    archive = write_tar(tmp_path / "set.tar.gz", SOUND)
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(
        MissingInputError, match=rf"archive {archive}: it is not a whole tar file \(.*\). Copy it again"
    ):
        read_folder(archive)


def test_an_archive_is_not_read_beyond_a_size(tmp_path, monkeypatch):
    archive = write_tar(tmp_path / "set.tar.gz", SOUND)
    monkeypatch.setattr(image_files, "MOST_BYTES", 4 * len(PNG))
    read_folder(archive)
    monkeypatch.setattr(image_files, "MOST_BYTES", 4 * len(PNG) - 1)
    with pytest.raises(
        MissingInputError, match=r"its files are more than [\d,]+ bytes. Unpack it, and give the folder"
    ):
        read_folder(archive)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    folder = write_set(tmp_path / "set", train=1, test=1)

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(MissingInputError, match=r"set: it cannot be read \(Permission denied\). Give files that you"):
        read_folder(folder)


def test_an_archive_whose_headers_alone_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MOST_BYTES", 1000)
    monkeypatch.setattr(image_files, "BLOCK", 10_000)
    path = tmp_path / "train.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as file:
        file.addfile(tarfile.TarInfo("train/" + "a" * 1_000_000))
    assert path.stat().st_size < 10_000
    with pytest.raises(MissingInputError, match=r"train.tar.gz: its files are more than 1,000 bytes"):
        read_folder(path)


@pytest.mark.parametrize("name", ["train/.x", "train/cat/a.png"])
def test_a_negative_size_does_not_lead_back(name, tmp_path):
    info = tarfile.TarInfo(name)
    info.size = -512
    path = tmp_path / "train.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10 * 512))
    with pytest.raises(MissingInputError, match=r"size is negative|not a whole tar file"):
        read_folder(path)
