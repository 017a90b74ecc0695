"""The sparse-delta linear operation; README.md in this folder derives it and counts its cost."""

from neuroada.ops.sparse_delta.entries import entries, flat, positions, read
from neuroada.ops.sparse_delta.function import sparse_delta_linear, support_linear
from neuroada.ops.sparse_delta.holding import HeldTogether, hold, refresh, release
from neuroada.ops.sparse_delta.registry import is_contended, is_held
from neuroada.ops.sparse_delta.support import FrozenWeight, Support, combine
from neuroada.ops.sparse_delta.swap import with_support, write
from neuroada.ops.sparse_delta.traced import traced_linear

__all__ = [
    "FrozenWeight",
    "HeldTogether",
    "Support",
    "combine",
    "entries",
    "flat",
    "hold",
    "is_contended",
    "is_held",
    "positions",
    "read",
    "refresh",
    "release",
    "sparse_delta_linear",
    "support_linear",
    "traced_linear",
    "with_support",
    "write",
]
