"""What a training will cost, before any weight is loaded."""
