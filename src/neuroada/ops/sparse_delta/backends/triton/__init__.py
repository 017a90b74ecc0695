"""The kernels for CUDA devices; only `device` may be imported without triton."""
