"""Training on ImageNet-21K (winter 2021) and ImageNet-1K together, with a class token.

By appendix B.2, which says of it what differs from ImageNet-1K. There is no public config. The
text's class token is off; those of the released networks are on.

``datasets/imagenet21k/train`` needs a folder for each class, and ``classes.txt`` their names, those
of ImageNet-1K first: so the first 1,000 outputs of the released networks are ImageNet-1K's, and so
facebookresearch/mvit validates while it trains.
"""

from .in1k import dataloader, dataset, input, lr_multiplier, model, optimizer, recipe, task, train

IN1K_CLASSES = 1000

dataset.update(
    train="datasets/imagenet21k/train",
    classes="datasets/imagenet21k/classes.txt",
    val="datasets/imagenet/val",
)
model.class_token = True
task.first_outputs = IN1K_CLASSES
recipe.update(
    epochs=90,
    # The text does not say how long the warm-up of a shorter run is: the same share of it.
    warmup_epochs=21,
)
