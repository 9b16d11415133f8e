"""Triton kernels for NVIDIA GPUs, composed in :mod:`.triton_attention` and :mod:`.norm_gelu`.

Both are imported only where :mod:`.available` says that the kernels can run.
"""

import torch

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # that the kernels take on a GPU
