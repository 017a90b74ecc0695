"""The parts of a set of pictures, and what becomes of files that are no images."""

import struct
import zlib
from base64 import b64decode
from collections import Counter
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neuroada.errors import ConfigError, MissingInputError
from neuroada.tasks.images import sets as images
from neuroada.tasks.images.files import Picture, read_folder
from neuroada.tasks.images.sets import Counts, decode_all, decoded, find_pictures, load_images, sizes_text, thumbnail
from pictures import COLOURS, encoded, noisy, pack, write_set

SHARED = Path(__file__).parents[4] / "shared" / "data"


def picture(content: bytes, label: str = "red") -> Picture:
    return Picture("here.png", label, partial(BytesIO, content))


def labels(pictures: list[Picture]) -> Counter:
    return Counter(each.label for each in pictures)


def places(pictures: list[Picture]) -> set[str]:
    return {each.place for each in pictures}


def test_of_a_test_split_alone_all_is_tested_and_a_tenth_of_the_training_is_held_out(tmp_path):
    found = read_folder(write_set(tmp_path / "set", train=20, test=4))
    chosen = load_images(found, "mine", Counts())
    assert labels(chosen.train) == dict.fromkeys(COLOURS, 18)
    assert labels(chosen.selection) == dict.fromkeys(COLOURS, 2)
    assert places(chosen.test) == places(found.splits["test"])
    assert places(chosen.train) | places(chosen.selection) == places(found.splits["train"])
    assert (chosen.task.name, chosen.task.labels, chosen.task.metric) == ("mine", tuple(COLOURS), "accuracy")
    assert chosen.left_out == []
    assert sizes_text(chosen) == "3 classes; 54 pictures to train, 6 to select by, 12 to test"


def test_of_validation_and_test_the_first_is_for_selection(tmp_path):
    found = read_folder(write_set(tmp_path / "set", train=4, validation=6, test=5))
    chosen = load_images(found, "mine", Counts(selection=9))
    assert labels(chosen.train) == dict.fromkeys(COLOURS, 4)
    assert labels(chosen.selection) == dict.fromkeys(COLOURS, 3)
    assert places(chosen.selection) <= places(found.splits["validation"])
    assert places(chosen.test) == places(found.splits["test"])


def test_subsets_keep_the_share_of_each_class_and_the_seed_is_not_that_of_the_training(tmp_path):
    found = read_folder(write_set(tmp_path / "set", train=20, test=20))
    one, two = (load_images(found, "s", Counts(train=9, selection=3, test=6, test_seed=seed)) for seed in (0, 1))
    assert labels(one.train) == dict.fromkeys(COLOURS, 3)
    assert labels(one.selection) == dict.fromkeys(COLOURS, 1)
    assert labels(one.test) == dict.fromkeys(COLOURS, 2)
    assert (one.train, one.selection) == (two.train, two.selection)
    assert one.test != two.test
    assert load_images(found, "s", Counts(train=9), seed=1).train != one.train
    assert load_images(found, "s", Counts(selection=3)).selection == one.selection, "whatever the size of the subset"


def test_more_pictures_than_there_are(tmp_path):
    found = read_folder(write_set(tmp_path / "set", train=20, test=1))
    message = r"train_records=55 of .*: it has 54 pictures to train on, beside those that are held out. Give 1 to 54"
    with pytest.raises(ConfigError, match=message):
        load_images(found, "s", Counts(train=55))


WHOLE = encoded(noisy(COLOURS["red"], 0, (64, 64)))
BROKEN = {
    "no image": (b"text", "no image of a known format"),
    "empty": (b"", "no image of a known format"),
    "cut short": (WHOLE[: len(WHOLE) // 2], "image file is truncated"),
    "damaged": (WHOLE[:5000] + b"damage" + WHOLE[5006:], "data stream"),
}


@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=BROKEN)
def test_files_that_cannot_be_decoded_are_named_counted_and_left_out_or_refused(tmp_path, content, reason):
    folder = write_set(tmp_path / "set", train=3, validation=2, test=2)
    bad = [folder / part / "red" / "001.png" for part in ("train", "test")]
    for path in bad:
        path.write_bytes(content)
    found = read_folder(folder)
    chosen = load_images(found, "s", Counts())
    assert [each.place for each in chosen.left_out] == [str(path) for path in bad]
    assert all(reason in each.reason for each in chosen.left_out)
    assert labels(chosen.train) == {"blue": 3, "green": 3, "red": 2}
    assert labels(chosen.test) == {"blue": 2, "green": 2, "red": 1}
    text = sizes_text(chosen)
    assert f"; 2 cannot be decoded and are left out: {bad[0]} ({chosen.left_out[0].reason}), {bad[1]} (" in text
    message = (
        rf"image {bad[0]}: it cannot be decoded \(.+\), as are {bad[1]}. Repair or remove what is named; without st"
    )
    with pytest.raises(MissingInputError, match=message):
        load_images(found, "s", Counts(), strict=True)


def test_many_broken_files_are_counted_and_some_named(tmp_path):
    folder = write_set(tmp_path / "set", train=9, test=1)
    for number in range(1, 9):
        (folder / "train" / "red" / f"00{number}.png").write_bytes(b"")
    chosen = load_images(read_folder(folder), "s", Counts())
    assert len(chosen.left_out) == 8
    assert sizes_text(chosen).count(".png") == 5
    assert sizes_text(chosen).endswith(", and 3 more")


@pytest.mark.parametrize(
    ("split", "part"), [("train", "class 'red' of the training"), ("test", "the held-out or the test")]
)
def test_a_class_without_any_image_is_refused(tmp_path, split, part):
    folder = write_set(tmp_path / "set", train=3, test=1)
    for path in (folder / split).rglob("*.png") if split == "test" else (folder / "train" / "red").iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        MissingInputError, match=f"no picture of {part} part can be decoded: .*Repair the files, or take"
    ):
        load_images(read_folder(folder), "s", Counts())


