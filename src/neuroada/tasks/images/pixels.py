"""Pictures to what an image model reads: its processor at one size, augmentation, rows for Trainer."""

from __future__ import annotations

import importlib.util
import inspect
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from neuroada.errors import ConfigError
from neuroada.tasks.images.files import Picture
from neuroada.tasks.images.sets import decoded

if TYPE_CHECKING:
    from PIL.Image import Image

AREA, ASPECT = (0.5, 1.0), (3 / 4, 4 / 3)
"""Ranges of a random crop: its share of the image's area, a choice, and its width by its height, as is usual."""

TRIES = 10
"""To fit a random crop of the drawn area and aspect into the image."""


@dataclass(frozen=True)
class PixelProcessor:
    """A model's image processor, set to one size.

    size: height and width in pixels of what the model gets. dtype: of the model. arguments: that its forward needs
    beside the pixels.
    """

    processor: Any
    size: tuple[int, int]
    dtype: torch.dtype
    arguments: Mapping[str, bool]

    @classmethod
    def of(cls, processor: Any, model: PreTrainedModel, size: int | None = None) -> PixelProcessor:
        """The processor, changed to give square images of `size`, or else images of its own size.

        Raises:
            ConfigError: the size is less than a patch of the model.
        """
        config: Any = model.config
        patch = getattr(config, "patch_size", None)
        if size is not None and isinstance(patch, int) and size < patch:
            found = f"the model reads patches of {patch} pixels"
            raise ConfigError(f"data.size={size}", found, f"Give a multiple of {patch}")
        height, width = set_size(processor, size)
        own = getattr(config, "image_size", None)
        other = own is not None and (height, width) != (tuple(own) if isinstance(own, (list, tuple)) else (own, own))
        takes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        arguments = {"interpolate_pos_encoding": True} if other and takes else {}
        return cls(processor, (height, width), model.dtype, arguments)

    def __call__(self, image: Image, cropped: bool = False) -> Tensor:
        """float32 [3, height, width] of an RGB image; `cropped`: it has that size already."""
        settings = {"do_resize": False, "do_center_crop": False} if cropped else {}
        return self.processor(image, return_tensors="pt", **settings)["pixel_values"][0]

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch: pixel_values [B, 3, height, width] in the model's dtype, labels int64 [B], and the arguments."""
        pixels = torch.stack([row["pixel_values"] for row in rows]).to(self.dtype)
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows]), **self.arguments}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the processor, at its size, for `AutoImageProcessor`."""
        self.processor.save_pretrained(folder)


def set_size(processor: Any, size: int | None) -> tuple[int, int]:
    """Make a processor give images of one height and width, which are returned: `size`, or those that it gives.

    Where it crops after it has resized, it crops the same share of a smaller image.

    Raises:
        ConfigError: it says no size, and none is given.
    """
    edges = dict(processor.size or {})
    crop = dict(processor.crop_size or {}) if getattr(processor, "do_center_crop", False) else {}
    if not edges and size is None:
        raise ConfigError("size of the images", "the model's image processor says none", "Set data.size")
    edge = edges.get("shortest_edge") or max(edges.values(), default=0)
    own = crop or edges
    height, width = own.get("height", edge), own.get("width", edge)
    target = (height, width) if size is None else (size, size)
    if crop:
        processor.size = {name: round(value * target[0] / height) for name, value in edges.items()}
    elif "shortest_edge" in edges:
        processor.size = {"shortest_edge": max(target)}
    else:
        processor.size = {"height": target[0], "width": target[1]}
    if crop or "shortest_edge" in edges:
        processor.do_center_crop, processor.crop_size = True, {"height": target[0], "width": target[1]}
    return target


Augment = Callable[["Image", random.Random], "Image"]


def augmentation(size: tuple[int, int]) -> tuple[Augment, str]:
    """(a random crop, resized to `size`, and mirrored or not; which library does it, with its version).

    torchvision's transforms where it is installed, or else the same by Pillow, with other random numbers.
    """
    if importlib.util.find_spec("torchvision") is None:
        return lambda image, numbers: crop_and_mirror(image, size, numbers), f"Pillow {version('pillow')}"
    from torchvision.transforms import v2

    bicubic = v2.InterpolationMode.BICUBIC
    transform = v2.Compose(
        [v2.RandomResizedCrop(size, scale=AREA, ratio=ASPECT, interpolation=bicubic), v2.RandomHorizontalFlip()]
    )

    def augment(image: Image, numbers: random.Random) -> Image:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(numbers.getrandbits(63))
            return transform(image)

    return augment, f"torchvision {version('torchvision')}"


def crop_and_mirror(image: Image, size: tuple[int, int], numbers: random.Random) -> Image:
    """A random crop, resized to `size` (height, width) and mirrored half of the time."""
    from PIL import Image, ImageOps

    box = crop_box(image.width, image.height, numbers)
    crop = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return ImageOps.mirror(crop) if numbers.random() < 0.5 else crop


def crop_box(width: int, height: int, numbers: random.Random) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random part of an image, by AREA and ASPECT.

    The largest part in the middle of an allowed aspect, where no part of a drawn area and aspect fits.
    """
    low, high = map(math.log, ASPECT)
    for _ in range(TRIES):
        area, aspect = numbers.uniform(*AREA) * width * height, math.exp(numbers.uniform(low, high))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = numbers.randint(0, width - wide), numbers.randint(0, height - tall)
            return left, top, left + wide, top + tall
    wide = min(width, max(1, round(height * ASPECT[1])))
    tall = min(height, max(1, round(width / ASPECT[0])))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


class ImageRows(Dataset):
    """Rows {"pixel_values": float32 [3, height, width], "labels": int} of pictures, each decoded when it is asked for.

    epoch: a training sets it; a row's augmentation depends on it, on the seed and on the row's number only.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        labels: Sequence[str],
        processor: PixelProcessor,
        augment: Augment | None = None,
        seed: int = 0,
    ):
        """labels: class names, label 0 first. augment: what is done to each image while training."""
        self.pictures, self.processor, self.augment, self.seed = pictures, processor, augment, seed
        self.labels = {name: label for label, name in enumerate(labels)}
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = self.pictures[index]
        image = decoded(picture)
        if self.augment is not None:
            image = self.augment(image, random.Random(f"{self.seed}, {self.epoch}, {index}"))
        pixels = self.processor(image, cropped=self.augment is not None)
        return {"pixel_values": pixels, "labels": self.labels[picture.label]}
