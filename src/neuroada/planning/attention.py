"""Attention for tensors without contents: what a device would choose, where the choice needs a device or values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import masking_utils


class CudaAttention(TorchFunctionMode):
    """Attention as CUDA devices compute it.

    What `torch.nn.functional.scaled_dot_product_attention` chooses depends on the device: in 16 bits and without a mask
    the flash kernel, which repeats no keys for grouped queries; else, where each query head has keys of its own, the
    memory-efficient kernel; and otherwise the plain computation with its [sequence, sequence] matrix.
    """

    def __init__(self, flash: bool) -> None:
        """flash: the device has the flash kernel, and knows bfloat16."""
        super().__init__()
        self.flash = flash

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return self._attention(*args, **kwargs) if func is F.scaled_dot_product_attention else func(*args, **kwargs)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        ops, short = torch.ops.aten, query.dtype in (torch.bfloat16, torch.float16)
        if self.flash and short and attn_mask is None:
            return ops._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
        if query.shape[-3] == key.shape[-3] and (self.flash or query.dtype != torch.bfloat16):
            efficient = ops._scaled_dot_product_efficient_attention
            return efficient(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
        plain = ops._scaled_dot_product_attention_math
        return plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)[0]


@contextmanager
def unpacked() -> Iterator[None]:
    """Transformers takes position ids without contents for those of packed sequences and makes a mask for them; inside,
    it makes none."""
    name = "find_packed_sequence_indices"
    found = getattr(masking_utils, name, None)
    if found is None:
        yield
        return
    setattr(masking_utils, name, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masking_utils, name, found)
