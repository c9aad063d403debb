"""Deprecated: import from `audiox_diffusers.testing`."""

import warnings

from .testing import *  # noqa: F403
from .testing import create_mdct_vae as create_lapped_vae  # noqa: F401

warnings.warn(f"{__name__} is deprecated, use audiox_diffusers.testing", DeprecationWarning, stacklevel=2)
