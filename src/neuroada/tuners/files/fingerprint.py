"""Recognise the base weights that an adapter was trained on from 16 bytes a weight, whatever dtype they are loaded in.

A fingerprint holds the mean magnitude of the originals at the support (float32) and a 4-byte digest of them rounded to
float32, to bfloat16 and to float16. Rounding is deterministic, so the same checkpoint gives equal digests in every
dtype that both sides can be rounded to; a digest of zeros means "not known".
"""

from __future__ import annotations

import hashlib
import struct

import torch
from torch import Tensor

LENGTH = 16
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_UNKNOWN = bytes(4)
MEAN_TOLERANCE = 2.0**-7
"""Relative difference of mean magnitudes allowed where no digest can be compared: one unit of bfloat16's spacing."""


def _digest(originals: Tensor, dtype: torch.dtype) -> bytes:
    bytes_view = originals.to(dtype).contiguous().view(torch.uint8)
    return hashlib.blake2b(bytes_view.numpy().tobytes(), digest_size=4).digest()


def _digests(originals: Tensor) -> list[bytes]:
    known = [originals.dtype] if originals.dtype in (torch.bfloat16, torch.float16) else list(_DTYPES)
    return [_digest(originals, dtype) if dtype in known else _UNKNOWN for dtype in _DTYPES]


def make(originals: Tensor | None) -> Tensor:
    """Fingerprint of originals [N, K] of any float dtype: uint8 [16]; all zeros for None."""
    if originals is None:
        return torch.zeros(LENGTH, dtype=torch.uint8)
    originals = originals.detach().cpu()
    mean = struct.pack("<f", originals.double().abs().mean().item())
    return torch.frombuffer(bytearray(mean + b"".join(_digests(originals))), dtype=torch.uint8)


def difference(expected: Tensor, originals: Tensor | None, exact: bool = True) -> str | None:
    """How originals [N, K] differ from a fingerprint uint8 [16] by more than dtype rounding, or None if they do not.

    exact: compare digests where possible; otherwise (dequantised weights, whose last bits depend on the device) means.
    """
    found = make(originals)
    if not expected.any() or not found.any():
        return None
    if exact:
        pairs = zip(_split(expected), _split(found), strict=True)
        comparable = [(ours, theirs) for ours, theirs in pairs if _UNKNOWN not in (ours, theirs)]
        if any(ours == theirs for ours, theirs in comparable):
            return None
        if comparable:
            return f"mean magnitude {_mean(found):.6g} here and {_mean(expected):.6g} there, other bits"
    if abs(_mean(found) - _mean(expected)) <= MEAN_TOLERANCE * abs(_mean(expected)):
        return None
    return f"mean magnitude {_mean(found):.6g} here and {_mean(expected):.6g} there"


def _split(fingerprint: Tensor) -> list[bytes]:
    raw = bytes(fingerprint.tolist())
    return [raw[4:8], raw[8:12], raw[12:16]]


def _mean(fingerprint: Tensor) -> float:
    return struct.unpack("<f", bytes(fingerprint[:4].tolist()))[0]
