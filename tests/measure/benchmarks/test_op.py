"""Layer by layer: what is counted, and the operation's parts by themselves."""

import pytest
import torch
from torch import nn

from neuroada.errors import ConfigError
from neuroada.measure.benchmarks.methods import METHODS, Method, Trainee
from neuroada.measure.benchmarks.op import LayerCall, OpPlan, layer_kinds, run_op
from neuroada.measure.benchmarks.product import pinned, possible_backends, time_products
from neuroada.measure.rounds import Rounds
from neuroada.ops.sparse_delta.backends.choice import backend_for
from neuroada.report.rows import LABELS

CPU = torch.device("cpu")
TOKENS = 12
METHODS_COUNTED = ("neuroada", "neuroada-unheld", "lora", "scatter", "mask", "full")


def plan(**fields) -> OpPlan:
    return OpPlan(**{"shape": "tiny", "rounds": 2, "warmup": 0, "per_neuron": (1,), "parts": ("layer",)} | fields)


def test_kinds_are_the_distinct_sizes_with_how_many_there_are():
    kinds = {(kind.name, kind.out_features, kind.in_features): kind.count for kind in layer_kinds("tiny")}
    assert kinds == {("q_proj", 64, 64): 4, ("k_proj", 32, 64): 4, ("gate_proj", 96, 64): 4, ("down_proj", 64, 96): 2}


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, float]]:
    """Counts of each method on the layer [64, 96], by name."""
    from neuroada.measure import shapes

    from ..tiny import TINY

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.SHAPES, "tiny", TINY)
        records = run_op(plan(methods=METHODS_COUNTED))
    assert all(record.status == "ok" for record in records)
    of_down = [record for record in records if record.notes["layer"] == "down_proj"]
    return {r.method: {name: found.p50 for name, found in r.measurements.items()} for r in of_down}


def test_dense_products_are_those_of_the_method(counted):
    products = {name: values["dense_products"] for name, values in counted.items()}
    assert products["frozen"] == 2
    assert products["neuroada"] == products["neuroada-unheld"] == pytest.approx(2 + 1 / 96)
    assert products["scatter"] == products["mask"] == products["full"] == 3
    assert 2 < products["lora"] < 3


def test_saved_bytes_are_counted_once_each_and_without_parameters(counted):
    x, weight = 2 * TOKENS * 96, 2 * 64 * 96
    saved = {name: (values["saved_x"], values["saved_beyond_x"]) for name, values in counted.items()}
    assert saved["frozen"] == (0, 0)
    assert saved["mask"] == saved["full"] == (x, 0)
    assert saved["scatter"][0] == x
    assert saved["scatter"][1] >= weight
    assert sum(saved["neuroada"]) <= x
    assert saved["lora"][1] >= 2 * x  # float32 copies of it


def test_ratios_are_to_the_frozen_layer(counted):
    assert counted["frozen"]["ratio_to_frozen"] == 1
    assert all(values["time"] > 0 for values in counted.values())


def test_a_call_leaves_no_gradient_behind_from_the_one_before():
    layer = nn.Linear(5, 3)
    x, dy = torch.randn(4, 5), torch.randn(4, 3)
    call = LayerCall(Trainee(layer, list(layer.parameters())), x, dy)
    call.run()
    call.run()
    torch.testing.assert_close(layer.weight.grad, dy.T @ x)
    torch.testing.assert_close(call.x.grad, dy @ layer.weight)


def test_a_method_that_fails_is_a_row_of_each_layer(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_):
        raise ValueError("no such layer")

    monkeypatch.setitem(METHODS, "bad", Method("bad", refuse))
    records = run_op(plan(methods=("bad",)))
    assert [record.status for record in records] == ["ok", "failed"] * 4
    assert {record.shape.sizes["count"] for record in records} == {4, 2}


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"per_neuron": (65,)}, "--k 65: the narrowest layer"),
        ({"per_neuron": (65,), "methods": ()}, "--k 65: the narrowest layer"),
        ({"batch": 0}, "no tokens"),
        ({"parts": ("layr",)}, "--part layr: not a known one"),
        ({"rounds": 0}, "--rounds 0: fewer than 1"),
        ({"shape": "x"}, "shape 'x'"),
        ({"device": "cuda:9"}, "CUDA devices"),
    ],
)
def test_bad_input(fields, found):
    with pytest.raises(ConfigError, match=found):
        run_op(plan(**fields))


def test_every_backend_is_timed_by_itself_and_both_products(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("neuroada.measure.benchmarks.product.COPY_BYTES", 1 << 20)
    weight, x, dy = torch.randn(17, 13), torch.randn(7, 13), torch.randn(7, 17)
    rows = time_products(weight, x, dy, (1, 3), Rounds(2, 1, 0))
    names = possible_backends(CPU, torch.float32)
    assert "torch" in names
    ways = {
        (row.settings["k"], row.settings["product"], row.settings["backend"]) for row in rows if row.name == "gradient"
    }
    expected = {(k, "sparse", name) for k in (1, 3) for name in names} | {(k, "dense", "torch") for k in (1, 3)}
    assert ways == expected
    assert all(row.status == "ok" for row in rows), [row.reason for row in rows]
    gradient = next(row for row in rows if row.name == "gradient" and row.settings["k"] == 3)
    assert gradient.measurements["bytes_moved"].p50 == 4 * (7 * 13 + 7 * 17) + 17 * 3 * 8
    copy = next(row for row in rows if row.name == "copy")
    assert copy.measurements["share_of_bandwidth"].p50 == pytest.approx(1)
    assert {row.name for row in rows} == {"gemm", "copy", "gradient", "swap"}
    assert rows[0].measurements["ratio_to_gemm"].p50 == 1


def test_a_swap_is_undone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("neuroada.measure.benchmarks.product.COPY_BYTES", 1 << 20)
    weight, x, dy = torch.randn(5, 4), torch.randn(3, 4), torch.randn(3, 5)
    before = weight.clone()
    time_products(weight, x, dy, (2,), Rounds(1, 0, 0))
    assert torch.equal(weight, before)


def test_a_backend_is_pinned_only_meanwhile():
    before = backend_for("cpu", torch.float32)
    with pinned("torch"):
        assert backend_for("cpu", torch.float32) == ("torch", "as asked")
    assert backend_for("cpu", torch.float32) == before


def test_parts_are_kept_apart_from_methods_in_tables():
    from neuroada.report.op import PARTS

    assert not set(PARTS) & set(LABELS)
    assert set(PARTS) == {"gemm", "copy", "gradient", "swap"}
