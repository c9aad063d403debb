"""The page of `audiox serve`."""

from .layout import build_page
from .mount import mount_page, page_options

__all__ = ["build_page", "mount_page", "page_options"]
