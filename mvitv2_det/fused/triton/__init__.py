"""Triton kernels for NVIDIA GPUs, composed in :mod:`.triton_attention` and :mod:`.norm_gelu`.

Both are imported only where :mod:`.available` says that the kernels can run.
"""
