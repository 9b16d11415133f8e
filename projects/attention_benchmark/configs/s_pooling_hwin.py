"""MViTv2-S with Hwin on ImageNet-1K. Published: 83.0 % top-1 (Table 4a)."""

from .s_pooling import model

# A guess, half of detection's: the paper does not give the windows on ImageNet.
WINDOWS = (28, 14, 7, 7)

model.adaptive_window_size = WINDOWS
