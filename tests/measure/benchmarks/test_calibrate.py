"""Choosing by gradients against dense gradients: what is compared, and that a difference would show."""

import pytest
import torch

from neuroada.errors import ConfigError
from neuroada.measure.benchmarks import calibrate as module
from neuroada.measure.benchmarks.calibrate import CalibrationPlan, choose, run_calibration
from neuroada.report.costs import calibrate_table


@pytest.fixture
def here(monkeypatch):
    """In this process: the model is tiny."""
    monkeypatch.setattr(module, "call_in_fresh_process", lambda function, arguments, threads: function(**arguments))
    monkeypatch.setattr(module, "return_large_blocks", lambda: None)


def test_the_same_indices_as_by_dense_gradients(tiny_model_dir, here):
    plan = CalibrationPlan(str(tiny_model_dir), (1, 1 << 28), k=2, batches=2, sequence=16)
    dense, little, whole = run_calibration(plan)
    assert (dense.method, little.settings, whole.settings) == (
        "dense gradients",
        {"k": 2, "max_memory": 1},
        {"k": 2, "max_memory": 1 << 28},
    )
    for record in (dense, little, whole):
        assert record.status == "ok", record.reason
        assert record.measurements["other_indices"].p50 == 0
        assert record.measurements["indices"].p50 == dense.measurements["indices"].p50 > 100
    assert "| dense gradients k=2 | — |" in calibrate_table([dense, little, whole])


def test_other_indices_are_counted(tiny_model_dir, here, monkeypatch):
    monkeypatch.setattr(module, "reselect", lambda *arguments, **options: None)  # the largest weights stay
    plan = CalibrationPlan(str(tiny_model_dir), (1,), batches=1, sequence=16)
    assert run_calibration(plan)[1].measurements["other_indices"].p50 > 10


def test_a_limit_that_fails_is_a_record(tiny_model_dir, here, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no room")

    monkeypatch.setattr(module, "reselect", fail)
    dense, failed = run_calibration(CalibrationPlan(str(tiny_model_dir), (1,), batches=1, sequence=16))
    assert (dense.status, failed.status) == ("ok", "failed")
    assert "no room" in calibrate_table([dense, failed])


def test_batches_are_text_of_the_asked_size(tiny_model_dir):
    found = choose(CalibrationPlan(str(tiny_model_dir), k=3, batches=3, sequence=8), None)
    assert all(indices.shape[1] == 3 and indices.dtype == torch.int32 for indices in found.indices.values())
    batches = module._batches(CalibrationPlan(str(tiny_model_dir), batches=3, sequence=8), 1000)
    assert [batch["input_ids"].shape for batch in batches] == [(1, 8)] * 3
    assert len({tuple(batch["input_ids"][0].tolist()) for batch in batches}) == 3


@pytest.mark.parametrize(("field", "said"), [("k", "--k 0"), ("batches", "--batches 0"), ("sequence", "--seq 0")])
def test_sizes_below_one_are_refused(field, said):
    with pytest.raises(ConfigError, match=f"{said}: less than 1. Give at least 1"):
        CalibrationPlan(**{field: 0})
