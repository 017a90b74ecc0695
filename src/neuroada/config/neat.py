"""NEAT's settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from peft import PeftType
from transformers.activations import ACT2FN

from neuroada.config.shared import AdapterConfig, is_whole, require_known
from neuroada.errors import ConfigError

SIDES = ("input", "output")
VARIANTS = ("neat", "nonlinear_lora", "multiplicative_lora")
OWN_ACTIVATIONS = ("relu", "leaky_relu", "gelu", "tanh", "silu", "sine")
TRAINABLE_ACTIVATIONS = ("prelu", "xielu")
"""Of Transformers, not offered: they have weights of their own, for which an adapter has no place."""
ACTIVATIONS = (*OWN_ACTIVATIONS, *(name for name in ACT2FN if name not in OWN_ACTIVATIONS + TRAINABLE_ACTIVATIONS))
"""The paper's and silu, then those that only PEFT's PEANuT knows: all of Transformers'."""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass
class NeatConfig(AdapterConfig):
    """Settings of NEAT (arXiv 2410.01870, later called PEANuT): a small network of the frozen weight is its update.

    Raises:
        ConfigError: a value is out of range or unknown, or two fields contradict each other.
    """

    r: int = field(default=8, metadata={"help": "Width R of the network between its first and its last layer."})
    scaling: float = field(default=1.0, metadata={"help": "s in W + s·f(W; θ); not 0."})
    depth: int = field(
        default=2,
        metadata={"help": "Layers of the network, first and last included; at least 2 (Appendix E)."},
    )
    activation: str = field(
        default="relu", metadata={"help": f"Between the layers: {', '.join(OWN_ACTIVATIONS)}, or one of Transformers'."}
    )
    side: str = field(
        default="input",
        metadata={
            "help": "What the network reads: 'input', W along its inputs (Eq. 5), or 'output', along its outputs (the "
            "paper's Figure 6, PEFT's PEANuT)."
        },
    )
    dropout: float = field(default=0.0, metadata={"help": "On the input of the update while training, in [0, 1)."})
    variant: str = field(
        default="neat",
        metadata={
            "help": "'neat', or one of the paper's ablations: 'nonlinear_lora' (act(A) B, which does not read W), "
            "'multiplicative_lora' (W A B, without activation)."
        },
    )
    init_weights: bool = field(
        default=True,
        metadata={"help": "Start with zeros in the last layer: the adapted model is the base model. False: random."},
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType("NEAT")
        require_known("activation", self.activation, ACTIVATIONS)
        require_known("side", self.side, SIDES)
        require_known("variant", self.variant, VARIANTS)
        self._check_numbers()
        if self.variant == "multiplicative_lora" and (self.depth != 2 or self.activation != "relu"):
            raise ConfigError(
                f"variant={self.variant!r} with depth={self.depth} and activation={self.activation!r}",
                "W A B has two layers and no activation",
                "Leave depth and activation out, or choose variant='neat'",
            )

    def _check_numbers(self) -> None:
        if not is_whole(self.r, 1):
            raise ConfigError(
                f"r={self.r!r}", "the width of the network is a whole number of at least 1", "Give one, such as r=8"
            )
        if not is_whole(self.depth, 2):
            raise ConfigError(
                f"depth={self.depth!r}",
                "the network has at least a first and a last layer",
                "Give depth=2 or more (the depth of PEFT's PEANuT counts pairs between them: there 0 is 2 here)",
            )
        if not _is_number(self.scaling) or self.scaling == 0:
            raise ConfigError(
                f"scaling={self.scaling!r}", "not a finite number other than 0", "Give one, such as 1.0 (the default)"
            )
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"dropout={self.dropout!r}",
                "a probability of dropping must be at least 0 and below 1",
                "Give a value in [0, 1), such as 0.05",
            )
