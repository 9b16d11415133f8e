"""Actions of persons as the engine trains them: clips with boxes to a loss, or to probabilities.

Axes: N persons of a clip, C actions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from .data import Sample


class Actions(nn.Module):
    """Compares the logits of all persons of a batch with what they do; otherwise names it.

    Args:
        network: an ``ActionRecognizer``; on several processes, as wrapped for them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Sequence[Sample]) -> dict[str, Tensor] | list[Tensor]:
        """The loss as ``{"loss_actions": …}`` in training, otherwise (N, C) for each clip.

        PySlowFast has a sigmoid and then the binary cross-entropy; its mean over persons and
        actions is the same here, and finite for large logits.

        Args:
            batch: clips of one size in training, of any in evaluation.
        """
        device = next(self.network.parameters()).device
        if self.training:
            logits = self._logits(batch, device)
            targets = torch.cat([sample.targets for sample in batch]).to(device)
            return {"loss_actions": binary_cross_entropy_with_logits(logits, targets)}
        found: dict[int, Tensor] = {}
        of_size: dict[torch.Size, list[int]] = {}
        for place, sample in enumerate(batch):
            of_size.setdefault(sample.clip.shape, []).append(place)
        for places in of_size.values():
            samples = [batch[place] for place in places]
            probabilities = self._logits(samples, device).float().sigmoid()
            parts = probabilities.split([len(sample.boxes) for sample in samples])
            found.update(zip(places, parts, strict=True))
        return [found[place] for place in range(len(batch))]

    def _logits(self, samples: Sequence[Sample], device: torch.device) -> Tensor:
        clips = torch.stack([sample.clip for sample in samples]).to(device, non_blocking=True)
        return self.network(clips, [sample.boxes.to(device) for sample in samples])
