"""Which neurons take part when coverage is below 1 (Section 4, Question 2), and the seeds of all random choices."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def digest_of(seed: int, name: str, purpose: str) -> int:
    """In [0, 2^63), another one for each seed, weight name and purpose."""
    digest = hashlib.blake2b(f"{seed}/{name}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(seed: int, name: str, purpose: str) -> torch.Generator:
    """A CPU generator that depends on seed, weight name and purpose only, never on the order of modules."""
    return torch.Generator("cpu").manual_seed(digest_of(seed, name, purpose))


def covered_neurons(out_features: int, coverage: float, seed: int, name: str) -> Tensor | None:
    """Neurons that get deltas: int64 [N], ascending, N = max(1, round(coverage · O)); None means all of them."""
    if coverage >= 1:
        return None
    count = max(1, round(coverage * out_features))
    generator = generator_for(seed, name, "coverage")
    return torch.randperm(out_features, generator=generator, device="cpu")[:count].sort().values
