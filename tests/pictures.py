"""Sets of small images, and the directory of a tiny image model."""

import json
import random
import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from neuroada.tasks.images.files import PictureSet

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (210, 50, 40)}


def noisy(colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """An RGB image around one colour; the same for the same seed."""
    numbers = random.Random(seed)
    values = [
        min(255, max(0, channel + numbers.randint(-40, 40))) for _ in range(size[0] * size[1]) for channel in colour
    ]
    return Image.frombytes("RGB", size, bytes(values))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = BytesIO()
    image.save(file, kind)
    return file.getvalue()


PNG = encoded(noisy(COLOURS["red"], 0))


def counts(found: PictureSet) -> dict[str, Counter]:
    return {split: Counter(picture.label for picture in pictures) for split, pictures in found.splits.items()}


def contents(found: PictureSet) -> dict[str, list[bytes]]:
    def content(place) -> bytes:
        return place.read_bytes() if isinstance(place, Path) else place.read()

    return {split: [content(picture.open()) for picture in pictures] for split, pictures in found.splits.items()}


def write_set(folder: Path, **counts: int) -> Path:
    """`folder`/SPLIT/COLOUR/NUMBER.png, so many of each colour in each split."""
    for split, count in counts.items():
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                place = folder / split / name / f"{number:03}.png"
                noisy(colour, hash_of(split, name, number)).save(place)
    return folder


def hash_of(split: str, name: str, number: int) -> int:
    """A seed for each picture."""
    return random.Random(f"{split} {name} {number}").getrandbits(30)


def pack(folder: Path, archive: Path) -> Path:
    """A tar archive of what is in `folder`, packed as its name says."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    kind = {".gz": "w:gz", ".tgz": "w:gz", ".tar": "w"}[archive.suffix]
    with tarfile.open(archive, kind) as file:
        for path in sorted(folder.iterdir(), reverse=True):
            file.add(path, path.name)
    return archive


def write_vit(folder: Path, size: int = 16) -> Path:
    """A ViT of two layers, 32 wide, in patches of 4, and its image processor."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(image_size=size, patch_size=4, hidden_dropout_prob=0.0, **sizes)
    _save(
        folder, lambda: ViTModel(config, add_pooling_layer=False), "ViTImageProcessor", {"height": size, "width": size}
    )
    return folder


def write_dinov2(folder: Path) -> Path:
    """A DINOv2 of two layers, 32 wide, in patches of 7, and its image processor, which crops 28 pixels out of 32."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    config = Dinov2Config(image_size=35, patch_size=7, **sizes)
    crop = {"do_center_crop": True, "crop_size": {"height": 28, "width": 28}}
    _save(folder, lambda: Dinov2Model(config), "BitImageProcessor", {"shortest_edge": 32}, **crop)
    return folder


def _save(folder: Path, build, processor: str, size: dict[str, int], **more) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build().save_pretrained(folder)
    content = {
        "image_processor_type": processor,
        "size": size,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(content | more))
