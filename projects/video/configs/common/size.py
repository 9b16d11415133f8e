"""The sizes of MViTv2 in video classification, and what they are trained from."""

from omegaconf import DictConfig

from mvitv2_det.recognition.recognizer import CLIP_DROP_PATH

# Released image networks; S of ImageNet-21K never was: name a checkpoint of your own.
IMAGE_WEIGHTS = {
    ("S", "in1k"): "timm://mvitv2_small",
    ("B", "in1k"): "timm://mvitv2_base",
    ("L", "in1k"): "timm://mvitv2_large",
    ("S", "in21k"): "",
    ("B", "in21k"): "timm://mvitv2_base_cls",
    ("L", "in21k"): "timm://mvitv2_large_cls",
}
# Appendix B.4: epochs, and the rate for 256 clips.
FINE_TUNING = {"in1k": (100, 2.4e-4), "in21k": (75, 0.8e-4)}


def use_size(
    variant: str, model: DictConfig, input: DictConfig, *, frames: int, rate: int, side: int = 224
) -> None:
    """Makes a config one of another size, in place.

    Args:
        variant: S, B or L.
        model, input: the config's nodes.
        frames, rate: T × τ.
        side: of the input.
    """
    model.update(variant=variant, drop_path_rate=CLIP_DROP_PATH[variant])
    input.update(size=side, frames=frames, rate=rate)
    if variant == "L":
        # PySlowFast has ImageNet's colours for L alone.
        input.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def start_from_images(pretraining: str, model: DictConfig, recipe: DictConfig, train: DictConfig):
    """Trains from an image network, inflated as in section 4.3 (appendix B.4).

    Args:
        pretraining: ``in1k`` or ``in21k``.
        model, recipe, train: the config's nodes; the size is that of the model.
    """
    epochs, rate = FINE_TUNING[pretraining]
    # The text does not say how long the warm-up of a shorter run is: the same share of it.
    recipe.update(epochs=epochs, warmup_epochs=round(0.15 * epochs), lr_per_256=rate)
    widen_as_released(pretraining, model)
    train.init_checkpoint = IMAGE_WEIGHTS[model.variant, pretraining]


def widen_as_released(pretraining: str, model: DictConfig) -> None:
    """L exists twice: its channels double in the MLPs (ImageNet-1K) or in attention (21K).

    Args:
        pretraining: ``scratch``, ``in1k`` or ``in21k``.
        model: the config's node.
    """
    if model.variant == "L":
        model.expand_in_attention = pretraining == "in21k"


def start_from_shorter(
    checkpoint: str,
    task: DictConfig,
    recipe: DictConfig,
    optimizer: DictConfig,
    dataloader: DictConfig,
    train: DictConfig,
) -> None:
    """Trains 40×3 from the 16×4 counterpart (appendix B.4): 30 epochs, without mixup.

    Args:
        checkpoint: of the run before.
        task, recipe, optimizer, dataloader, train: the config's nodes.
    """
    task.mixup = None
    # 1.6e-5 for 128 clips; the text mentions no warm-up.
    recipe.update(epochs=30, warmup_epochs=0, lr_per_256=3.2e-5)
    optimizer.weight_decay = 1e-8
    dataloader.train.total_batch_size = 128
    train.init_checkpoint = checkpoint