def huge_png(width: int, height: int) -> bytes:
    """The beginning of a PNG that says it is so large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    beginning = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return beginning + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize("size", [(20_000, 5_000), (60_000, 60_000)])
def test_an_image_that_would_fill_the_memory_is_not_decoded(size, recwarn):
    problems = decode_all([picture(huge_png(*size))])
    assert "pixels" in problems["here.png"]
    assert not [warning for warning in recwarn if issubclass(warning.category, Image.DecompressionBombWarning)]


def test_the_limit_is_that_of_pillow():
    assert images.MOST_PIXELS == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "I;16", "RGB"])
def test_every_kind_of_image_becomes_rgb(mode):
    grey = noisy((120, 120, 120), 0)
    if mode == "I;16":
        image = Image.new("I;16", grey.size, 120 * 257)
    else:
        image = grey.convert(mode)
    found = decoded(picture(encoded(image, "TIFF" if mode == "CMYK" else "PNG")))
    assert (found.mode, found.size) == ("RGB", grey.size)
    means = np.asarray(found).mean((0, 1)).tolist()
    assert means == pytest.approx([120] * 3, abs=40 if mode == "1" else 8)


def test_what_is_transparent_is_white():
    for image in (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), Image.new("LA", (4, 4), (10, 0))):
        assert decoded(picture(encoded(image))).getcolors() == [(16, (255, 255, 255))]
    palette = Image.new("P", (4, 4), 0)
    file = BytesIO()
    palette.save(file, "PNG", transparency=0)
    assert decoded(picture(file.getvalue())).getcolors() == [(16, (255, 255, 255))]


def test_sixteen_bits_of_either_order_become_eight():
    values = np.array([[0, 256], [40_000, 65_535]], dtype=np.uint16)
    for order in ("<u2", ">u2"):
        file = BytesIO()
        little = Image.fromarray(values)
        if order == "<u2":
            little.save(file, "TIFF")
        else:
            mode = "I;16B"
            Image.frombytes(mode, (2, 2), values.astype(order).tobytes()).save(file, "TIFF")
        assert np.asarray(decoded(picture(file.getvalue())))[..., 0].tolist() == [[0, 1], [156, 255]]


@pytest.mark.parametrize("values", [np.full((2, 2), 0.5, dtype=np.float32), np.full((2, 2), 40_000, dtype=np.int32)])
def test_numbers_without_a_known_range_are_no_picture(values):
    file = BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    with pytest.raises(ValueError, match="have no known range"):
        decoded(picture(file.getvalue()))


def test_formats_that_start_other_programs_are_not_tried():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    assert decode_all([picture(postscript)]) == {"here.png": "no image of a known format"}


def test_a_class_that_no_picture_to_train_on_has(tmp_path):
    found = read_folder(write_set(tmp_path / "set", train=20, test=4))
    with pytest.raises(ConfigError, match=r"no picture of class '\w+' is among the 2 to train on. Raise data.train"):
        load_images(found, "mine", Counts(train=2))


def test_a_photo_lies_as_the_camera_says():
    upright = noisy(COLOURS["blue"], 0, (6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # taken a quarter turn to the left
    file = BytesIO()
    upright.rotate(90, expand=True).save(file, "PNG", exif=exif)
    assert decoded(picture(file.getvalue())).tobytes() == upright.tobytes()


def test_of_several_frames_the_first_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    file = BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert decoded(picture(file.getvalue())).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(300, 100), (8, 8)])
def test_a_thumbnail_is_small_and_never_larger_than_the_picture(size):
    url = thumbnail(picture(encoded(noisy(COLOURS["green"], 0, size))))
    assert url.startswith("data:image/jpeg;base64,")
    assert len(url) < 4000
    small = Image.open(BytesIO(b64decode(url.partition(",")[2])))
    assert small.size == ((72, 24) if size == (300, 100) else size)


def test_a_set_is_found_in_the_data_folder_as_folder_or_archive(tmp_path):
    write_set(tmp_path / "data" / "images" / "one", train=2, test=1)
    write_set(tmp_path / "data" / "two", train=2, test=1)
    pack(write_set(tmp_path / "three", train=2, test=1), tmp_path / "data" / "images" / "three.tar.gz")
    for name in ("one", "two", "three"):
        assert len(find_pictures(name, tmp_path / "data").splits["train"]) == 6
    with pytest.raises(
        MissingInputError, match=r"no images/four or four in it, folder or archive. Put images/four/train/"
    ):
        find_pictures("four", tmp_path / "data")
    with pytest.raises(MissingInputError, match=r"data folder .*/absent: no such folder"):
        find_pictures("one", tmp_path / "absent")


def test_without_pillow_the_message_says_what_to_install(tmp_path, monkeypatch):
    found = read_folder(write_set(tmp_path / "set", train=2, test=1))
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingInputError, match=r"package pillow is not installed. pip install 'neuroada\[images\]'"):
        load_images(found, "s", Counts())


@pytest.mark.parametrize(
    ("name", "sizes", "largest"), [("cifar10", (9_500, 500, 2_000), 200), ("clothing10", (2_762, 306, 341), 81)]
)
def test_the_sets_at_hand(name, sizes, largest):
    if not (SHARED / "images" / name).is_dir():
        pytest.skip(f"no {SHARED}/images/{name}")
    chosen = load_images(find_pictures(name, SHARED), name, Counts(), strict=True)
    assert tuple(map(len, (chosen.train, chosen.selection, chosen.test))) == sizes
    assert len(chosen.task.labels) == 10
    assert max(labels(chosen.test).values()) == largest
