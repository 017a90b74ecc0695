"""A training that has left the finite numbers ends at once, and says at which step."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from neuroada.errors import DivergedError
from neuroada.run_folder.folder import RunFolder


class StopIfDiverged(TrainerCallback):
    """Raises DivergedError at the first gradient or trained value that is not finite, and before it would be saved.

    Gradients are looked at in each step; on an accelerator, which this would make wait, when Trainer logs or saves.
    """

    def __init__(self, folder: RunFolder, learning_rate: float):
        """folder, learning_rate: of the run, for the message."""
        self.folder, self.learning_rate = folder, learning_rate
        self.waiting: list[tuple[int, Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Before a step makes values of gradients."""
        groups = kwargs["optimizer"].param_groups
        gradients = [each.grad for group in groups for each in group["params"] if type(each.grad) is Tensor]
        if gradients:
            self.waiting.append((state.global_step + 1, _all_finite(gradients)))
        if args.device.type == "cpu":
            self._look()

    def on_log(self, args, state, control, **kwargs):
        """Trainer leaves losses that are not finite out of its log, but not the norms of their gradients."""
        self._look()
        for name in ("loss", "grad_norm"):
            value = kwargs["logs"].get(name, 0.0)
            if not torch.isfinite(torch.as_tensor(value)):
                self._stop(f"{name} is {float(value)}", state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        """Before a checkpoint is written."""
        if control.should_save:
            self._require_finite(kwargs["model"], state.global_step)

    def on_epoch_end(self, args, state, control, **kwargs):
        """Before an evaluation chooses the best checkpoint."""
        self._require_finite(kwargs["model"], state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        """Before the result is evaluated and saved."""
        self._require_finite(kwargs["model"], state.global_step)

    def _look(self) -> None:
        waiting, self.waiting = self.waiting, []
        for step, finite in waiting:
            if not finite:
                self._stop("a gradient is not finite", step)

    def _require_finite(self, model: nn.Module, step: int) -> None:
        self._look()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                self._stop(f"{name} is no longer finite", step)

    def _stop(self, what: str, step: int) -> NoReturn:
        raise diverged(f"{what} at step {step:,}", self.learning_rate, self.folder.last_checkpoint())


def diverged(found: str, learning_rate: float, checkpoint: Path | None) -> DivergedError:
    """The error of a training that has. checkpoint: its last one, from before that."""
    last = "no checkpoint was saved before" if checkpoint is None else f"the last good checkpoint is {checkpoint}"
    do = f"Begin again with a smaller training.learning_rate, or a longer training.warmup_steps; {last}"
    return DivergedError(f"training with learning rate {learning_rate:g}", found, do)


def _all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """bool []: of the norms, each of which is not finite where an entry is not, or where they are too large to add."""
    return torch.stack([norm.float() for norm in torch._foreach_norm(list(tensors))]).isfinite().all()
