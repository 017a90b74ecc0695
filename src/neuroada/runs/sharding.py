"""What is different where FSDP shards the model, so that no process has all of it."""

from __future__ import annotations

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor
from transformers import Trainer

LATER = "none while the model is sharded; afterwards: neuroada eval RUN"
"""What a header says of tests: one process alone cannot answer them."""


def is_sharded() -> bool:
    """Whether this is one of several processes under FSDP, by the variable that Accelerate and its launcher set."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and PartialState().num_processes > 1


def gathered(trainer: Trainer) -> dict[str, Tensor] | None:
    """All tensors of a sharded model, in the first process; None where it is not sharded. Every process calls this."""
    return trainer.accelerator.get_state_dict(trainer.model) if is_sharded() else None
