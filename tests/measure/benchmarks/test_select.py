"""Choosing supports: what is measured, and what is refused."""

import pytest
import torch

from neuroada.config.criteria import WITHOUT_DATA
from neuroada.errors import ConfigError
from neuroada.measure.benchmarks import select as module
from neuroada.measure.benchmarks.select import SelectPlan, run_select


def test_each_strategy_and_k_leaves_a_record():
    records = run_select(SelectPlan("tiny", per_neuron=(1, 3), rounds=2))
    assert [(record.method, record.settings["k"]) for record in records] == [
        (name, k) for name in WITHOUT_DATA for k in (1, 3)
    ]
    neurons = 2 * 64 + 2 * 32 + 2 * 96 + 64
    for record in records:
        assert record.measurements["time"].n == 2
        assert record.measurements["indices"].p50 == 4 * neurons * record.settings["k"]
        assert record.shape.sizes["weights"] == 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64
        assert record.measurements["peak_memory"].p50 >= 0


def test_memory_that_choosing_takes_is_seen(monkeypatch: pytest.MonkeyPatch):
    chosen = module.select
    extra = 1 << 26

    def hungry(*arguments):
        torch.ones(extra // 4)
        return chosen(*arguments)

    monkeypatch.setattr(module, "select", hungry)
    (record,) = run_select(SelectPlan("tiny", ("magnitude",), (1,), rounds=1))
    assert record.measurements["peak_memory"].p50 > 0.9 * extra


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": "tiny", "strategies": ("magnitud",)}, "Did you mean 'magnitude'"),
        ({"shape": "tiny", "per_neuron": (65,)}, "--k 65: the narrowest weight has 64 inputs a neuron. Give 1 to 64"),
        ({"shape": "tiny", "per_neuron": (0,)}, "--k 0"),
        ({"shape": "tiny", "rounds": 0}, "--rounds 0: less than 1"),
        ({"shape": "tony"}, "shape 'tony': not a known shape. Did you mean 'tiny'"),
        ({"shape": "tiny", "device": "gpu"}, "--device gpu"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(ConfigError) as caught:
        run_select(SelectPlan(**fields))
    assert message in str(caught.value)
