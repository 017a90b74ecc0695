"""The deltas in NeuroAda's adapter file, and the base weights under them where those are at hand; by NumPy alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from neuroada.errors import AdapterFileError

DELTAS, INDICES, NEURONS, FINGERPRINTS = (
    *("neuroada_deltas", "neuroada_indices", "neuroada_neurons"),
    "neuroada_fingerprints",
)
PEFT_PREFIX = "base_model.model."

TYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"},
    **{"I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"},
    **{"U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"},
}
"""Of safetensors, as NumPy stores them; BF16 as its bits, and others of a byte each as theirs."""

FINGERPRINT_LENGTH = 16
SAME_MEAN = 2.0**-7
"""Relative difference of mean magnitudes that rounding to another dtype can make, as in tuners/fingerprint.py."""

ORDER = ("q", "query", "k", "key", "v", "value", "qkv", "o", "attention", "attn", "gate", "up", "intermediate", "fc1")
"""Parts of projections' names, in the order in which a block computes them; other names follow by alphabet."""


class TensorFile:
    """A safetensors file mapped into memory, so that only what is asked for is read.

    `safetensors` itself gives NumPy whole tensors, and no bfloat16.
    """

    def __init__(self, path: Path):
        """Read the header.

        Raises:
            AdapterFileError: it is no whole safetensors file.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                self.header: dict[str, Any] = json.loads(file.read(min(length, path.stat().st_size)))
            self.header.pop("__metadata__", None)
            self.bytes = np.memmap(path, "<u1", mode="r", offset=8 + length)
            for name in self.header:
                self._stored(name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            do = "Write it again, or take the file away"
            raise AdapterFileError(f"tensors in {path}", f"the file is damaged ({error})", do) from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor."""
        return tuple(self.header[name]["shape"])

    def read(self, name: str, places: np.ndarray | None = None) -> np.ndarray:
        """A tensor, or a matrix's values at flat `places`; bfloat16 as float32."""
        stored = self._stored(name)
        values = stored if places is None else stored.reshape(-1)[places]
        if self.header[name]["dtype"] != "BF16":
            return np.asarray(values)
        return (values.astype(np.uint32) << 16).view(np.float32)

    def _stored(self, name: str) -> np.ndarray:
        entry = self.header[name]
        begin, end = entry["data_offsets"]
        return self.bytes[begin:end].view(TYPES.get(entry["dtype"], "<u1")).reshape(entry["shape"])


@dataclass(frozen=True)
class Weight:
    """The deltas of one adapted weight.

    layer: number of its block, None outside blocks. projection: the name with "*" for numbers. ratio: median of
    |delta| / |original|; None without base weights.
    """

    name: str
    layer: int | None
    projection: str
    count: int
    rms: float
    largest: float
    ratio: float | None


@dataclass(frozen=True)
class Deltas:
    """All deltas of an adapter.

    sizes: |delta|, float [n]. ratios: |delta| / |original|, float [m], of those weights whose originals are at hand.
    base: where the originals are from; empty where none is at hand.
    """

    weights: list[Weight]
    sizes: np.ndarray
    ratios: np.ndarray
    base: str

    @property
    def rms(self) -> float:
        """Root of the mean square of all of them."""
        return float(np.sqrt(np.mean(np.square(self.sizes, dtype=np.float64))))


def read_deltas(folder: Path) -> Deltas | None:
    """Of the adapter in a folder; None where there is none of NeuroAda's.

    Raises:
        AdapterFileError: the file is damaged.
    """
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        return None
    file = TensorFile(path)
    names = sorted(name.removesuffix(f".{DELTAS}") for name in file.header if name.endswith(f".{DELTAS}"))
    names = [name for name in names if min(file.shape(f"{name}.{DELTAS}"), default=0)]
    if not names:
        return None
    base = _base_tensors(folder)
    means = _expected_means(file, len(names))
    weights, sizes, ratios = [], [], []
    for name, mean in zip(names, means, strict=True):
        own = np.abs(file.read(f"{name}.{DELTAS}").astype(np.float32))
        originals = _originals(file, name, base, mean)
        sizes.append(own.reshape(-1))
        if originals is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios.append((own / np.abs(originals)).reshape(-1))
        weights.append(_weight(name.removeprefix(PEFT_PREFIX), own, None if originals is None else ratios[-1]))
    where = str(next(iter(base.values())).path.parent) if ratios else ""
    joined = np.concatenate(ratios) if ratios else np.empty(0, np.float32)
    return Deltas(weights, np.concatenate(sizes), joined[np.isfinite(joined)], where)


