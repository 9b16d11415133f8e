"""Faster ways to compute the same blocks, with the same outputs and gradients."""
