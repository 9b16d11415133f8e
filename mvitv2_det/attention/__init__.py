"""Pooling attention of the plain model: :mod:`.multiscale`, and what its steps consist of."""
