"""Attention that stays in the cache of a CPU: :mod:`.tiled` trains, :mod:`.rows` infers."""
