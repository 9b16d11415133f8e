"""Classification of images and clips: the networks, and what predicts with them."""
