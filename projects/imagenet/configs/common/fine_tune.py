"""Fine-tuning on ImageNet-1K, at 224 or at a higher resolution (appendix B.2).

There is no public config, and the text does not mention a warm-up, so there is none.
"""

from .in1k import dataloader, dataset, input, lr_multiplier, model, optimizer, recipe, task, train

recipe.update(epochs=30, warmup_epochs=0)
dataloader.train.total_batch_size = 512  # 8 on each of 64 GPUs
