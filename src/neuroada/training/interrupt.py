"""Ctrl-C once: a checkpoint is saved after the step, and training ends. Twice: it ends at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from accelerate import PartialState
from rich.console import Console
from transformers import TrainerCallback


class SaveOnInterrupt(TrainerCallback):
    """A context for a training, and one of its callbacks.

    Only in the main thread of a training in one process: several would stop at different steps.
    """

    def __init__(self, console: Console) -> None:
        """console: where it says what it does."""
        self.console, self.asked = console, False
        self._before: Any = None

    def __enter__(self) -> SaveOnInterrupt:
        alone = PartialState().num_processes == 1 and threading.current_thread() is threading.main_thread()
        if alone and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()
        self.console.print("\nInterrupted: a checkpoint is saved after this step. Ctrl-C again stops at once.")

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()
        if kind is None and self.asked:
            raise KeyboardInterrupt

    def on_step_end(self, args, state, control, **kwargs):
        """Save and end, if it was asked for."""
        if self.asked:
            control.should_save = control.should_training_stop = True
