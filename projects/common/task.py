"""Classification as the engine trains it: images or clips and labels to a loss, or to logits.

Axes: B samples, T frames, H × W pixels.
"""

from collections.abc import Callable

import torch
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn.functional import one_hot


class Classification(nn.Module):
    """Mixes a batch, classifies it and compares; in evaluation it classifies alone.

    Args:
        network: (B, 3, H, W) or (B, 3, T, H, W) to logits (B, classes); on several processes, as
            wrapped for them.
        loss: of logits (B, classes) and target probabilities (B, classes).
        mixup: of images and labels, which also smooths labels; None leaves both. Of clips, all
            frames are mixed alike, and cut at the same place.
        first_outputs: logits that evaluation looks at, all by default: the first 1,000 of
            ImageNet-21K's are those of ImageNet-1K.
        most_at_once: samples that go through the network together in evaluation, at most: a batch
            of videos may be of many views. None takes all.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        mixup: Mixup | None = None,
        first_outputs: int | None = None,
        most_at_once: int | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.mixup = mixup
        self.first_outputs = first_outputs
        self.most_at_once = most_at_once

    def forward(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor] | Tensor:
        """The loss of a batch as ``{"loss_cls": …}`` in training, otherwise its logits.

        Args:
            batch: (B, 3, H, W) normalised images or (B, 3, T, H, W) clips, and (B,) labels, which
                evaluation does not look at, on any device; whatever follows is left alone.
        """
        device = next(self.network.parameters()).device
        images = batch[0].to(device, non_blocking=True)
        if not self.training:
            parts = images.split(self.most_at_once or len(images))
            return torch.cat([self.network(part)[:, : self.first_outputs] for part in parts])
        labels = batch[1].to(device, non_blocking=True)
        if self.mixup:
            # timm's cutmix cuts the last two of four axes: frames become channels.
            mixed, targets = self.mixup(images.flatten(1, -3), labels)
            return {"loss_cls": self.loss(self.network(mixed.view_as(images)), targets)}
        logits = self.network(images)
        return {"loss_cls": self.loss(logits, one_hot(labels, logits.shape[1]).to(logits.dtype))}
