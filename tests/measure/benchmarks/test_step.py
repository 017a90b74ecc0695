"""Whole steps: every method trains what it says on shared weights, and failures become rows."""

import re
import time
import weakref

import peft
import pytest
import torch

from neuroada.errors import ConfigError
from neuroada.measure.benchmarks import methods, step
from neuroada.measure.benchmarks.methods import METHODS, Method, Trainee, choose_methods, wrap_copy
from neuroada.measure.benchmarks.step import Stepper, StepPlan, run_step
from neuroada.measure.clock import PeakMemory, seconds
from neuroada.measure.process import call_in_fresh_process
from neuroada.measure.rounds import Rounds, Row, Timed
from neuroada.measure.shapes import adapted_names

CPU = torch.device("cpu")


def plan(**fields) -> StepPlan:
    return StepPlan(**{"shape": "tiny", "rounds": 2, "warmup": 0, "memory": False} | fields)


@pytest.mark.parametrize("method", choose_methods(METHODS, [3]), ids=lambda method: method.label)
def test_a_step_trains_what_the_method_trains_and_nothing_shared(method: Method):
    base, batch = plan().build()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    trainee = wrap_copy(method, base)
    values = [parameter.detach().clone() for parameter in trainee.parameters]
    stepper = Stepper(trainee, batch)
    if stepper.optimiser is not None:
        stepper.optimiser.param_groups[0]["lr"] = 0.1
    assert stepper.seconds(CPU) > 0
    stepper.seconds(CPU)  # LoRA's A moves once B has
    changed = [not torch.equal(p, old) for p, old in zip(trainee.parameters, values, strict=True)]
    assert sum(changed) >= 0.9 * len(changed)  # full: rounding to bfloat16 may keep a norm's weight
    assert bool(changed) == (method.name != "frozen")
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert not any(parameter.requires_grad for parameter in base.parameters())


def test_copies_share_the_base_unless_they_write_to_it():
    base, _ = plan().build()
    pointer = base.get_submodule("model.layers.0.mlp.up_proj").weight.data_ptr()
    for name, shared in (
        ("lora", True),
        ("neuroada", True),
        ("scatter", True),
        ("mask", False),
        ("mask-compact", False),
        ("full", False),
    ):
        (method,) = methods.with_settings(METHODS[name], [1])
        model = wrap_copy(method, base).model
        assert (pointer in {parameter.data_ptr() for parameter in model.parameters()}) == shared, name


def test_parameter_counts_of_the_ranked_methods_are_lora_s():
    base, _ = plan().build()
    trained = {
        name: sum(parameter.numel() for parameter in wrap_copy(METHODS[name], base).parameters)
        for name in ("lora", "neat", "shira", "peanut", "miss")
    }
    assert trained["shira"] == trained["lora"]
    assert all(0.7 < count / trained["lora"] < 1.3 for count in trained.values()), trained
    widths = [base.get_submodule(name).out_features for name in adapted_names(base)]
    (neuroada,) = methods.with_settings(METHODS["neuroada"], [3])
    assert sum(parameter.numel() for parameter in wrap_copy(neuroada, base).parameters) == 3 * sum(widths)


@pytest.mark.parametrize("shape", ["tiny", "ViT-base", "RoBERTa-base"])
def test_loading_code_leaves_no_gradients(shape):
    base, batch = plan(shape=shape, layers=1, batch=1).build()
    (method,) = methods.with_settings(METHODS["neuroada"], [2])
    stepper = Stepper(wrap_copy(method, base), batch)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    stepper.load_code()
    assert all(parameter.grad is None for parameter in stepper.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_supports_stay_in_between_steps_and_leave_afterwards():
    base, batch = plan().build()
    (method,) = methods.with_settings(METHODS["neuroada"], [2])
    trainee = wrap_copy(method, base)
    weight = base.get_submodule("model.layers.0.mlp.up_proj").weight
    before = weight.clone()
    for parameter in trainee.parameters:
        parameter.data.add_(1)
    with trainee.around():
        Stepper(trainee, batch).step()
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)


