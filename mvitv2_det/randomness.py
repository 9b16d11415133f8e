"""Randomness that follows from a run's seed and from where in the run it is used.

Before each step and each sample, the generators are seeded anew. So nothing of their state needs to
be saved, of no worker and no process, and a run that goes on draws what it would have drawn.
"""

import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# What the numbers are for: the first number after the run's seed.
MODEL, STEP, ORDER, SAMPLE = range(4)

LARGEST_SEED = 2**31 - 1


def draw_seed() -> int:
    """Draws the seed of a run that names none."""
    return secrets.randbelow(LARGEST_SEED)


def derived_seed(seed: int, *place: int) -> int:
    """Computes a seed from that of the run and a place in it.

    Args:
        seed: the run's.
        place: what the numbers are for, and which step, process or sample; not negative.
    """
    return int(np.random.SeedSequence((seed, *place)).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators, those of GPUs too."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the generators for a while, and puts those of the CPU back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # a worker must not wake up the GPU
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
