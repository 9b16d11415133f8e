"""The part of learning rate schedules that Detectron2's own pieces lack."""


def warmup_fraction(iterations: int, max_iter: int) -> float:
    """Share of a run that is warm-up, for ``WarmupParamScheduler``.

    Keeps the warm-up's length in iterations where a run is shortened or lengthened.

    Args:
        iterations: length of the warm-up.
        max_iter: length of the run.

    Returns:
        a number in [0, 1]; 1 where the run ends before the warm-up does.
    """
    return min(iterations / max_iter, 1.0)
