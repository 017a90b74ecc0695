"""Functions on tensors; no PEFT, no Transformers."""
