"""Runs of the page: jobs of the engine, one at a time for each session."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ...media import MediaBytes
from ..engine import Engine
from ..jobs import Job

# Steps between two previews, as a share of all steps.
PREVIEWS = 4
STAGES = {
    "load": "Loading the model",
    "encode": "Reading the inputs",
    "denoise": "Generating",
    "decode": "Decoding the sound",
}


@dataclass(frozen=True)
class Progress:
    """
    An update on a run.

    Args:
        state (`dict`): State of the job, as `Job.describe` returns it.
        preview (`bytes`, *optional*): A new preview, as a WAV file.
        results (`tuple[Path, ...]`): Files of the sounds, at the end. They are removed with the next update.
        error (`tuple[str | None, str]`, *optional*): Field and message of an error, at the end.
    """

    state: dict[str, Any]
    preview: bytes | None = None
    results: tuple[Path, ...] = ()
    error: tuple[str | None, str] | None = None


class Runs:
    """
    The job of each session.

    Args:
        engine (`Engine`): The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def run(self, session: str, values: dict[str, Any], files: dict[str, MediaBytes]) -> Iterator[Progress]:
        """
        Cancel the session's earlier job, run a new one, and yield updates, at least every half second.

        Raises:
            ServingError: `Engine.submit` refuses the request.
        """
        self.cancel(session)
        job = self.engine.submit(values, files)
        with self._lock:
            self._jobs[session] = job
        try:
            yield from self._follow(job)
            error = None if job.error is None else (job.error.param, job.error.message)
            yield Progress(job.describe(), results=tuple(job.results), error=error)
        finally:
            with self._lock:
                if self._jobs.get(session) is job:
                    del self._jobs[session]
            self.engine.remove(job)

    def _follow(self, job: Job) -> Iterator[Progress]:
        shown = None
        for state in job.events(interval_s=0.5):
            preview = job.read_preview() if state["preview_step"] != shown else None
            shown = state["preview_step"]
            yield Progress({**state, "position": self.engine.position(job)}, preview)

    def cancel(self, session: str) -> None:
        """Cancel the job of a session, if it has one."""
        with self._lock:
            job = self._jobs.get(session)
        if job is not None:
            self.engine.cancel(job)


def preview_interval(steps: float | None) -> int:
    """Return the number of steps between two previews."""
    return max(1, round((steps or 25) / PREVIEWS))


def describe_state(state: dict[str, Any]) -> str:
    """Return a state in words."""
    if state["status"] == "queued":
        position = state["position"]
        return "Waiting" if not position else f"Waiting: {position} before this one"
    if state["status"] != "running":
        return {"succeeded": "Done", "cancelled": "Cancelled", "failed": "Failed"}[state["status"]]
    text = STAGES.get(state["stage"], "Generating")
    if state["stage"] == "denoise" and state["steps"]:
        text += f": step {state['step']} of {state['steps']}"
        if state["eta_s"] and state["eta_s"] >= 1:
            text += f", about {state['eta_s']:.0f} s left"
    return text


def progress_bar(state: dict[str, Any]) -> str:
    """Return a progress bar as HTML."""
    text, percent = escape(describe_state(state)), round(100 * state["progress"])
    return (
        f'<div class="audiox-progress"><span role="status">{text}</span>'
        f'<progress max="100" value="{percent}" aria-label="Progress">{percent} %</progress></div>'
    )
