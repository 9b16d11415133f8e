"""The sizes of MViTv2 in image classification."""

from omegaconf import DictConfig

from mvitv2_det.recognition.recognizer import IMAGE_DROP_PATH


def use_size(variant: str, model: DictConfig, optimizer: DictConfig) -> None:
    """Makes a config one of another size, in place, by appendix B.2.

    Args:
        variant: T, S, B, L or H.
        model, optimizer: the config's nodes.
    """
    model.update(variant=variant, drop_path_rate=IMAGE_DROP_PATH[variant])
    # facebookresearch/mvit has 0.05 in all configs, of which those of L and H are for tests alone.
    optimizer.weight_decay = 0.1 if variant in ("L", "H") else 0.05
