"""Transformers' Conv1D (GPT-2): a linear layer that stores its weight as [I, O]."""

from transformers.pytorch_utils import Conv1D

from neuroada.layers.kinds.dense import Dense


class Transposed(Dense):
    """The weight [O, I] is the transpose of what is stored."""

    called = "transformers' Conv1D"
    module_class = Conv1D
    transposed = True
