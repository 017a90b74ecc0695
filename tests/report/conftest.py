"""Records to render, made by hand."""

from collections.abc import Callable

import pytest

from neuroada.measure.record import Machine, Measurement, Record, Shape

CPU = Machine(
    device="cpu, 2 threads, x86_64",
    cpu="Xeon",
    threads=2,
    instructions={"avx2": True, "avx512_bf16": False, "amx_bf16": False},
    platform="Linux",
    python="3.11",
    packages={"torch": "2.13.0", "peft": "0.21.2"},
)
GPU = CPU.model_copy(update={"device": "NVIDIA H200 (cuda)"})
LLAMA = Shape(name="LLaMA-7B", sizes={"hidden": 4096, "layers": 32})


def build(method: str, values: dict[str, float | tuple[float, float, float]], **fields) -> Record:
    """A step record of LLaMA-7B on a GPU with these measurements (a value, or three percentiles)."""
    units = {"step_time": "s", "trained_parameters": "parameters", "peak_memory": "bytes", "time": "s"}
    measured = {}
    for name, value in values.items():
        low, middle, high = value if isinstance(value, tuple) else (value, value, value)
        measured[name] = Measurement(unit=units.get(name, "x"), p20=low, p50=middle, p80=high, n=5)
    made = {
        "kind": "step",
        "run": "run1",
        "created": "2026-11-22T10:00:00+00:00",
        "commit": "0123456789abcdef-dirty",
        "seed": 0,
        "machine": GPU,
        "method": method,
        "shape": LLAMA,
        "batch": 2,
        "sequence": 512,
        "dtype": "bfloat16",
        "measurements": measured,
    }
    return Record(**(made | fields))


@pytest.fixture
def make() -> Callable[..., Record]:
    """The builder."""
    return build
