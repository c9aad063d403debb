"""Text from users in model cards, on one line and without meaning to Markdown, HTML or Python."""

import html
import json
import re

from .messages import one_line

TAGS = ["audiox", "diffusers", "text-to-audio", "video-to-audio", "text-to-music", "audio-generation"]


def plain(text: str) -> str:
    """Escape HTML and Markdown."""
    text = re.sub(r"([\\`*_\[\]#|~$!])", r"\\\1", html.escape(one_line(text), quote=False))
    # Characters that start a list or underline a heading, if they come first.
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", text)


def code(text: str) -> str:
    """Return a code span."""
    text = one_line(text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{fence}{space}{text}{space}{fence}"


def string(text: str) -> str:
    """Return a string literal of Python."""
    return json.dumps(one_line(text), ensure_ascii=False)
