"""Learning rates that fall from layer to layer towards the image."""

from torch import nn

from ..backbone.trunk import Trunk
from ..errors import UserError


class LayerDecay:
    """The factor of each parameter's learning rate, which falls with its distance from the output.

    For ``lr_factor_func`` of Detectron2's ``get_default_optimizer_params``. As in its ViTDet
    (``get_vit_lr_decay_rate``), a backbone of n blocks has n + 2 layers: patch embedding, positions
    and class token are layer 0, block i (from 0 on) is layer i + 1, and all else, such as the
    norms of feature maps, pyramid and heads, is layer n + 1, whose factor is 1. The factor of layer
    l is ``rate ** (n + 1 - l)``.

    Args:
        rate: in (0, 1]; 1 leaves all learning rates alike.
        model: the detector, or a backbone alone; wherever in it the blocks are.

    Raises:
        UserError: the model has no blocks of this project, or several backbones.
    """

    def __init__(self, rate: float, model: nn.Module) -> None:
        self.rate = rate
        self.depth, self.prefix = 0, ""
        if rate == 1.0:
            return
        trunks = [(name, part) for name, part in model.named_modules() if isinstance(part, Trunk)]
        if len(trunks) != 1:
            raise UserError(
                f"optimizer.params.lr_factor_func.rate is {rate}, but the model has {len(trunks)} "
                f"backbones of MViT's or ViT's blocks: rates fall along one; set it to 1"
            )
        ((name, trunk),) = trunks
        self.depth, self.prefix = len(trunk.blocks), f"{name}." if name else ""

    def __call__(self, name: str) -> float:
        """The factor for a parameter of this name."""
        return self.rate ** (self.depth + 1 - self._layer(name)) if self.depth else 1.0

    def _layer(self, name: str) -> int:
        if not name.startswith(self.prefix):
            return self.depth + 1
        part, _, rest = name.removeprefix(self.prefix).partition(".")
        if part == "blocks":
            return int(rest.partition(".")[0]) + 1
        # pos_embed, pos_embed_spatial …: all positions.
        is_first = part in ("patch_embed", "cls_token") or part.startswith("pos_embed")
        return 0 if is_first else self.depth + 1
