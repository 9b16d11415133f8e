"""A web page to try a detector: :mod:`.viewer` is what it does, :mod:`.page` how it looks."""
