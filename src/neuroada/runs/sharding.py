"""What is different where FSDP shards the model, so that no process has all of it."""

from __future__ import annotations

from torch import Tensor
from transformers import Trainer
from transformers.integrations import is_fsdp_enabled

LATER = "none while the model is sharded; afterwards: neuroada eval RUN"
"""What a header says of tests: one process alone cannot answer them."""


def is_sharded() -> bool:
    """Whether this process trains under FSDP, as TrainingArguments or `accelerate launch --use_fsdp` say."""
    return is_fsdp_enabled()


def gathered(trainer: Trainer) -> dict[str, Tensor] | None:
    """All tensors of a sharded model, in the first process; None where it is not sharded. Every process calls this."""
    return trainer.accelerator.get_state_dict(trainer.model) if is_sharded() else None
