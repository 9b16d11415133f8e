"""LVIS v1: rare classes are repeated, and losses are sigmoid and federated (Gupta et al. 2019).

Evaluation is that of the ``lvis`` package, with 300 detections an image.
"""

from detectron2.config import LazyCall as L
from detectron2.data.samplers import RepeatFactorTrainingSampler
from omegaconf import DictConfig

from mvitv2_det.data.lvis import FederatedLossWeights, LvisEvaluator

CLASSES, DETECTIONS = 1203, 300


def use_lvis(model: DictConfig, dataloader: DictConfig) -> None:
    """Makes a config of Cascade Mask R-CNN on COCO one on LVIS v1, in place."""
    dataloader.train.dataset.names = "lvis_v1_train"
    dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
        repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
            dataset_dicts="${dataloader.train.dataset}", repeat_thresh=0.001
        ),
        # One order for all runs, so that a run that is resumed goes on in its own.
        seed=0,
    )
    dataloader.test.dataset.names = "lvis_v1_val"
    dataloader.evaluator = L(LvisEvaluator)(
        dataset_name="${..test.dataset.names}",
        output_dir="${train.output_dir}/inference",
        max_dets_per_image=DETECTIONS,
    )
    model.roi_heads.num_classes = CLASSES
    for predictor in model.roi_heads.box_predictors:
        predictor.update(
            test_score_thresh=0.02,
            test_topk_per_image=DETECTIONS,
            use_sigmoid_ce=True,
            use_fed_loss=True,
            get_fed_loss_cls_weights=L(FederatedLossWeights)(
                dataset_names="${dataloader.train.dataset.names}",
                num_classes="${model.roi_heads.num_classes}",
                freq_weight_power=0.5,
            ),
        )
