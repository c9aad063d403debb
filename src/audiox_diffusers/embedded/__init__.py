"""The small model that comes with the package."""

from pathlib import Path

EMBEDDED_MODEL = "audiox-tiny"
EMBEDDED_FOLDER = Path(__file__).parent / EMBEDDED_MODEL
