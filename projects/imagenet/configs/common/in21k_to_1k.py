"""Fine-tuning a network of ImageNet-21K on ImageNet-1K (appendix B.2), without mixup.

The text gives this for L and H. The classifier's 19,168 outputs become 1,000 new ones. Without
training, ``--eval-only train.load.classes=first`` evaluates the first 1,000 of the old ones, which
are those of ImageNet-1K.
"""

from .fine_tune import (
    dataloader,
    dataset,
    input,
    lr_multiplier,
    model,
    optimizer,
    recipe,
    task,
    train,
)

model.class_token = True
task.mixup = None
recipe.lr_per_256 = 4 * 7e-5  # 7e-5 for 64 images
