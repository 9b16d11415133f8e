"""The length of a learning rate schedule's warm-up, which Detectron2 takes as a share."""


def warmup_fraction(iterations: int, max_iter: int) -> float:
    """Computes the share of a run that is warm-up, for ``WarmupParamScheduler``.

    The warm-up so keeps its length in iterations if the run is shortened or lengthened.

    Args:
        iterations: length of the warm-up.
        max_iter: length of the run.

    Returns:
        a number in [0, 1]; 1 where the run ends before the warm-up does.
    """
    return min(iterations / max_iter, 1.0)
