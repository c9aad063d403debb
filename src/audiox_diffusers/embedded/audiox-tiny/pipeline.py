"""Lets diffusers load this folder without importing the package first:

DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)
"""

from audiox_diffusers import AudioXPipeline  # noqa: F401
