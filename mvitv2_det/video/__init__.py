"""Videos: reading frames of files exactly, and the clips that networks take of them.

Nothing here needs Detectron2. :func:`open_video` reads files and folders of frames,
:func:`read_stream` cameras and network streams.
"""

from .reading import BACKENDS, Frame, Video, open_video, read_stream

__all__ = ["BACKENDS", "Frame", "Video", "open_video", "read_stream"]