def test_rows_have_ratios_to_the_frozen_limit_of_the_same_round():
    records = run_step(plan(methods=("neuroada", "lora"), per_neuron=(1, 4)))
    assert [(r.method, r.settings.get("k")) for r in records] == [
        ("frozen", None),
        ("neuroada", 1),
        ("neuroada", 4),
        ("lora", None),
    ]
    assert records[0].measurements["ratio_to_frozen"].p80 == 1
    assert records[0].measurements["trained_parameters"].p50 == 0
    for record in records:
        assert record.measurements["step_time"].n == 2
        assert record.measurements["step_time"].unit == "s"
        assert (record.batch, record.sequence, record.dtype) == (2, 6, "bfloat16")
        assert record.shape.sizes["layers"] == 2
    assert len({record.run for record in records}) == 1
    assert records[3].settings["r"] == 8


def test_ratios_are_made_round_by_round():
    rows = [Row("frozen", times=[1.0, 10.0]), Row("lora", times=[2.0, 20.0]), Row("broken", times=[3.0])]
    Rounds(2, 0, 0).note(rows, "step_time", {row.name: row for row in rows})
    ratio = rows[1].measurements["ratio_to_frozen"]
    assert (ratio.p20, ratio.p80) == (2, 2)
    assert rows[1].measurements["step_time"].p50 == 11
    assert rows[0].measurements["ratio_to_lora"].p50 == 0.5
    assert rows[2].measurements == {}


def test_calls_take_turns_and_warm_ups_do_not_count():
    called = []
    rows = [Row(name) for name in "abc"]
    calls = [Timed(row, lambda name=row.name: called.append(name) or float(len(called))) for row in rows]
    done = []
    Rounds(4, 2, 7).time(calls, lambda label, units: done.append(units), lambda: None)
    rounds = [called[start : start + 3] for start in range(0, 18, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1
    assert [len(row.times) for row in rows] == [4, 4, 4]
    assert min(time for row in rows for time in row.times) == 7
    assert sum(done) == 18


def test_a_failed_call_is_let_go():
    class Large:
        def __call__(self):
            raise torch.OutOfMemoryError("CUDA out of memory")

    large = Large()
    gone, calls = weakref.ref(large), [Timed(Row("a"), large), Timed(Row("b"), lambda: 1.0)]
    del large
    alive_when_freeing = []
    Rounds(2, 0, 0).time(calls, lambda *_: None, lambda: alive_when_freeing.append(gone()))
    assert alive_when_freeing == [None]
    assert [timed.row.name for timed in calls] == ["b"]


def failing(error: Exception):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nmore"), "out of memory", "3 GiB.$"),
        (ImportError("needs package bitsandbytes"), "not available", "ImportError: needs package"),
        (ValueError("a fault of ours"), "failed", "ValueError: a fault of ours"),
        (RuntimeError("sizes differ"), "failed", "RuntimeError: sizes differ"),
    ],
)
def test_a_method_that_fails_is_a_row_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, error, status, reason):
    monkeypatch.setitem(METHODS, "bad", Method("bad", failing(error)))
    records = run_step(plan(methods=("bad", "lora")))
    assert [record.status for record in records] == ["ok", status, "ok"]
    assert records[1].measurements == {}
    assert re.search(reason, records[1].reason)


def test_a_method_that_fails_in_a_step_is_a_row(monkeypatch: pytest.MonkeyPatch):
    def wrap(model, names, settings):
        model.forward = failing(torch.OutOfMemoryError("CUDA out of memory"))
        return Trainee(model, [])

    monkeypatch.setitem(METHODS, "bad", Method("bad", wrap))
    frozen, bad = run_step(plan(methods=("bad",)))
    assert (frozen.status, bad.status) == ("ok", "out of memory")
    assert "step_time" not in bad.measurements


