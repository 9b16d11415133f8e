"""Attention in tiles that stay in the cache of a CPU."""
