"""NEAT: the frozen weight, read by a small network, makes its own update."""

from neuroada.ops.neat.function import updated
from neuroada.ops.neat.network import (
    ACTIVATIONS,
    Network,
    Theta,
    delta_weight,
    multiplied_input,
    multiplied_output,
)
from neuroada.ops.neat.traced import traced_update

__all__ = [
    "ACTIVATIONS",
    "Network",
    "Theta",
    "delta_weight",
    "multiplied_input",
    "multiplied_output",
    "traced_update",
    "updated",
]
