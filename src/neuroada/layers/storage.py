"""Memory of parameters that several modules share, as tied embeddings do."""

from __future__ import annotations

from collections import Counter

from torch import nn


def storage_uses(model: nn.Module) -> Counter[int]:
    """How many modules of a model use each parameter storage, by its address."""
    uses = (
        parameter.untyped_storage().data_ptr()
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
        if not parameter.is_meta
    )
    return Counter(uses)
