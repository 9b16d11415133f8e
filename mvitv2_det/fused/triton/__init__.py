"""Triton kernels for NVIDIA GPUs: functions of tensors, composed in :mod:`.pooled_attention`.

Imported only where :mod:`.available` says that they can run.
"""
