"""From pictures to pixels: the size that a processor gives, augmentation, rows and batches."""

import json
import random
from functools import partial
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from neuroada.errors import ConfigError
from neuroada.tasks.images import pixels
from neuroada.tasks.images.files import Picture
from neuroada.tasks.images.pixels import (
    AREA,
    ImageRows,
    PixelProcessor,
    augmentation,
    crop_and_mirror,
    crop_box,
    set_size,
)
from pictures import COLOURS, encoded, noisy, write_dinov2, write_vit

EDGES = ("height", "width")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"vit": write_vit(folder / "vit"), "dinov2": write_dinov2(folder / "dinov2")}


def load(
    models, name: str, size: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[PixelProcessor, torch.nn.Module]:
    model = AutoModelForImageClassification.from_pretrained(models[name], num_labels=3, dtype=dtype).eval()
    return PixelProcessor.of(AutoImageProcessor.from_pretrained(models[name]), model, size), model


def pictures(count: int = 4) -> list[Picture]:
    names = list(COLOURS)
    return [
        Picture(f"{n}.png", names[n % 3], partial(BytesIO, encoded(noisy(COLOURS[names[n % 3]], n, (30, 40)))))
        for n in range(count)
    ]


def test_pixels_are_those_of_the_models_processor(models):
    for name, side in (("vit", 16), ("dinov2", 28)):
        ours, _ = load(models, name)
        theirs = AutoImageProcessor.from_pretrained(models[name])
        image = noisy(COLOURS["red"], 0, (50, 40))
        expected = theirs(image, return_tensors="pt")["pixel_values"][0]
        assert ours.size == (side, side)
        assert torch.equal(ours(image), expected)
        assert ours(image).shape == (3, side, side)
        assert ours(image).dtype == torch.float32


@pytest.mark.parametrize(("name", "asked"), [("vit", 24), ("dinov2", 14), ("dinov2", 70)])
def test_another_size_keeps_the_share_that_is_cropped_and_is_saved(models, name, asked, tmp_path):
    ours, model = load(models, name, asked)
    image = noisy(COLOURS["red"], 0, (50, 40))
    assert ours(image).shape == (3, asked, asked)
    edges = {"vit": {"height": asked, "width": asked}, "dinov2": {"shortest_edge": asked * 32 // 28}}
    assert dict(ours.processor.size) == edges[name]
    ours.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert torch.equal(again(image, return_tensors="pt")["pixel_values"][0], ours(image))
    batch = ours.collate([{"pixel_values": ours(image), "labels": 1}])
    assert model(**batch).logits.shape == (1, 3)
    assert ours.arguments == ({"interpolate_pos_encoding": True} if name == "vit" else {})


def test_a_model_at_its_own_size_needs_no_argument(models):
    assert load(models, "vit")[0].arguments == load(models, "vit", 16)[0].arguments == {}


def test_a_size_less_than_a_patch(models):
    with pytest.raises(ConfigError, match=r"data.size=3: the model reads patches of 4 pixels. Give a multiple of 4"):
        load(models, "vit", 3)


class Settings:
    """What `set_size` reads and writes of an image processor."""

    def __init__(self, size, crop_size=None, do_center_crop=False):
        self.size, self.crop_size, self.do_center_crop = size, crop_size, do_center_crop


@pytest.mark.parametrize(
    ("before", "size", "target", "edges", "crop"),
    [
        (Settings({"height": 20, "width": 30}), None, (20, 30), {"height": 20, "width": 30}, None),
        (Settings({"height": 20, "width": 30}), 8, (8, 8), {"height": 8, "width": 8}, None),
        (Settings({"shortest_edge": 32}), None, (32, 32), {"shortest_edge": 32}, 32),
        (Settings({"shortest_edge": 32}), 8, (8, 8), {"shortest_edge": 8}, 8),
        (Settings({"shortest_edge": 32}, {"height": 28, "width": 28}, True), None, (28, 28), {"shortest_edge": 32}, 28),
        (Settings({"shortest_edge": 32}, {"height": 28, "width": 28}, True), 7, (7, 7), {"shortest_edge": 8}, 7),
        (
            Settings({"height": 32, "width": 32}, {"height": 28, "width": 28}, True),
            7,
            (7, 7),
            {"height": 8, "width": 8},
            7,
        ),
        (Settings({"shortest_edge": 32}, {"height": 28, "width": 28}), 16, (16, 16), {"shortest_edge": 16}, 16),
        (Settings({"longest_edge": 64}), None, (64, 64), {"height": 64, "width": 64}, None),
        (Settings(None), 16, (16, 16), {"height": 16, "width": 16}, None),
    ],
)
def test_sizes_of_processors_of_several_kinds(before, size, target, edges, crop):
    assert set_size(before, size) == target
    assert before.size == edges
    assert (before.crop_size if before.do_center_crop else None) == (crop and {"height": crop, "width": crop})


def test_a_processor_without_any_size():
    with pytest.raises(ConfigError, match=r"size of the images: the model's image processor says none. Set data.size"):
        set_size(Settings(None), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_a_batch_is_what_the_model_takes(models, name, dtype):
    processor, model = load(models, name, dtype=dtype)
    rows = ImageRows(pictures(), list(COLOURS), processor)
    batch = processor.collate([rows[number] for number in range(len(rows))])
    assert batch["labels"].tolist() == [0, 1, 2, 0]
    assert batch["pixel_values"].dtype == dtype
    assert torch.isfinite(model(**batch).loss)


def test_rows_are_augmented_by_seed_epoch_and_number_alone(models):
    processor, _ = load(models, "vit")
    augment, _ = augmentation(processor.size)

    def made(seed=0, epoch=0, order=(0, 1, 2, 3)):
        rows = ImageRows(pictures(), list(COLOURS), processor, augment, seed)
        rows.epoch = epoch
        found = {number: rows[number]["pixel_values"] for number in order}
        return torch.stack([found[number] for number in range(4)])

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = made()
    assert torch.equal(torch.get_rng_state(), state), "the numbers of dropout and shuffling are not touched"
    torch.manual_seed(6)
    assert torch.equal(made(order=(3, 1, 0, 2)), first)
    for other in (made(seed=1), made(epoch=1)):
        assert all(not torch.equal(one, two) for one, two in zip(first, other, strict=True))
    plain = ImageRows(pictures(), list(COLOURS), processor)
    assert torch.equal(plain[1]["pixel_values"], processor(Image.open(BytesIO(pictures()[1].open().read()))))
    assert not torch.equal(plain[1]["pixel_values"], first[1])


def test_augmented_images_have_the_size_of_the_others(models):
    processor, _ = load(models, "dinov2", 21)
    augment, by = augmentation(processor.size)
    rows = ImageRows(pictures(), list(COLOURS), processor, augment)
    assert {rows[number]["pixel_values"].shape for number in range(4)} == {(3, 21, 21)}
    assert by.split()[0] in ("Pillow", "torchvision")


@pytest.mark.parametrize(("width", "height"), [(32, 32), (500, 375), (20, 30), (1, 1), (3, 200), (200, 3)])
def test_crops_lie_in_the_image_and_have_an_allowed_area_and_aspect(width, height):
    numbers = random.Random(0)
    for _ in range(500):
        left, top, right, bottom = crop_box(width, height, numbers)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        wide, tall = right - left, bottom - top
        if min(width, height) >= 20:
            assert AREA[0] * 0.9 <= wide * tall / (width * height) <= 1
            assert 3 / 4 * 0.9 <= wide / tall <= 4 / 3 * 1.1
    if (width, height) == (200, 3):
        assert crop_box(200, 3, numbers) == (98, 0, 102, 3), "the middle, where no drawn part fits"


def test_crops_reach_all_sides_and_half_of_them_are_mirrored():
    numbers = random.Random(0)
    boxes = [crop_box(100, 80, numbers) for _ in range(2000)]
    assert min(box[0] for box in boxes) == min(box[1] for box in boxes) == 0
    assert max(box[2] for box in boxes) == 100
    assert max(box[3] for box in boxes) == 80
    ramp = Image.fromarray(np.tile(np.arange(0, 250, 5, dtype=np.uint8), (50, 1))).convert("RGB")
    mirrored = 0
    for _ in range(400):
        row = [pixel[0] for pixel in np.asarray(crop_and_mirror(ramp, (6, 6), numbers))[3]]
        falling = all(one > two for one, two in pairwise(row))
        assert falling or all(one < two for one, two in pairwise(row))
        mirrored += falling
    assert 160 < mirrored < 240


def test_torchvision_draws_from_the_same_ranges(monkeypatch):
    """Its crops are found from what they leave of a ramp in each direction."""
    pytest.importorskip("torchvision.transforms.v2", exc_type=ImportError)
    augment, by = augmentation((8, 8))
    assert by.startswith("torchvision ")
    steps = np.arange(200, dtype=np.uint8)
    both = Image.fromarray(
        np.stack([np.tile(steps, (200, 1)), np.tile(steps, (200, 1)).T, np.zeros((200, 200), np.uint8)], 2)
    )

    def areas(change) -> np.ndarray:
        found = []
        for number in range(300):
            crop = np.asarray(change(both, random.Random(number))).astype(float)
            spans = [np.ptp(crop[..., channel]) * 8 / 7 for channel in (0, 1)]
            found.append(spans[0] * spans[1] / 200**2)
        return np.asarray(found)

    theirs = areas(augment)
    monkeypatch.setattr(pixels.importlib.util, "find_spec", lambda name: None)
    ours = areas(augmentation((8, 8))[0])
    assert abs(theirs.mean() - ours.mean()) < 0.03
    assert abs(theirs.std() - ours.std()) < 0.03


def test_a_saved_processor_is_read_by_transformers_alone(models, tmp_path):
    ours, _ = load(models, "vit", 24)
    ours.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {"height": 24, "width": 24}
