"""``python -m mvitv2_det``: the same as the command ``mvitv2-det``."""

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
