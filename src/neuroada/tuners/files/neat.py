"""NEAT's adapter file: per adapted weight `neat_in`, `neat_hidden` where depth > 2, and `neat_out`, as in the layer.

The update depends on every entry of the base weight; fingerprints are of one entry a neuron.
"""

from __future__ import annotations

from neuroada.layers import NeatLinear
from neuroada.ops.sparse_delta import Support
from neuroada.tuners.files.base import FLOATS, AdapterFile, Entry


class NeatFile(AdapterFile):
    """The network's layers."""

    method = "NEAT"
    layer_class = NeatLinear
    kinds = ("neat_in", "neat_hidden", "neat_out")
    fingerprints = "neat_fingerprints"
    digest = "neat_digest"

    def entry(self, layer: NeatLinear, adapter_name: str, state: Entry) -> Entry:
        """As they are."""
        own = zip(self.kinds, layer.theta(adapter_name), strict=True)
        return {kind: tensor.detach() for kind, tensor in own if tensor is not None} | state

    def support(self, layer: NeatLinear, entry: Entry) -> Support:
        """A sample of the weight."""
        return layer.sample()

    def complaint(self, layer: NeatLinear, adapter_name: str, entry: Entry) -> str | None:
        """Layers that are missing, of another shape than r and depth give, or not finite."""
        for kind, own in zip(self.kinds, layer.theta(adapter_name), strict=True):
            if own is None and kind not in entry:
                continue
            if own is None:
                return f"the file has a {kind} for it, and a network of depth 2 has none"
            if kind not in entry:
                return f"the file has no {kind} for it"
            if entry[kind].shape != own.shape:
                return f"{kind} has shape {list(entry[kind].shape)}, and the configuration gives {list(own.shape)}"
            if entry[kind].dtype not in FLOATS:
                return f"{kind} is {entry[kind].dtype}, not one of {', '.join(map(str, FLOATS))}"
            if not entry[kind].to(own.dtype).isfinite().all():
                return f"some entries of {kind} are not finite numbers"
        return None

    def make_room(self, layer: NeatLinear, adapter_name: str, entry: Entry) -> None:
        """Nothing: shapes are those of the configuration."""
