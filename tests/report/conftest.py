"""Records to render, made by hand."""

from collections.abc import Callable

import pytest

from neuroada.measure.record import Machine, Measurement, Record, RecordedScore, Shape

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


@pytest.fixture
def cell(make: Callable[..., Record]) -> Callable[..., Record]:
    """A builder of records of a study on CoLA: method, rate, seed, held-out score, test score."""

    def one(
        method: str, rate: float, seed: int, selection: float, score: float, *, point=None, study="cola", **changes
    ):
        units = {"selection": "x", "training_time": "s", "peak_memory": "bytes", "trained_parameters": "parameters"}
        values = {"trained_parameters": 20736, "selection": selection, "training_time": 60, "peak_memory": 2**30}
        measured = {name: Measurement.count(value, units[name]) for name, value in values.items()}
        interval = {"low": score - 0.1, "high": score + 0.1, "count": 50}
        both = [
            RecordedScore(when=when, name="cola", metric="matthews", value=value, **interval)
            for when, value in (("before", score - 0.1), ("after", score))
        ]
        fields = {
            "kind": "study",
            "settings": {"learning_rate": rate, **({} if point is None else {"point": point})},
            "seed": seed,
            "notes": {
                "study": study,
                "recipe": "minilm-cola",
                "cell": f"{method}{point}{rate}{seed}",
                **({} if point is None else {"axis": "deltas a neuron"}),
            },
            "measurements": measured,
            "scores": both,
        }
        return make(method, {}, **{**fields, **changes})

    return one


@pytest.fixture
def with_loss() -> Callable[[Record, float], Record]:
    """Gives a cell a held-out loss."""

    def one(cell: Record, loss: float) -> Record:
        cell.measurements["held_out_loss"] = Measurement.count(loss, "nats")
        return cell

    return one
