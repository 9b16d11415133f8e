"""Learning rate schedules.

When train.max_iter changes, the steps move in proportion, and the warm-up keeps its number of
iterations.
"""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from mvitv2_det.engine import warmup_fraction


def multistep(milestones, warm_up=250):
    """Makes a schedule that drops to 0.1 and 0.01 of the base rate.

    Args:
        milestones: iterations of the two drops, and of the end of the run.
        warm_up: iterations of the warm-up.
    """
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=milestones),
        warmup_length=L(warmup_fraction)(iterations=warm_up, max_iter="${train.max_iter}"),
        warmup_factor=0.001,
    )


# 36 epochs of COCO at a total batch of 64.
ITERATIONS_3X = 67500
lr_multiplier_3x = multistep([52500, 62500, 67500])

# 50 epochs, as the paper says for L and H; the public recipe trains H for 36 epochs.
ITERATIONS_50EP = 184375 // 2
lr_multiplier_50ep = multistep([163889 // 2, 177546 // 2, 184375 // 2])

# 100 epochs of ViTDet's recipe, which trains L for half of it, its warm-up halved as well.
ITERATIONS_100EP = 184375
lr_multiplier_100ep = multistep([163889, 177546, 184375])
lr_multiplier_vitdet_50ep = multistep([163889 // 2, 177546 // 2, 184375 // 2], warm_up=125)

# The same of LVIS, whose training split is smaller.
ITERATIONS_LVIS_100EP = 156250
lr_multiplier_lvis_100ep = multistep([138889, 150463, 156250])
ITERATIONS_LVIS_50EP = 156250 // 2
lr_multiplier_lvis_50ep = multistep([138889 // 2, 150463 // 2, 156250 // 2])
