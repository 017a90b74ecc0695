"""What is asked of adapters that several processes trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from specimens import same_bits

from .courses import TRAINED, WEIGHTS, Course, dataset, deltas, distance, pretrained

SMALL, TINY = ("k1", "k20"), ("tiny", "adamw")


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def size(folder: Path) -> float:
    return distance(deltas(folder), {name: torch.zeros_like(tensor) for name, tensor in deltas(folder).items()})


def tolerance(whole: Path, rows: Path) -> float:
    """Twice the distance between what one process makes of whole batches and of their rows one by one."""
    floor = distance(deltas(whole), deltas(rows))
    assert 0 < floor < 1e-4 * size(whole)
    return 2 * floor


def same_deltas(folder: Path, course: Course, whole: Path, rows: Path) -> None:
    limit = tolerance(whole, rows) if course.optimiser == "sgd" else 1e-3 * size(whole)
    assert distance(deltas(folder), deltas(whole)) <= limit


def adapter_is_whole(folder: Path, whole: Path) -> None:
    """All of it is there, as one process saves it: support and fingerprints bit for bit."""
    found, expected = (load_file(each / "adapter" / WEIGHTS) for each in (folder, whole))
    assert found.keys() == expected.keys()
    assert all(found[name].shape == expected[name].shape for name in expected)
    fixed = [name for name in expected if not name.endswith((*TRAINED, "_digest"))]
    assert [name for name in fixed if not same_bits(found[name], expected[name])] == []
    (prints,) = (tensor for name, tensor in found.items() if name.endswith("_fingerprints"))
    assert prints.any(1).all()


@torch.no_grad()
def adapter_loads_and_merges(folder: Path, course: Course) -> None:
    """With its base verified; merging changes no output of NeuroAda's, and NEAT's by rounding."""
    model = PeftModel.from_pretrained(pretrained(course), folder / "adapter").eval()
    ids = torch.tensor(dataset(model.config.vocab_size, 1)["input_ids"])
    with model.disable_adapter():
        plain = model(input_ids=ids).logits
    adapted = model(input_ids=ids).logits
    assert not same_bits(adapted, plain)
    merged = model.merge_and_unload()(input_ids=ids).logits
    if course.method == "neuroada":
        assert same_bits(merged, adapted)
    else:
        assert (merged - adapted).norm() < 0.02 * (adapted - plain).norm()


def same_run(folder: Path, whole: Path) -> dict[str, Any]:
    """What several processes leave of a recipe is what one leaves, once; its summary."""
    summary, expected = (json.loads((each / "summary.json").read_text()) for each in (folder, whole))
    assert distance(deltas(folder), deltas(whole)) <= 1e-3 * size(whole)
    for name in ("held_out_loss_before", "held_out_loss_after"):
        assert summary[name] == pytest.approx(expected[name], rel=1e-4)
    for name in ("steps", "trainable_parameters", "adapter_bytes"):
        assert summary[name] == expected[name]
    events = [[json.loads(line)["event"] for line in (each / "metrics.jsonl").open()] for each in (folder, whole)]
    assert sorted(events[0]) == sorted(events[1])
    return summary
