"""The page as a part of a FastAPI application."""

from typing import Any

import gradio as gr
from fastapi import FastAPI

from ..engine import Engine
from .layout import build_page
from .style import CSS, THEME


def page_options(engine: Engine) -> dict[str, Any]:
    """Return options of the page, as `mount_gradio_app` and `launch` take them."""
    return {
        "theme": THEME,
        "css": CSS,
        "max_file_size": engine.limits.max_upload_bytes,
        "allowed_paths": [],
        "show_error": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "footer_links": [],
        "run_history": False,
    }


def mount_page(app: FastAPI, engine: Engine, path: str = "/") -> FastAPI:
    """Add the page of an engine to an application."""
    page = build_page(engine)
    # Only `launch` sets this, and Gradio does not check where the files of a request lie without it.
    page.has_launched = True
    # Gradio looks for events every millisecond, which takes time from the engine.
    page._queue.sleep_when_free = 0.05
    return gr.mount_gradio_app(app, page, path, **page_options(engine))
