"""Warnings of other libraries that tell a user of this package nothing.

Each is about how Detectron2 or fvcore calls PyTorch, so neither this package nor its user can act
on it. Commands silence them; importing the package changes nothing.
"""

import logging
import warnings

# Text (a regular expression), category and module of each warning.
SILENCED = (
    # fvcore's losses and Detectron2's box regression are scripted when they are imported.
    (r"`torch\.jit\.script", FutureWarning, r"torch\.jit"),
    (r"`torch\.jit\.script", DeprecationWarning, r"torch\.jit"),
    # Detectron2's anchors.
    (r"torch\.meshgrid: in an upcoming release", UserWarning, r"torch\.functional"),
    # Detectron2's masks, of what pycocotools decodes; they are only read.
    (r"The given NumPy array is not writable", UserWarning, r"detectron2\.data"),
    # pycocotools, and Detectron2's evaluation, under NumPy 2.
    (r"__array__ implementation doesn't accept a copy keyword", DeprecationWarning, ""),
)
# The logger of each line, and how it begins.
SILENCED_LINES = {
    # Detectron2's ROI pooling asks PyTorch whether it is traced.
    "torch.fx._symbolic_trace": "is_fx_tracing will return true",
    # Detectron2 lists the versions of a machine that has CUDA's compiler and no GPU.
    "torch.utils.cpp_extension": "No CUDA runtime is found",
}


def silence_third_party_warnings() -> None:
    """Silences them for the rest of the process; calling it again changes nothing."""
    for message, category, module in SILENCED:
        warnings.filterwarnings("ignore", message, category, module)
    for logger in SILENCED_LINES:
        logging.getLogger(logger).addFilter(_is_worth_showing)


def _is_worth_showing(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(SILENCED_LINES[record.name])
