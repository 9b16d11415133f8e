"""Classification as the engine trains it: images and labels to a loss, or to logits."""

from collections.abc import Callable

from timm.data import Mixup
from torch import Tensor, nn
from torch.nn.functional import one_hot


class Classification(nn.Module):
    """Mixes a batch, classifies it and compares; in evaluation it classifies alone.

    Args:
        network: (B, 3, H, W) to logits (B, classes); on several processes, as wrapped for them.
        loss: of logits (B, classes) and target probabilities (B, classes).
        mixup: of images and labels, which also smooths labels; None leaves both.
        first_outputs: logits that evaluation looks at, all by default: the first 1,000 of
            ImageNet-21K's are those of ImageNet-1K.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        mixup: Mixup | None = None,
        first_outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.mixup = mixup
        self.first_outputs = first_outputs

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor] | Tensor:
        """The loss of a batch as ``{"loss_cls": …}`` in training, otherwise its logits.

        Args:
            batch: (B, 3, H, W) normalised images and (B,) labels, on any device.
        """
        device = next(self.network.parameters()).device
        images, labels = (each.to(device, non_blocking=True) for each in batch)
        if not self.training:
            return self.network(images)[:, : self.first_outputs]
        if self.mixup:
            images, targets = self.mixup(images, labels)
            return {"loss_cls": self.loss(self.network(images), targets)}
        logits = self.network(images)
        return {"loss_cls": self.loss(logits, one_hot(labels, logits.shape[1]).to(logits.dtype))}
