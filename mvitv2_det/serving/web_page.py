"""The page, by gradio: what is on it, and its server. It asks nothing of other machines."""

import os
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError, one_line
from ..predict.loop import stop_signals
from .viewer import LEAST_SCORE, Seen, Viewer

MOST_MEGABYTES = 64  # of an upload
_FORGET = 3600  # seconds after which what was uploaded is forgotten
_NO_PICTURE = "Drop a picture to begin."
_NO_PLACE = "Click a place of the picture to see what it attends to."
_STYLE = "#picture img {cursor: crosshair}"

Place = tuple[int, int]


class Handlers:
    """What the page does: functions of the values on it that return the values to show."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer

    def look(
        self, file: str | None, threshold: float
    ) -> tuple[Seen | None, np.ndarray | None, str, None, str, None]:
        """Looks at an upload.

        Returns:
            what was seen, its picture and a line about it; and the values that clear the clicked
            place, its line and its attention.
        """
        no_place = None, _NO_PLACE, None
        if file is None:
            return None, None, _NO_PICTURE, *no_place
        try:
            seen = self._viewer.look(Path(file))
        except Exception as error:
            line = one_line(error)
            if line is None:
                traceback.print_exc()
                line = f"{Path(file).name} failed: the terminal that serves this page says how"
            return None, None, line.replace(file, Path(file).name), *no_place
        return seen, *self.draw(seen, threshold), *no_place

    def draw(self, seen: Seen | None, threshold: float) -> tuple[np.ndarray | None, str]:
        """Draws the instances over a threshold: the picture, and a line about them."""
        if seen is None:
            return None, _NO_PICTURE
        return self._viewer.draw(seen, threshold), self._viewer.summary(seen, threshold)

    def attend(
        self, seen: Seen | None, place: Place | None, block: int
    ) -> tuple[str, Image.Image | None]:
        """Draws what a place attends to in a block: a line that names it, and the picture."""
        if seen is None or place is None:
            return _NO_PLACE, None
        return self._viewer.attention(seen, place, block)


def build_page(viewer: Viewer, heading: str, threshold: float) -> Any:
    """Makes the page.

    Args:
        viewer: does what is asked for.
        heading: the line at the top.
        threshold: of the scores, at first.

    Returns:
        gradio's ``Blocks``.

    Raises:
        UserError: gradio is not installed, or the threshold is below what the network keeps.
    """
    if not LEAST_SCORE <= threshold <= 1:
        raise UserError(
            f"the page's score threshold must be in [{LEAST_SCORE:g}, 1], got {threshold:g}"
        )
    gradio = require_gradio()
    handlers = Handlers(viewer)
    common = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
    # Its label would hide a corner of an image.
    shown = {"show_label": False, "interactive": False, "buttons": ["download", "fullscreen"]}
    with gradio.Blocks(
        title="mvitv2_det", analytics_enabled=False, delete_cache=(_FORGET, _FORGET)
    ) as page:
        seen = gradio.State(None, time_to_live=_FORGET)
        place = gradio.State(None, time_to_live=_FORGET)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                # No Markdown: names may hold anything.
                gradio.Textbox(heading, label="Model", interactive=False, lines=1, max_lines=3)
                upload = gradio.File(label="Picture", height=140, elem_id="upload")
                score = gradio.Slider(
                    LEAST_SCORE, 1, threshold, step=0.01, label="Score threshold", elem_id="score"
                )
                line = gradio.Textbox(
                    _NO_PICTURE, label="Found", interactive=False, max_lines=8, elem_id="found"
                )
                block = gradio.Dropdown(
                    [(text, number) for number, text in enumerate(viewer.blocks)],
                    value=viewer.default_block,
                    label="Attention of",
                    elem_id="block",
                )
            with gradio.Column(scale=3):
                picture = gradio.Image(format="jpeg", elem_id="picture", **shown)
                query = gradio.Markdown(_NO_PLACE, elem_id="query")
                attention = gradio.Image(format="png", elem_id="attention", **shown)

        def click(seen: Seen, block: int, event: Any) -> tuple[Place, str, Image.Image | None]:
            chosen = event.index[0], event.index[1]
            return chosen, *handlers.attend(seen, chosen, block)

        # What an event brings comes to the argument of this type.
        click.__annotations__["event"] = gradio.SelectData
        upload.change(
            handlers.look,
            [upload, score],
            [seen, picture, line, place, query, attention],
            show_progress_on=picture,
            **common,
        )
        score.change(
            handlers.draw,
            [seen, score],
            [picture, line],
            trigger_mode="always_last",
            show_progress="hidden",
            **common,
        )
        picture.select(click, [seen, block], [place, query, attention], **common)
        block.input(handlers.attend, [seen, place, block], [query, attention], **common)
    return page


def serve(viewer: Viewer, heading: str, *, threshold: float, host: str, port: int | None) -> None:
    """Serves the page until Ctrl-C or SIGTERM, and prints its address.

    Args:
        viewer, heading, threshold: see :func:`build_page`.
        host: address that the page is at; ``0.0.0.0`` for all of this machine.
        port: by default the first from 7860 on that is free.

    Raises:
        UserError: as :func:`build_page`; or it cannot be served there.
    """
    with TemporaryDirectory(prefix="mvitv2_det_page_") as uploads, stop_signals() as stopped:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = build_page(viewer, heading, threshold)
        theme = require_gradio().themes.Default(font="sans-serif", font_mono="monospace")
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                ssr_mode=False,
                quiet=True,
                prevent_thread_lock=True,
                show_error=False,
                run_history=False,
                footer_links=[],
                max_file_size=f"{MOST_MEGABYTES}mb",
                theme=theme,
                css=_STYLE,
            )
        except OSError as error:
            where = host if port is None else f"{host}:{port}"
            reason = str(error).partition(". ")[0]  # the rest is of gradio's own options
            raise UserError(
                f"the page cannot be served at {where} ({reason}): choose another --port or --host"
            ) from error
        print(f"the page is at {address}; Ctrl-C ends it", flush=True)
        stopped.wait()
        page.close(verbose=False)


def require_gradio() -> Any:
    """Imports gradio, and keeps it from calling home.

    Raises:
        UserError: it is not installed.
    """
    # Read when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            f"the page is made by gradio, which cannot be imported ({error}): "
            f"pip install 'mvitv2_det[serve]'"
        ) from error
    return gradio
