"""Parts of configs that train in epochs, the same for images, clips and actions.

What is null follows from the data and from the config's ``recipe``; see
:func:`projects.common.runs.set_schedule`.
"""

from typing import Any

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler
from omegaconf import DictConfig

from mvitv2_det.engine import warmup_fraction
from projects.common.runs import StoredDescription
from projects.common.watching import CurvesHook


def warmed_up_cosine(*, start: float, end: float) -> DictConfig:
    """Makes the schedule: linear over ``recipe.warmup_epochs``, then half a cosine.

    Args:
        start, end: first and last factors of the learning rate.
    """
    return L(WarmupParamScheduler)(
        scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=end),
        warmup_length=L(warmup_fraction)(
            iterations="${recipe.warmup_epochs}", max_iter="${recipe.epochs}"
        ),
        warmup_factor=start,
    )


def run_settings(best_metric: str) -> dict[str, Any]:
    """Settings of ``train`` for a run in epochs whose checkpoints describe their network."""
    return {
        "max_iter": None,
        "eval_period": None,
        "checkpointer": {"period": None, "max_to_keep": 2},
        "best_metric": best_metric,
        "checkpoint_parts": {"recognizer": L(StoredDescription)(content="${description}")},
        "hooks": [L(CurvesHook)(output_dir="${train.output_dir}", period="${train.eval_period}")],
    }