def test_a_method_that_peft_refuses_is_not_available(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("neuroada.measure.benchmarks.methods.get_peft_model", failing(ValueError("no such layer kind")))
    _, refused = run_step(plan(methods=("lora",)))
    assert (refused.status, refused.reason) == ("not available", "ValueError: no such layer kind")


def test_a_method_that_this_peft_lacks_is_a_row(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(peft, "SupertuningConfig")
    record = run_step(plan(methods=("supertuning",)))[1]
    assert record.status == "not available"
    assert record.reason == f"not in this PEFT ({peft.__version__}): it has no SupertuningConfig"


def test_a_base_that_does_not_fit_makes_every_row_say_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(StepPlan, "build", failing(torch.OutOfMemoryError("CUDA out of memory")))
    assert {record.status for record in run_step(plan(methods=("lora",)))} == {"out of memory"}


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"shape": "tinny"}, r"shape 'tinny': not a known shape\. Did you mean 'tiny'"),
        ({"methods": ("lorra",)}, r"method 'lorra': .*Did you mean 'lora'"),
        ({"device": "cuda:7"}, r"--device cuda:7: PyTorch .* sees \d CUDA devices"),
        ({"device": "tpu9"}, "--device tpu9: not a device"),
        ({"per_neuron": (65,)}, r"--k 65: the narrowest layer, .*, has 64 inputs a neuron\. Give 1 to 64"),
        ({"per_neuron": (0,)}, "--k 0: "),
        ({"batch": 0}, "it has no tokens"),
        ({"sequence": 0}, "it has no tokens"),
        ({"dtype": "int8"}, "--dtype int8: not a known one"),
        ({"layers": 0}, "--layers 0: fewer than 1"),
        ({"rounds": 0}, "nothing is left to measure"),
    ],
)
def test_bad_input_is_told_before_anything_is_built(monkeypatch: pytest.MonkeyPatch, fields, found):
    monkeypatch.setattr(StepPlan, "build", failing(AssertionError("built")))
    with pytest.raises(ConfigError, match=found):
        run_step(plan(**fields))


def test_memory_comes_from_a_process_of_its_own():
    big = plan(shape="ViT-base", layers=1, batch=1, dtype="float32")
    found = call_in_fresh_process(step.step_memory, {"plan": big, "name": "full", "settings": {}}, threads=1)
    states = 3 * 4 * found["trained_parameters"]  # gradients and two of AdamW, float32
    assert 0.9 * states < found["peak_memory"] - found["memory_before_steps"] < 2 * states
    assert found["memory_of"].startswith("resident")


@pytest.mark.parametrize("name", ["neuroada", "bad"])
def test_memory_is_in_the_row(monkeypatch: pytest.MonkeyPatch, name):
    monkeypatch.setitem(METHODS, "bad", Method("bad", failing(MemoryError("all of it"))))
    monkeypatch.setattr(step, "call_in_fresh_process", lambda call, arguments, threads: call(**arguments))
    _, record = run_step(plan(rounds=0, memory=True, methods=(name,), per_neuron=(2,)))
    if name == "bad":
        assert (record.status, record.reason) == ("out of memory", "MemoryError: all of it")
    else:
        assert record.measurements.keys() == {
            *("peak_memory", "memory_before_steps", "memory_of_code", "trained_parameters")
        }
        assert record.measurements["peak_memory"].unit == "bytes"
        assert record.notes["memory_of"].startswith("resident")


def test_peak_memory_forgets_what_was_before():
    torch.ones(40 << 18)  # 40 MiB
    with PeakMemory(CPU) as memory:
        torch.ones(20 << 18)
    if memory.of != "resident, in this context":
        pytest.skip(f"this system cannot forget a peak: {memory.of}")
    assert 18 << 20 < memory.peak - memory.before < 26 << 20


def test_time_is_of_the_call():
    assert seconds(lambda: time.sleep(0.02), CPU) >= 0.02
