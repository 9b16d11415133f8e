"""CUDA graphs: the launches of a pass are recorded once, and replayed by one call.

A network of this kind launches hundreds of short kernels. For one image on a large GPU the host
takes several times as long to launch them as the GPU takes to run them. A graph of a size is
recorded when an input of that size is first seen.
"""

from .replaying import GraphedForward, replay_graphs

__all__ = ["GraphedForward", "replay_graphs"]
