"""The small models that come with the package."""

from pathlib import Path

EMBEDDED_MODEL = "audiox-tiny"
# Its few-step student. The folder holds the files that differ from those of its teacher.
EMBEDDED_STUDENT = "audiox-tiny-turbo"
EMBEDDED_FOLDERS = {name: Path(__file__).parent / name for name in (EMBEDDED_MODEL, EMBEDDED_STUDENT)}
