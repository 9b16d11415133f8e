"""One page about a run: what it found, what it got wrong, and on which data."""
