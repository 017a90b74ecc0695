"""The sparse-delta linear operation; README.md in this folder derives it and counts its cost."""

from neuroada.ops.sparse_delta.function import sparse_delta_linear, support_linear
from neuroada.ops.sparse_delta.support import FrozenWeight, Support, combine
from neuroada.ops.sparse_delta.swap import (
    hold,
    is_contended,
    is_held,
    read,
    release,
    resident,
    restore,
    take,
    write,
)

__all__ = [
    "FrozenWeight",
    "Support",
    "combine",
    "hold",
    "is_contended",
    "is_held",
    "read",
    "release",
    "resident",
    "restore",
    "sparse_delta_linear",
    "support_linear",
    "take",
    "write",
]
