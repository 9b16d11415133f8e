r"""The paper's system-level setting: L with Soft-NMS, tested at several scales and mirrored.

    python train_net.py --eval-only --num-gpus 8 train.init_checkpoint=model.pkl --config-file \
        configs/cascade/cascade_mask_rcnn_mvitv2_l_in21k_lsj_50ep_softnms_ms.py

The weights are those of cascade_mask_rcnn_mvitv2_l_in21k_lsj_50ep. Published: box AP 58.7, mask AP
50.5 (paper, Table A.1, and L††∗ of Table 5b); with Soft-NMS alone, multi_scale_test=null here,
56.9 and 48.6. The paper names neither the scales nor the settings of Soft-NMS; for those chosen
here see common/multi_scale_test.py and common/soft_nms.py.
"""

from ..common.multi_scale_test import multi_scale_test
from ..common.soft_nms import use_soft_nms
from .cascade_mask_rcnn_mvitv2_l_in21k_lsj_50ep import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

use_soft_nms(model)
