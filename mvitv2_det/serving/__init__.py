"""A web page to try a detector: :mod:`.viewer` is what it does, :mod:`.web_page` how it looks."""
