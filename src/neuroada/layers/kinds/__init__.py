"""What a base module is, and how its weight is reached, read and written: one file a kind."""

from __future__ import annotations

from torch import nn

from neuroada.errors import TargetError
from neuroada.layers.kinds.base import Kind
from neuroada.layers.kinds.dense import Linear
from neuroada.layers.kinds.quantised import Quantised, quantization_backend
from neuroada.layers.kinds.transposed import Transposed

KINDS: tuple[Kind, ...] = (
    Quantised(),  # before the others: such layers are often subclasses of torch.nn.Linear
    Linear(),
    Transposed(),
)
"""A module is of the first kind that claims it."""


def kind_of(module: nn.Module, name: str) -> Kind:
    """The kind of a base module; name: its name in the model, for messages.

    Raises:
        TargetError: no kind takes it; the message says why.
    """
    for kind in KINDS:
        if kind.claims(module):
            found = kind.obstacle(module)
            if found is None:
                return kind
            break
    else:
        found = f"it is a {type(module).__module__}.{type(module).__qualname__}"
    supported = " and ".join(kind.called for kind in KINDS if kind.called)
    raise TargetError(
        f"Adapting the module {name}",
        found,
        f"Supported are {supported}; name such modules in target_modules, or leave this one out with exclude_modules",
    )


__all__ = ["KINDS", "Kind", "kind_of", "quantization_backend"]
