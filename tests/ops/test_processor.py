"""Which 16-bit products a processor emulates, by what PyTorch says of it."""

import pytest
import torch

from neuroada.ops import processor
from neuroada.ops.processor import lacks_instructions

X86, ARM = {"architecture": "x86_64"}, {"architecture": "aarch64"}


@pytest.fixture(autouse=True)
def _forget():
    processor._are_missing.cache_clear()
    yield
    processor._are_missing.cache_clear()


@pytest.mark.parametrize(
    ("found", "dtype", "lacks"),
    [
        (X86, torch.bfloat16, True),
        (X86 | {"avx512_bf16": False, "amx_bf16": False}, torch.bfloat16, True),
        (X86 | {"avx512_bf16": True}, torch.bfloat16, False),
        (X86 | {"amx_bf16": True}, torch.bfloat16, False),
        (X86 | {"amx_bf16": True}, torch.float16, True),
        (X86 | {"avx512_fp16": True}, torch.float16, False),
        (X86, torch.float32, False),
        (X86, torch.float64, False),
        (ARM, torch.bfloat16, False),
        ({}, torch.bfloat16, False),
    ],
)
def test_instructions_are_read_from_what_pytorch_says(found, dtype, lacks, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert processor.lacks_instructions("cpu", dtype) is lacks


def test_a_pytorch_that_does_not_tell_is_taken_at_its_own_product(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not lacks_instructions("cpu", torch.bfloat16)


def test_gpus_are_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: X86, raising=False)
    assert not lacks_instructions("cuda", torch.bfloat16)


def test_plans_for_another_device_take_nothing_for_emulated(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: X86, raising=False)
    with processor.as_on_a_gpu():
        assert not lacks_instructions("cpu", torch.bfloat16)
    assert lacks_instructions("cpu", torch.bfloat16)
