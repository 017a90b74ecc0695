"""Tables: what they show of records, and what they refuse to compare."""

import pytest
import torch
from torch import nn

from neuroada import NeuroAdaConfig, NeuroAdaLinear
from neuroada.baselines.mask import mask_at
from neuroada.measure.benchmarks.methods import METHODS
from neuroada.measure.record import Shape
from neuroada.measure.shapes import SHAPES
from neuroada.report import rows
from neuroada.report.paper import figure5, table1
from neuroada.report.tables import TABLES, matching
from neuroada.report.text import markdown, mebibytes, seconds_text
from neuroada.selection import top_k

from .conftest import CPU

GIB = 2**30


def cells(table: str) -> dict[str, list[str]]:
    """Rows of the Markdown tables in a text, by their first cell."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines}


def step_records(make):
    return [
        make("frozen", {"step_time": 0.1, "ratio_to_frozen": 1, "ratio_to_lora": 0.8, "peak_memory": 16 * GIB}),
        make(
            "neuroada",
            {
                "step_time": 0.13,
                "ratio_to_frozen": (1.25, 1.3, 1.4),
                "ratio_to_lora": 1.04,
                "peak_memory": 16 * GIB + 3 * 2**20,
                "trained_parameters": 1_359_872,
            },
            settings={"k": 1},
        ),
        make("lora", {"step_time": 0.125, "ratio_to_frozen": (1.2, 1.25, 1.3), "ratio_to_lora": 1}, settings={"r": 8}),
        make("full", {}, status="out of memory", reason="OutOfMemoryError: CUDA out of memory."),
    ]


def test_step_table_shows_ratios_memory_machine_and_the_peer_that_wins(make):
    table = TABLES["step"](step_records(make))
    found = cells(table)
    assert list(found) == ["method", "---", "frozen limit", "LoRA r=8", "NeuroAda k=1", "full fine-tuning"]
    assert found["NeuroAda k=1"] == ["130 ms", "1.30 [1.25–1.40]", "1.04", "+3.0 MiB", "1,359,872"]
    assert found["LoRA r=8"][3] == "—"
    assert found["full fine-tuning"][0] == "out of memory: OutOfMemoryError: CUDA out of memory."
    heading = table.split("\n")[0]
    for phrase in ("**LLaMA-7B (32 layers)**, 2 × 512 tokens, bfloat16", "NVIDIA H200", "medians of 5 rounds"):
        assert phrase in heading
    assert "2026-11-22, torch 2.13.0, peft 0.21.2, commit 0123456789-dirty" in heading


def test_a_cpu_is_named_with_what_it_lacks(make):
    table = TABLES["step"]([make("frozen", {"step_time": 1, "ratio_to_frozen": 1}, machine=CPU)])
    assert "Xeon, 2 threads, without avx512_bf16 and amx_bf16" in table


def test_the_newest_of_each_measurement_counts_and_a_failure_only_until_it_works(make):
    later = {"created": "2026-11-23T10:00:00+00:00", "run": "run2"}
    records = [
        make("lora", {"step_time": 2, "ratio_to_frozen": 2, "peak_memory": 5 * GIB}, **later),
        make("frozen", {"peak_memory": 2 * GIB}, **later),
        make("lora", {}, status="failed", reason="once"),
        make("frozen", {"step_time": 1, "ratio_to_frozen": 1, "peak_memory": 1 * GIB}),
    ]
    (group,) = rows.grouped(records)
    lora = group.find("lora")
    assert lora.failure is None
    assert cells(TABLES["step"](records))["LoRA"][3] == "+3,072 MiB"  # the limit of the same run
    assert group.find("frozen").runs == {"step_time": "run1", "ratio_to_frozen": "run1", "peak_memory": "run2"}


def test_code_that_is_loaded_once_is_told_apart(make):
    found = cells(
        TABLES["step"](
            [
                make("frozen", {"ratio_to_frozen": 1, "peak_memory": GIB, "memory_of_code": 16 << 20}),
                make("neuroada", {"peak_memory": GIB + (150 << 20), "memory_of_code": 116 << 20}),
                make("lora", {"peak_memory": GIB + (570 << 20), "memory_of_code": 17 << 20}),
            ]
        )
    )
    assert found["NeuroAda"][3] == "+150 MiB (100 MiB code)"
    assert found["LoRA"][3] == "+570 MiB"


def test_other_machines_dtypes_and_batches_are_other_tables(make):
    base = {"step_time": 1, "ratio_to_frozen": 1}
    variants = [{}, {"machine": CPU}, {"dtype": "float32"}, {"batch": 8}]
    assert TABLES["step"]([make("frozen", base, **fields) for fields in variants]).count("**LLaMA-7B") == 4


def test_records_can_be_chosen(make):
    records = [make("frozen", {"step_time": 1}), make("frozen", {"step_time": 1}, machine=CPU, batch=8)]
    for wanted in ({"device": "cpu"}, {"batch": "8"}, {"device": "cpu", "layers": "32", "shape": "LLaMA-7B"}):
        assert matching(records, wanted) == [records[1]]
    assert matching(records, {"device": "cuda"}) == [records[0]]
    assert matching(records, {"layers": "3"}) == []


@pytest.mark.parametrize("name", ["step", "op", "product"])
def test_without_records_a_table_says_so(name):
    assert TABLES[name]([]) == "Not measured."


def test_op_table_weighs_layers_by_how_many_there_are(make):
    def layer(method, size, time, products, **fields):
        shape = Shape(name="tiny", sizes={"out_features": size, "in_features": 2, "count": 3 if size == 4 else 1})
        values = {"time": time, "ratio_to_frozen": time, "dense_products": products}
        values |= {"saved_x": 0, "saved_beyond_x": 2**20}
        return make(method, values, kind="op", shape=shape, notes={"layer": f"l{size}"}, **fields)

    records = [
        *(layer("frozen", size, 1, 2) for size in (4, 8)),
        *(
            layer("neuroada", size, time, products, settings={"k": 1})
            for size, time, products in ((4, 2, 2), (8, 6, 3))
        ),
    ]
    found = cells(TABLES["op"](records))
    assert found["method"][:3] == ["l4 [4, 2] × 3", "l8 [8, 2] × 1", "all layers"]
    spread = ["2.00 [2.00–2.00]", "6.00 [6.00–6.00]"]
    assert found["NeuroAda k=1"] == [*spread, "3.00", "2.40", "0.0 MiB", "4.0 MiB"]


def test_product_table_shows_each_way_against_the_gemm(make):
    shape = Shape(name="tiny", sizes={"out_features": 4, "in_features": 2, "count": 1})
    fields = {"kind": "op", "shape": shape, "notes": {"layer": "fc"}}
    settings = {"k": 3, "product": "sparse", "backend": "numba"}
    records = [
        make("gemm", {"time": 2e-3}, **fields),
        make("gradient", {"ratio_to_gemm": 0.5, "share_of_bandwidth": 0.61}, settings=settings, **fields),
        make("gradient", {"ratio_to_gemm": 0.75}, settings=settings | {"product": "dense"}, **fields),
        make("swap", {}, settings={"k": 3, "backend": "torch"}, status="failed", reason="no", **fields),
    ]
    found = cells(TABLES["product"](records))
    assert found["layer"] == ["K", "GEMM", "gradient, numba", "gradient, dense", "swap, torch"]
    assert found["fc [4, 2]"] == ["3", "2 ms", "0.50 (61%)", "0.75", "failed: no"]
    assert "method" not in cells(TABLES["op"](records))


@pytest.mark.parametrize("dtype", table1.DELTA_BYTES)
def test_table1_counts_what_a_layer_holds(dtype):
    layer = NeuroAdaLinear(nn.Linear(48, 40), "default", NeuroAdaConfig(k=3, delta_dtype=dtype), "layer")
    held = (layer.neuroada_deltas["default"], layer.neuroada_indices["default"])
    assert sum(tensor.numel() * tensor.element_size() for tensor in held) == table1.support_bytes(40, 3, dtype)
    weight = torch.randn(40, 48)
    assert mask_at(weight, top_k(weight.abs(), 1)).numel() == 8 * table1.mask_bytes(40, 48)


def test_table1_sets_ours_beside_the_published_values():
    found = cells(TABLES["table1"]([]))
    assert found["LLaMA-1 7B"] == ["4096", "2.00", "2.00", "0.023", "0.031", "0.016", "85× or 64×", "125×"]
    assert found["LLaMA-2 13B"][1:3] == ["3.12", "3.13"]


def test_figure5_table_says_what_was_not_measured_and_what_the_paper_says(make):
    few = Shape(name="Llama-3-8B", sizes={"layers": 4})
    records = [
        *step_records(make),
        make("neuroada", {"step_time": 0.05}, shape=few, settings={"k": 1}),
        make("neuroada", {"step_time": 0.01}, batch=8, settings={"k": 1}),
        make("neuroada", {"step_time": 9, "peak_memory": 9}, machine=CPU, settings={"k": 1}),
        make("neuroada", {"step_time": 7, "peak_memory": 9}, settings={"k": 20}),
    ]
    table = TABLES["figure5"](records)
    found = cells(table)
    memory = "16.0 GiB"
    none, failed = ["not measured"] * 2, "out of memory"
    assert found["LLaMA-7B"] == [memory, *none, failed, "15.4", *none, failed]
    assert found["Llama-3-8B"] == ["not measured"] * 8
    assert "16.6 samples per second against 1.1" in table
    assert "LLaMA-7B: NVIDIA H200" in table


def test_figure5_knows_the_models_as_they_are():
    assert {name: SHAPES[name].described().sizes["layers"] for name in figure5.MODELS} == figure5.MODELS


def test_every_method_has_a_name_that_people_know():
    assert rows.LABELS.keys() == METHODS.keys()


def test_numbers():
    assert [seconds_text(value) for value in (None, 12.345, 0.0123, 4.5e-5)] == ["—", "12.3 s", "12.3 ms", "45 µs"]
    assert [mebibytes(value, sign=True) for value in (2**20, -(2**19), 20 * GIB)] == [
        "+1.0 MiB",
        "-0.5 MiB",
        "+20.0 GiB",
    ]
    assert markdown(["a", "b"], [["x|y", "1\n2"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 2 |"
