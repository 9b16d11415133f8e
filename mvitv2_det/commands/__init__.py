"""The command ``mvitv2-det``: one module for each of its commands.

Each module has a docstring, which is the text of ``--help``; ``add_arguments(parser)``; and
``run(args)``, which returns the exit status. To answer ``--help`` quickly, these modules import
neither torch nor Detectron2 at their top: ``run`` does, after the command line has been read.
"""

from .entry import main, run_command

__all__ = ["main", "run_command"]
