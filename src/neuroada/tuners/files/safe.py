"""Adapters are saved as safetensors, never as a pickle."""

from __future__ import annotations

import sys

from peft import PeftModel

from neuroada.errors import AdapterFileError


def require_safetensors(asked: str) -> None:
    """Raise AdapterFileError inside a `PeftModel.save_pretrained` that was told to write a pickle.

    PEFT asks a method for its entries without saying what it will write, so the caller's arguments are looked up.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is PeftModel.save_pretrained.__code__ and not frame.f_locals["safe_serialization"]:
            raise AdapterFileError(
                f"{asked} with safe_serialization=False",
                "that would write a pickle, which can run code of its author's choice, and which is not read again",
                "Leave safe_serialization out: adapters are saved as safetensors",
            )
        frame = frame.f_back
