"""A training that takes milliseconds."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from mvitv2_det.data.loader import BatchOrder, TrainLoader
from mvitv2_det.engine.trainer import Trainer


class Regression(nn.Module):
    """Without dropout and batch norm, so that a batch's gradient is the mean of its images'."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 1))

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        inputs, targets = batch
        return {"loss": (self.net(inputs) - targets).square().mean()}


def make_trainer(model: nn.Module | None = None, *, batch: int = 8, **options: Any) -> Trainer:
    """A trainer of 24 random samples, the same each time, by SGD."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(24, 6), torch.randn(24, 1))
    model = model or Regression()
    loader = TrainLoader(data, BatchOrder(24, batch), collate=torch.utils.data.default_collate)
    loader.start_at(0, seed=1)
    wrapped = model
    if torch.distributed.is_initialized():
        wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Trainer(wrapped, loader, optimizer, seed=1, **options)
