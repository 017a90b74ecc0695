"""The paper's Table 1: what a mask and what indices with values take, for one projection."""

from __future__ import annotations

from collections.abc import Sequence

from neuroada.measure.record import Record
from neuroada.report.text import markdown

PUBLISHED = (
    ("LLaMA-1 7B", 4096, "2.00", "0.016", "125×"),
    ("LLaMA-2 7B", 4096, "2.00", "0.016", "125×"),
    ("LLaMA-1 13B", 5120, "3.13", "0.020", "156×"),
    ("LLaMA-2 13B", 5120, "3.13", "0.020", "156×"),
)
"""Model, d of a projection [d, d], and the paper's values: mask in MiB, NeuroAda k=1 in MiB, ratio."""

INDEX_BYTES = 4
"""The paper counts an index of two bytes; ours are int32, which no layer outgrows."""
DELTA_BYTES = {"float32": 4, "bfloat16": 2}


def mask_bytes(out_features: int, in_features: int) -> int:
    """A bit for each weight."""
    return -(-out_features * in_features // 8)


def support_bytes(out_features: int, per_neuron: int, delta_dtype: str) -> int:
    """Indices and deltas as a NeuroAda layer holds them."""
    return out_features * per_neuron * (INDEX_BYTES + DELTA_BYTES[delta_dtype])


def table1(records: Sequence[Record]) -> str:
    """Counted, not measured: ours beside what the paper prints."""
    header = ("model", "d", "mask", "(paper)", "bfloat16 deltas", "float32 deltas", "(paper)", "saving", "(paper)")
    rows = []
    for model, size, mask, neuroada, saving in PUBLISHED:
        counted = {name: support_bytes(size, 1, name) for name in DELTA_BYTES}
        ratios = [mask_bytes(size, size) / counted[name] for name in ("bfloat16", "float32")]
        rows.append(
            [
                *(model, str(size), f"{mask_bytes(size, size) / 2**20:.2f}", mask),
                *(f"{counted[name] / 2**20:.3f}" for name in ("bfloat16", "float32")),
                *(neuroada, " or ".join(f"{ratio:.0f}×" for ratio in ratios), saving),
            ]
        )
    return markdown(header, rows)
