"""Switching: times beside loading, and outputs bit for bit."""

from pathlib import Path

import pytest
import torch

from neuroada.errors import ConfigError
from neuroada.layers import NeuroAdaLinear
from neuroada.measure.benchmarks.switch import SwitchPlan, run_switch


def plan_for(folder: Path, **fields) -> SwitchPlan:
    return SwitchPlan(str(folder), k=2, dtype="float32", loads=1, switches=4, **fields)


def test_switching_and_loading_are_timed_and_outputs_come_back(tiny_model_dir):
    (record,) = run_switch(plan_for(tiny_model_dir))
    assert (record.kind, record.status, record.settings) == ("switch", "ok", {"k": 2})
    assert record.notes["outputs"] == "equal, bit for bit, after each switch"
    counts = {name: record.measurements[name].n for name in ("switch", "switch_held", "first_forward", "load")}
    assert counts == {"switch": 4, "switch_held": 4, "first_forward": 4, "load": 1}
    share = record.measurements["switch"].p50 / record.measurements["load"].p50
    assert record.measurements["switch_to_load"].p50 == pytest.approx(share)
    assert record.measurements["adapter_file"].p50 > 0
    assert record.shape.sizes["layers"] == 2


def test_a_switch_that_changes_outputs_is_a_failure(tiny_model_dir, monkeypatch):
    switch = NeuroAdaLinear.set_adapter

    def lossy(self, *arguments, **options):
        switch(self, *arguments, **options)
        if self.name.endswith("layers.0.self_attn.q_proj"):
            self.neuroada_deltas["first"].data.mul_(1.01)

    monkeypatch.setattr(NeuroAdaLinear, "set_adapter", lossy)
    (record,) = run_switch(plan_for(tiny_model_dir))
    assert record.status == "failed"
    assert record.reason == "outputs after a switch differ from those before"


def test_adapters_that_do_the_same_show_nothing(tiny_model_dir, monkeypatch):
    monkeypatch.setattr("neuroada.measure.benchmarks.switch.SCALE", 0.0)
    (record,) = run_switch(plan_for(tiny_model_dir))
    assert record.status == "failed"
    assert "both adapters give the same outputs" in (record.reason or "")


def test_weights_are_back_after_all_of_it(tiny_model_dir, monkeypatch):
    from neuroada.measure.benchmarks import switch as module

    kept = {}
    load = module.load_frozen

    def remember(*arguments):
        model = load(*arguments)
        kept.update({name: (weight, weight.clone()) for name, weight in model.named_parameters()})
        return model

    monkeypatch.setattr(module, "load_frozen", remember)
    run_switch(plan_for(tiny_model_dir))
    assert all(torch.equal(weight, before) for weight, before in kept.values())


@pytest.mark.parametrize("name", ["k", "loads", "switches"])
def test_refusals(name):
    with pytest.raises(ConfigError, match=f"--{name} 0: less than 1"):
        SwitchPlan(**{name: 0})
