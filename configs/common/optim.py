"""AdamW of the MViTv2 detection recipe (appendix B.3), for a total batch of 64."""

from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params
from torch.optim import AdamW

from mvitv2_det.backbone.trunk import NO_WEIGHT_DECAY
from mvitv2_det.engine import LayerDecay

optimizer = L(AdamW)(
    params=L(get_default_optimizer_params)(
        # The trainer sets it.
        model=None,
        base_lr="${..lr}",
        # Norms and positions have no weight decay; biases have.
        weight_decay_norm=0.0,
        overrides={name: {"weight_decay": 0.0} for name in NO_WEIGHT_DECAY},
        # Below 1, the learning rate falls by this factor from block to block towards the image.
        lr_factor_func=L(LayerDecay)(rate=1.0, model="${..model}"),
    ),
    lr=1.6e-4,
    betas=(0.9, 0.999),
    weight_decay=0.1,
)
