from .backbone import MViT
from .variants import VARIANTS