def columns(weights: Sequence[Weight]) -> dict[str, str]:
    """Each projection's label: the shortest end of its name that no other has, in the order of ORDER."""
    names = sorted({weight.projection for weight in weights}, key=_rank)
    labels = {}
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        labels[name] = next((end for end in ends if sum(_ends(other, end) for other in names) == 1), name)
    return {name: label.removeprefix("*.") for name, label in labels.items()}


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def _rank(name: str) -> tuple[int, str]:
    parts = re.split(r"[._]", name)
    return min((ORDER.index(part) for part in parts if part in ORDER), default=len(ORDER)), name


def _weight(name: str, sizes: np.ndarray, ratios: np.ndarray | None) -> Weight:
    numbers = re.findall(r"(?<=\.)\d+(?=\.)", name)
    return Weight(
        name=name,
        layer=int(numbers[0]) if numbers else None,
        projection=re.sub(r"(?<=\.)\d+(?=\.)", "*", name),
        count=sizes.size,
        rms=float(np.sqrt(np.mean(np.square(sizes, dtype=np.float64)))),
        largest=float(sizes.max()),
        ratio=None if ratios is None else float(np.median(ratios)),
    )


def _expected_means(file: TensorFile, count: int) -> list[float]:
    """Mean magnitude of each weight's originals, as its fingerprint has it; zeros where that is not known."""
    if FINGERPRINTS not in file.header or file.shape(FINGERPRINTS) != (count, FINGERPRINT_LENGTH):
        return [0.0] * count
    prints = np.ascontiguousarray(file.read(FINGERPRINTS)[:, :4])
    return prints.view("<f4")[:, 0].tolist()


def _base_tensors(folder: Path) -> dict[str, TensorFile]:
    """The file of each tensor of the base model, by name; empty where the model is not on this machine."""
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
        name = str(config["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    model = Path(name).expanduser()
    if not model.is_dir():
        cached = [_cached(name, file) for file in ("model.safetensors.index.json", "model.safetensors")]
        model = next((found.parent for found in cached if found is not None), model)
    try:
        files = [TensorFile(path) for path in sorted(model.glob("*.safetensors"))]
    except AdapterFileError:
        return {}
    return {tensor: file for file in files for tensor in file.header}


def _cached(name: str, file: str) -> Path | None:
    try:
        found = try_to_load_from_cache(name, file)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _originals(file: TensorFile, name: str, base: Mapping[str, TensorFile], mean: float) -> np.ndarray | None:
    """Pretrained values [N, K] under a weight's deltas; None where they are not at hand or are not those trained on."""
    parts = f"{name.removeprefix(PEFT_PREFIX)}.weight".split(".")
    stored = next((end for end in (".".join(parts[skip:]) for skip in range(len(parts) - 1)) if end in base), None)
    if stored is None or len(base[stored].shape(stored)) != 2 or not mean:
        return None
    indices, neurons = _support(file, name)
    rows, width = base[stored].shape(stored)
    for places in (neurons * width + indices, indices * width + neurons):  # as nn.Linear stores them, and as Conv1D
        if places.max() < rows * width:
            originals = base[stored].read(stored, places).astype(np.float32)
            if abs(float(np.abs(originals).mean(dtype=np.float64)) - mean) <= SAME_MEAN * mean:
                return originals
    return None


def _support(file: TensorFile, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices [N, K] and neurons [N, 1] of a weight's deltas."""
    deltas, chosen, covered = (f"{name}.{kind}" for kind in (DELTAS, INDICES, NEURONS))
    there = {each: file.shape(each) for each in (chosen, covered) if each in file.header}
    count = file.shape(deltas)[0]
    if there.get(chosen) != file.shape(deltas) or there.get(covered, (count,)) != (count,):
        found = f"{name} has deltas of shape {list(file.shape(deltas))} that its indices or neurons do not fit"
        raise AdapterFileError(f"tensors in {file.path}", found, "Write it again, or take the file away")
    neurons = file.read(covered) if covered in there else np.arange(count)
    return file.read(chosen).astype(np.int64), neurons.astype(np.int64)[:, None]
