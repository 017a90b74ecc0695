"""Image classification: files and hub sets in, pixels out."""
