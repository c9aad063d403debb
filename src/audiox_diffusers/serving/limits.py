"""Limits of a server."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """
    What a server accepts and keeps.

    Args:
        max_queue (`int`): Requests that wait or are being uploaded. Further ones get status 429.
        max_batch (`int`): Sounds that are generated together.
        max_upload_bytes (`int`): Size of a request's body.
        max_length_s (`float`): Seconds of all sounds of a request together, and of a sound to edit.
        max_steps (`int`): Denoising steps.
        max_sounds (`int`): Sounds of a request.
        max_prompt (`int`): Characters of a prompt.
        max_pixels (`int`): Width times height of a picture or video.
        upload_timeout_s (`float`): Seconds that an upload may take.
        result_lifetime_s (`float`): Seconds for which a finished job is kept.
        max_results_bytes (`int`): Size of all results that are kept. Older ones are removed first.
        idle_unload_s (`float`, *optional*): Seconds without a request after which a model is unloaded.
        max_memory_bytes (`int`, *optional*): Size of the weights that are loaded at a time.
    """

    max_queue: int = 16
    max_batch: int = 8
    max_upload_bytes: int = 64 * 2**20
    max_length_s: float = 300.0
    max_steps: int = 1000
    max_sounds: int = 16
    max_prompt: int = 4096
    max_pixels: int = 2**25
    upload_timeout_s: float = 120.0
    result_lifetime_s: float = 900.0
    max_results_bytes: int = 2**30
    idle_unload_s: float | None = None
    max_memory_bytes: int | None = None
