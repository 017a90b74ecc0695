"""Adapter files: what is saved, checked and read back, for each method."""
