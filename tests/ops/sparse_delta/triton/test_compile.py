"""The kernels compiled for an A100 and an H100 that need not be there, with the arguments of real launches.

The interpreter runs Python, so it takes what the compiler refuses; and only compiled code shows wide loads, spilled
registers and atomics. Triton brings the whole compiler with it.
"""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from neuroada.ops.sparse_delta import FrozenWeight, Support
from neuroada.ops.sparse_delta.backends import triton as kernels

from . import kernels as triton_kernels  # noqa: F401 (the interpreted ones are imported first)

triton = pytest.importorskip("triton", reason="triton is not installed")
NAMES = ("launch", "product", "swap", "swap_plan")
if not isinstance(triton.language.standard._sum_combine, triton.JITFunction):
    pytest.skip("TRITON_INTERPRET was set before triton was imported", allow_module_level=True)
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64"}


@pytest.fixture(scope="module")
def modules() -> Iterator[dict]:
    """The kernels' modules, imported once more so that Triton compiles what is in them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        for name in NAMES:
            patch.delitem(sys.modules, f"{kernels.__name__}.{name}")
            patch.setattr(kernels, name, None)
        yield {name: importlib.import_module(f"{kernels.__name__}.{name}") for name in NAMES}


def compiled(kernel, arguments, constants: dict, capability: int):
    """As Triton specialises: a 1 is a constant, and of what 16 divides this is known."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names, signature, divisible = kernel.arg_names, {}, {}
    options = {"num_warps": constants.pop("num_warps", 4), "enable_fp_fusion": False}
    for name, value in zip(names, arguments, strict=False):
        is_tensor = isinstance(value, torch.Tensor)
        signature[name] = TYPES[value.dtype] if is_tensor else "i32"
        if (value.data_ptr() if is_tensor else value) % 16 == 0:
            divisible[(names.index(name),)] = [["tt.divisibility", 16]]
        if not is_tensor and value == 1:
            constants = constants | {name: 1}
    signature |= dict.fromkeys(constants, "constexpr")
    places = {(names.index(name),): value for name, value in constants.items()}
    return triton.compile(ASTSource(kernel, signature, places, divisible), GPUTarget("cuda", capability, 32), options)


def facts(code: dict, folder: Path) -> dict:
    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    (folder / "code.cubin").write_bytes(code["cubin"])
    usage = subprocess.run([dump, "-res-usage", folder / "code.cubin"], capture_output=True, text=True, check=True)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage.stdout)[1]),
        "spilled": sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage.stdout)),
        "atomics": len(re.findall(r"\b(?:atom|red)\.", code["ptx"])),
        "flushed": code["ptx"].count(".ftz"),
        "wide_loads": code["ptx"].count("ld.global.v4"),
    }


def run_all(modules: dict, dtype: torch.dtype = torch.bfloat16) -> None:
    """Every kernel once: a product of round sizes, one of odd sizes, and swaps of one weight and of a plan."""
    product, swap = modules["product"], modules["swap"]
    round_sizes = torch.empty(128, 64, dtype=dtype), torch.empty(128, 256, dtype=dtype)
    product.sampled_product(*round_sizes, torch.empty(256, 1).int())
    panels = product.token_panels(torch.empty(33, 131), torch.arange(100))
    product.panel_product(panels, torch.empty(33, 7), torch.empty(5, 20).int(), torch.arange(5))
    weight, indices, deltas = torch.zeros(5, 7, dtype=dtype), torch.arange(3).expand(5, 3).int(), torch.zeros(5, 3)
    swap.swap_in(weight.T, indices, torch.arange(5), deltas)
    plan = modules["swap_plan"].SwapPlan([(FrozenWeight(weight), Support(indices, deltas))])
    plan.write()
    plan.restore()


@pytest.fixture(scope="module", params=[80, 90], ids=["sm_80", "sm_90"])
def found(request, modules, tmp_path_factory) -> dict[tuple, dict]:
    """By kernel, task and whether sizes are round: what is in the compiled code."""
    folder, results = tmp_path_factory.mktemp("triton"), {}

    def compile_instead(kernel, grid, device, *arguments, **constants):
        sizes = [value for value in arguments if not isinstance(value, torch.Tensor)]
        key = kernel.__name__.removesuffix("_kernel"), constants.get("task"), 128 in sizes
        results[key] = facts(compiled(kernel, arguments, constants, request.param).asm, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", os.fspath(folder))
        for name in NAMES[1:]:
            patch.setattr(modules[name], "launch", compile_instead)
            patch.setattr(modules[name], "require_reachable", lambda device: None)
        run_all(modules)
    return results


def test_every_kernel_compiles(found):
    assert set(found) == {
        *(("panels", None, round_sizes) for round_sizes in (True, False)),
        *(("product", None, round_sizes) for round_sizes in (True, False)),
        ("swap", "swap", False),
        *(("plan", task, False) for task in ("read", "write", "restore")),
    }


def test_no_register_is_spilled(found):
    assert {each["spilled"] for each in found.values()} == {0}
    assert max(each["registers"] for each in found.values()) <= 128  # 16 warps share a multiprocessor


def test_sums_have_one_order_and_the_smallest_numbers_are_kept(found):
    assert {(each["atomics"], each["flushed"]) for each in found.values()} == {(0, 0)}


def test_round_sizes_are_loaded_16_bytes_at_a_time(found):
    """64 x 64 bfloat16, of x for the panels, of panels and dy for the product: 4 loads for each of 128 threads."""
    assert found["panels", None, True]["wide_loads"] == 4
    assert found["product", None, True]["wide_loads"] == 8
