"""Plans against real training: what is compared, and that a difference would show."""

import pytest
import torch

from neuroada.errors import ConfigError
from neuroada.measure.benchmarks import plan as module
from neuroada.measure.benchmarks.plan import PlanCheck, run_plan_check, training_memory
from neuroada.measure.clock import PeakMemory, return_large_blocks
from neuroada.measure.process import call_in_fresh_process
from neuroada.planning.plan import Simulator


def test_each_method_and_batch_leaves_a_record(tiny_model_dir, monkeypatch):
    asked = []

    def call(function, arguments, threads):
        asked.append((function, arguments["method"], arguments["batch"], arguments["return_at_once"]))
        return {"peak": 1000 if arguments["return_at_once"] else 1500, "of": "resident, in this context"}

    monkeypatch.setattr(module, "call_in_fresh_process", call)
    monkeypatch.setattr(module.Simulator, "peak", lambda self, batch: 900 * batch)
    check = PlanCheck(str(tiny_model_dir), ("neuroada", "full"), (1, 2), sequence=8, dtype="float32")
    records = run_plan_check(check)
    expected = [(method, batch) for method in ("neuroada", "full") for batch in (1, 2)]
    assert [(record.method, record.batch) for record in records] == expected
    assert asked == [(training_memory, *case, at_once) for case in expected for at_once in (True, False)]
    assert records[0].settings == {"k": 1, "checkpointing": False}
    found = {name: measurement.p50 for name, measurement in records[1].measurements.items()}
    assert found == {"planned": 1800, "measured": 1000, "measured_by_default": 1500, "planned_to_measured": 1.8}


def test_training_is_measured_in_a_process_of_its_own_and_close_to_the_plan(tmp_path, make_tiny_llama):
    sizes = {"hidden_size": 256, "intermediate_size": 768, "vocab_size": 4096, "num_hidden_layers": 2}
    make_tiny_llama(**sizes).save_pretrained(tmp_path)
    check = PlanCheck(str(tmp_path), sequence=256, dtype="float32", threads=1)
    arguments = {"check": check, "method": "full", "batch": 8, "return_at_once": True}
    measured = call_in_fresh_process(training_memory, arguments, threads=1)["peak"]
    assert measured > 2e8
    assert Simulator(check.request(8), "full", False).peak(8) == pytest.approx(measured, rel=0.1)


def test_memory_that_a_step_takes_is_seen(tiny_model_dir, monkeypatch):
    check = PlanCheck(str(tiny_model_dir), sequence=8, dtype="float32")
    plain = training_memory(check, "lora", 1, return_at_once=False)["peak"]
    step = module._Training.steps
    extra = 1 << 27

    def hungry(self, ids, count):
        step(self, ids, count)
        if ids.shape[1] == 8:
            torch.ones(extra // 4)

    monkeypatch.setattr(module._Training, "steps", hungry)
    assert training_memory(check, "lora", 1, return_at_once=False)["peak"] - plain > 0.8 * extra


def test_freed_blocks_are_returned():
    return_large_blocks()
    with PeakMemory(torch.device("cpu")) as memory:
        for _ in range(8):
            blocks = [torch.ones(1 << 18) for _ in range(16)]
            del blocks
    assert memory.peak - memory.before < 3 * (16 << 20)


def test_unknown_methods_list_the_known():
    with pytest.raises(ConfigError, match=r"method 'mask': .*Known: neuroada, lora, full"):
        PlanCheck(methods=("mask",))


@pytest.mark.parametrize(("fields", "message"), [({"batches": (1, 0)}, "--batch 0"), ({"sequence": 999}, "--seq 999")])
def test_nothing_is_measured_before_all_is_checked(fields, message, tiny_model_dir, monkeypatch):
    monkeypatch.setattr(module, "call_in_fresh_process", lambda *arguments: pytest.fail("measured"))
    with pytest.raises(ConfigError, match=message):
        run_plan_check(PlanCheck(str(tiny_model_dir), **fields))
