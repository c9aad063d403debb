"""The components of the page, and what happens when they are used."""

import os
import secrets
from collections.abc import Iterator
from functools import partial
from html import escape
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import gradio as gr

from ...media import Recipe, media_duration
from ..engine import Engine
from ..errors import ServingError
from ..tasks import DRAWN_SEEDS
from .code import code_box, show_code
from .examples import EXAMPLES, Example, write_example_files
from .results import Result, dropped_recipe, write_results
from .runs import Progress, Runs, preview_interval, progress_bar
from .spans import data_uri, show_sound, span_picture
from .style import STOP_SOUNDS
from .tasks import AS_GENERATED, LUFS, NEGATIVES, PEAK, TASKS, Form, Task, place_of

DOWNLOADS = (".wav", ".flac", ".mp3", ".mp4")
# Results that a session keeps.
MOST_RESULTS = 50
# Hidden fields stay in the document: those with `visible=False` lose their values.
HIDDEN = "hidden"
Updates = dict[Any, Any]


def build_page(engine: Engine, runs: Runs | None = None) -> gr.Blocks:
    """
    Build the page of an engine.

    Uploads and results are in a temporary folder, which is removed when the process ends.

    Args:
        engine (`Engine`): The engine. The caller starts and closes it.
        runs (`Runs`, *optional*): Runs jobs elsewhere than in the engine.
    """
    folder = TemporaryDirectory(prefix="audiox-page-")
    # Gradio reads the folder of its uploads from here only.
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    page = Page(engine, Path(folder.name), runs or Runs(engine))
    page.blocks.folder = folder  # it lives as long as the page
    return page.blocks


class Page:
    """
    The components of the page, their events, and the state of its sessions.

    Args:
        engine (`Engine`): The engine.
        folder (`Path`): Folder for uploads, examples and results.
        runs (`Runs`): Runs the jobs.
    """

    def __init__(self, engine: Engine, folder: Path, runs: Runs) -> None:
        self.engine, self.folder, self.runs = engine, folder, runs
        examples = folder / "examples"
        examples.mkdir()
        write_example_files(examples)
        self.form: dict[str, Any] = {}
        self.errors: dict[str, gr.HTML] = {}
        self.previews: dict[str, Path] = {}
        with gr.Blocks(title="AudioX", analytics_enabled=False, delete_cache=(600, 3600)) as self.blocks:
            self.results = gr.State([], time_to_live=3600, delete_callback=_discard)
            self._add_title()
            with gr.Row():
                with gr.Column(min_width=320):
                    self._add_inputs()
                    self._add_settings()
                with gr.Column(min_width=320):
                    self._add_run()
                    self._add_results()
            self._connect(examples)

    # Components

    def _add_title(self) -> None:
        self.title = gr.Markdown(self._describe_models(), elem_id="title")

    def _add_inputs(self) -> None:
        form = self.form
        form["task"] = gr.Radio(list(Task), value=Task.TEXT, label="Task", elem_id="task")
        self.hint = gr.Markdown(TASKS[Task.TEXT][1], elem_id="hint")
        with gr.Row(elem_id="examples"):
            self.examples = [gr.Button(example.label, size="sm") for example in EXAMPLES]
        form["prompt"] = gr.Textbox(label="Prompt", placeholder="rain on a tin roof", elem_id="prompt", lines=2)
        self._add_error("prompt")
        form["video"] = self._uploaded(
            gr.Video(label="Video", sources=["upload"], height=260, buttons=[], visible=HIDDEN, elem_id="video")
        )
        form["image"] = self._uploaded(
            gr.Image(
                label="Picture",
                type="filepath",
                sources=["upload"],
                visible=HIDDEN,
                elem_id="image",
                height=260,
                buttons=[],
            )
        )
        form["audio"] = self._uploaded_sound("Sound", elem_id="audio", visible=HIDDEN)
        self._add_error("media")
        self.span_picture = span_picture()
        form["spans"] = gr.Textbox(
            label="Seconds to regenerate",
            info="Start and end, such as 1.5-2.5, 3-3.5",
            visible=HIDDEN,
            elem_id="spans",
            max_lines=1,
        )
        form["extend"] = gr.Number(
            2, label="Seconds to add", info="Negative adds them at the start", visible=HIDDEN, elem_id="extend"
        )
        form["strength"] = gr.Slider(
            0.05, 1, 0.6, step=0.05, label="Strength", info="How much to change", visible=HIDDEN, elem_id="strength"
        )
        self._add_error("edit")

    def _add_settings(self) -> None:
        form, engine = self.form, self.engine
        default = "the model's own"
        with gr.Row(elem_id="numbers"):
            form["length"] = gr.Number(
                label="Length (s)", placeholder=default, minimum=0, elem_id="length", min_width=90
            )
            form["steps"] = gr.Number(
                label="Steps", placeholder=default, minimum=1, precision=0, elem_id="steps", min_width=90
            )
            form["guidance"] = gr.Number(label="Guidance", placeholder=default, elem_id="guidance", min_width=90)
        with gr.Row(elem_id="seed-row"):
            form["seed"] = gr.Number(
                label="Seed", placeholder="a new one each time", precision=0, elem_id="seed", min_width=120
            )
            self.new_seed = gr.Button("\N{DIE FACE-5} New seed", size="sm", elem_id="new-seed", min_width=90)
            form["number"] = gr.Slider(
                1, engine.limits.max_sounds, 1, step=1, label="Number of sounds", elem_id="number", min_width=170
            )
        self._add_error("settings")
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            self._add_advanced()
        with gr.Accordion("More settings", open=False, elem_id="more"):
            with gr.Row():
                form["level"] = gr.Radio(
                    [AS_GENERATED, PEAK, LUFS], value=AS_GENERATED, label="Level", elem_id="level"
                )
                form["loudness"] = gr.Number(-16, label="Loudness in LUFS", visible=HIDDEN, elem_id="loudness")
            models, adapters = list(engine.models.sources), list(engine.models.loras)
            form["model"] = gr.Dropdown(models, value=engine.models.default, label="Model", elem_id="model")
            with gr.Row():
                choices = [("None", ""), *((name, name) for name in adapters)]
                form["lora"] = gr.Dropdown(
                    choices, value="", label="LoRA", info="" if adapters else "This server has none", elem_id="lora"
                )
                form["lora_scale"] = gr.Slider(
                    0, 2, 1, step=0.05, label="LoRA scale", visible=True if adapters else HIDDEN, elem_id="lora-scale"
                )
            self.dropped = self._uploaded(
                gr.File(label="Drop a sound from AudioX here to restore its settings", elem_id="dropped", height=170)
            )
            self._add_error("dropped")

    def _add_advanced(self) -> None:
        form = self.form
        form["negative_prompt"] = gr.Textbox(label="Negative prompt", info="What to avoid", elem_id="negative")
        with gr.Row():
            form["negative_video"] = self._uploaded(
                gr.Video(label="Video to avoid", sources=["upload"], height=240, buttons=[], elem_id="negative-video")
            )
            form["negative_audio"] = self._uploaded_sound("Sound to avoid", elem_id="negative-audio")
        gr.Markdown(
            "Weights guide text, video (or picture) and sound separately, and replace **Guidance**. An empty weight is 1,"
            " which is neutral."
        )
        with gr.Row():
            for kind, label in (("text", "Text weight"), ("video", "Video weight"), ("audio", "Sound weight")):
                form[f"{kind}_weight"] = gr.Number(
                    label=label, placeholder="1", elem_id=f"{kind}-weight", min_width=90
                )
        with gr.Row():
            form["guidance_interval"] = gr.Textbox(
                label="Guidance interval",
                info="Times with guidance, from 0 (clean) to 1 (noise)",
                placeholder="0.2-0.8",
                max_lines=1,
                elem_id="interval",
            )
            form["guidance_rescale"] = gr.Slider(
                0, 1, 0, step=0.05, label="Guidance rescale", info="0 is off", elem_id="rescale"
            )
        form["guider"] = gr.Dropdown(
            [("None", ""), ("APG", "apg"), ("CFG-Zero*", "cfg-zero-star")],
            value="",
            allow_custom_value=True,
            label="Guider",
            info="Replaces plain guidance, with the scale of Guidance. You can type options, as in apg:eta=0.5",
            elem_id="guider",
        )

    def _add_run(self) -> None:
        with gr.Row(elem_id="runs"):
            self.generate = gr.Button("Generate", variant="primary", elem_id="generate")
            self.cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="cancel")
        self._add_error("status")
        self.progress = gr.HTML(visible=False, elem_id="progress")
        self.preview = gr.Audio(label="Preview", interactive=False, visible=False, elem_id="preview", buttons=[])

    def _add_results(self) -> None:
        with gr.Column(visible=False, elem_id="result") as self.result:
            self.film = gr.Video(
                label="Video with its new sound",
                interactive=False,
                visible=False,
                elem_id="film",
                height=260,
                buttons=[],
            )
            self.sound = gr.Audio(label="Result", interactive=False, elem_id="sound", buttons=[])
            self.picture = gr.HTML(elem_id="picture")
            self.note = gr.Markdown(elem_id="note")
            with gr.Row(elem_id="downloads"):
                self.downloads = {
                    suffix: gr.DownloadButton(
                        f"Download {suffix[1:].upper()}", size="sm", elem_id=f"download{suffix[1:]}"
                    )
                    for suffix in DOWNLOADS
                }
            with gr.Accordion("Generate it again", open=False, elem_id="again"), gr.Tabs():
                with gr.Tab("Command line"):
                    self.command = code_box("Command line")
                with gr.Tab("Python"):
                    self.python = code_box("Python")
                with gr.Tab("curl"):
                    self.curl = code_box("curl")
            self.history = gr.Radio([], label="Results of this session", elem_id="history")
            self.restore = gr.Button("Use these settings again", size="sm", elem_id="restore")

    def _uploaded(self, component: Any) -> Any:
        return _uploaded(component, self.folder)

    def _uploaded_sound(self, label: str, **options: Any) -> Any:
        return self._uploaded(
            gr.Audio(label=label, type="filepath", sources=["upload"], editable=False, buttons=[], **options)
        )

    def _add_error(self, place: str) -> None:
        self.errors[place] = gr.HTML(visible=False, elem_id=f"error-{place}")

    # Events

    def _connect(self, examples: Path) -> None:
        form, private = self.form, {"api_visibility": "private", "show_progress": "hidden"}
        # Quick events stay out of the queue: when one ends there, the browser closes the stream of news, and may miss
        # those of a run that has just begun.
        quick = {**private, "queue": False}
        visible = [self.hint, self.span_picture, *(form[name] for name in _TASK_FIELDS)]
        form["task"].change(self.show_task, form["task"], visible, **quick)
        form["level"].change(
            lambda level: gr.Number(visible=True if level == LUFS else HIDDEN),
            form["level"],
            form["loudness"],
            **quick,
        )
        form["audio"].change(show_sound, form["audio"], self.span_picture, **quick)
        form["video"].change(_video_length, [form["video"], form["length"]], form["length"], **quick)
        self.new_seed.click(lambda: secrets.randbelow(DRAWN_SEEDS), None, form["seed"], **quick)
        for button, example in zip(self.examples, EXAMPLES, strict=True):
            button.click(partial(self.show_example, example, examples), None, [*form.values()], **quick)
        self.dropped.upload(
            self.restore_dropped, self.dropped, [*form.values(), self.errors["dropped"], self.dropped], **quick
        )
        shown = [*self._result_parts(), self.history, self.results]
        events = [self.generate.click, form["prompt"].submit]
        for event in events:
            event(
                self.run,
                {*form.values(), self.results, self.history},
                [*self.errors.values(), self.generate, self.cancel, self.progress, self.preview, self.title, *shown],
                js=STOP_SOUNDS,
                concurrency_limit=None,
                trigger_mode="once",
                **private,
            )
        self.cancel.click(self.cancel_run, None, None, **quick)
        self.history.input(self.show_chosen, [self.history, self.results], self._result_parts(), **quick)
        self.restore.click(self.restore_chosen, [self.history, self.results], [*form.values()], **quick)
        defaults = [form[name] for name in ("length", "steps", "guidance")]
        form["model"].change(self.show_defaults, form["model"], defaults, **quick)
        empty = [form[name] for name in ("seed", *_WEIGHTS)]
        self.blocks.load(self.show_model, form["model"], [self.title, *defaults, *empty], **quick)
        self.blocks.unload(self.leave)
        self.blocks.queue(max_size=256, default_concurrency_limit=8)

    def show_task(self, task: str) -> Updates:
        """Show the inputs of a task."""
        media, hint = TASKS[Task(task)]
        shown = {*media, *_TASK_EDITS.get(task, ("length",))}
        updates: Updates = {
            self.form[name]: gr.update(visible=True if name in shown else HIDDEN) for name in _TASK_FIELDS
        }
        return {
            **updates,
            self.hint: hint,
            self.span_picture: gr.update(visible=True if task == Task.INPAINT else HIDDEN),
        }

    def show_defaults(self, model: str) -> Updates:
        """Fill in the defaults of a model. The fields of a model that is not loaded are empty, which stands for them."""
        names = ("length", "steps", "guidance")
        loaded = self.engine.models.loaded.get(model)
        if loaded is None:
            return {self.form[name]: None for name in names}
        config = loaded.pipe.config
        values = loaded.pipe.default_length_in_s(""), config.default_num_inference_steps, config.default_guidance_scale
        return {self.form[name]: value for name, value in zip(names, values, strict=True)}

    def show_model(self, model: str) -> Updates:
        """Fill in the defaults of the model when the page is opened. Gradio cannot empty numbers earlier."""
        empty = {self.form[name]: None for name in ("seed", *_WEIGHTS)}
        return {self.title: self._describe_models(), **empty, **self.show_defaults(model)}

    def show_example(self, example: Example, folder: Path) -> Updates:
        """Fill in an example, and empty the advanced settings."""
        media = {name: getattr(example, name) for name in ("video", "image", "audio")}
        return {
            self.form["task"]: example.task,
            self.form["prompt"]: example.prompt,
            self.form["spans"]: example.spans,
            **{self.form[name]: value for name, value in _ADVANCED.items()},
            **self.show_defaults(self.engine.models.default),
            **{self.form[name]: file and str(folder / file) for name, file in media.items()},
        }

    def run(self, data: Updates, request: gr.Request) -> Iterator[Updates]:
        """Generate sounds, and show progress and previews meanwhile."""
        form = Form(**{name: data[component] for name, component in self.form.items()})
        results: list[Result] = data[self.results]
        yield {
            **{error: gr.HTML(visible=False) for error in self.errors.values()},
            self.generate: gr.Button(interactive=False),
        }
        shown, new, failure, ended = data[self.history] or 0, [], None, {}
        try:
            values, files = form.request()
            values["preview_every"] = preview_interval(form.steps)
            self._new_previews(request.session_hash)
            for progress in self.runs.run(request.session_hash, values, files):
                failure = progress.error
                new = write_results(form, progress.results, self.folder)
                ended = self._show_progress(progress, request)
                yield ended
        except ServingError as error:
            failure = error.param, error.message
        if new:
            _discard(results[MOST_RESULTS - len(new) :])
            # The newest is first, so the last of the new ones has the first seed.
            results, shown = [*reversed(new), *results][:MOST_RESULTS], len(new) - 1
        updates = self._stopped(results, shown, request)
        if ended:
            # The last update comes again with the result, in case a busy browser drops one of two updates in a row.
            updates[self.progress] = ended[self.progress]
        if failure is not None:
            place, message = place_of(*failure)
            updates |= {self.progress: gr.HTML(visible=False), self.errors[place]: _error(message)}
        yield {**updates, self.title: gr.Markdown(self._describe_models()), self.results: results}

    def _show_progress(self, progress: Progress, request: gr.Request) -> Updates:
        """Show the progress of a run. Earlier results are hidden meanwhile, which stops their sound."""
        updates = {
            self.progress: gr.HTML(progress_bar(progress.state), visible=True),
            self.cancel: gr.Button(visible=True),
            self.result: gr.Column(visible=False),
        }
        if progress.state["status"] == "queued":
            updates |= {self.sound: None, self.film: None}
        if progress.preview is not None:
            step = progress.state["preview_step"]
            path = self.previews[request.session_hash] / f"preview-{step}.wav"
            path.write_bytes(progress.preview)
            updates[self.preview] = gr.Audio(str(path), label=f"Preview after step {step}", visible=True)
        return updates

    def _stopped(self, results: list[Result], index: int, request: gr.Request) -> Updates:
        """Return what the page shows when nothing runs: a result, if there is one."""
        updates = {
            self.generate: gr.Button(interactive=True),
            self.cancel: gr.Button(visible=False),
            self.preview: gr.Audio(None, visible=False),
        }
        if results:
            updates |= {self.history: gr.Radio(_choices(results), value=index), **self._show(results[index], request)}
        return updates

    def cancel_run(self, request: gr.Request) -> None:
        """Cancel what runs in a session."""
        self.runs.cancel(request.session_hash)

    def leave(self, request: gr.Request) -> None:
        """Cancel what runs in a session that was closed, and remove its previews."""
        self.cancel_run(request)
        rmtree(self.previews.pop(request.session_hash, ""), ignore_errors=True)

    def _new_previews(self, session: str) -> None:
        """Create a folder for the previews of a run. The browser may still load those of the last run until then."""
        rmtree(self.previews.pop(session, ""), ignore_errors=True)
        self.previews[session] = folder = self.folder / uuid4().hex
        folder.mkdir(mode=0o700)

    def show_chosen(self, index: int, results: list[Result], request: gr.Request) -> Updates:
        """Show an earlier result."""
        return self._show(results[index], request)

    def restore_chosen(self, index: int, results: list[Result]) -> Updates:
        """Fill in the settings of an earlier result, with its files."""
        result = results[index]
        media = {name: str(path) for name, path in result.form.files.items() if path.exists()}
        return {**self._fill_in(result.recipe), **{self.form[name]: path for name, path in media.items()}}

    def restore_dropped(self, path: str | None) -> Updates:
        """Fill in the settings of an uploaded result."""
        error, clear = self.errors["dropped"], {self.dropped: None}
        try:
            recipe = dropped_recipe(path)
        except ServingError as exception:
            return {**clear, error: _error(exception.message)}
        missing = ", ".join(recipe.inputs.values())
        note = gr.HTML(f"Settings restored. Choose {escape(missing)} again.", visible=True)
        return {**clear, **self._fill_in(recipe), error: note if missing else gr.HTML(visible=False)}

    def _fill_in(self, recipe: Recipe) -> Updates:
        """Return the values of all fields but the files, which a recipe does not contain."""
        adapter, scale = recipe.lora[0] if recipe.lora else ("", 1)
        models, adapters = self.engine.models.sources, self.engine.models.loras
        level = LUFS if recipe.loudness is not None else PEAK if recipe.normalize else AS_GENERATED
        values = {
            **_ADVANCED,
            "task": _task_of(recipe),
            "prompt": recipe.prompt or "",
            "negative_prompt": recipe.negative_prompt or "",
            **{f"{kind}_weight": weight for kind, weight in recipe.guidance_weights},
            "guidance_interval": ", ".join(f"{low:g}-{high:g}" for low, high in recipe.guidance_interval),
            "guider": recipe.guider or "",
            "spans": ", ".join(f"{start:g}-{end:g}" for start, end in recipe.inpaint),
            "extend": recipe.extend or 2,
            "strength": recipe.strength or 0.6,
            "length": recipe.length,
            "steps": recipe.steps,
            "guidance": recipe.guidance,
            "guidance_rescale": recipe.guidance_rescale or 0,
            "seed": recipe.seed,
            "number": 1,
            "level": level,
            "loudness": -16 if recipe.loudness is None else recipe.loudness,
            "model": recipe.model if recipe.model in models else self.engine.models.default,
            "lora": adapter if adapter in adapters else "",
            "lora_scale": scale,
            "video": None,
            "image": None,
            "audio": None,
        }
        return {self.form[name]: value for name, value in values.items()}

    def _show(self, result: Result, request: gr.Request) -> Updates:
        files = {suffix: str(path) for suffix, path in result.files.items()}
        return {
            self.result: gr.Column(visible=True),
            self.film: gr.Video(files.get(".mp4"), visible=result.is_film),
            self.sound: files[".wav"],
            self.picture: f'<img src="{data_uri(result.picture.read_bytes())}" alt="Waveform and spectrogram of the result">',
            self.note: gr.Markdown(result.note, visible=bool(result.note)),
            **{
                button: gr.DownloadButton(value=files.get(suffix), visible=suffix in files)
                for suffix, button in self.downloads.items()
            },
            self.command: show_code(result.command_line()),
            self.python: show_code(result.python_code()),
            self.curl: show_code(result.curl_line(str(request.request.base_url))),
        }

    def _result_parts(self) -> list[Any]:
        parts = [self.result, self.film, self.sound, self.picture, self.note, *self.downloads.values()]
        return [*parts, self.command, self.python, self.curl]

    def _describe_models(self) -> str:
        lines = ["# AudioX", ""]
        for model in self.engine.models.describe():
            state = "loaded" if model["loaded"] else "loads at its first use"
            license = model["license"] or "licence unknown: see its model card"
            license = f"licence {license}" if model["license"] else license
            lines.append(f"Model **{escape(model['id'])}** ({state}) \N{MIDDLE DOT} {escape(license)}\n")
        return "\n".join(lines)


_TASK_FIELDS = ("video", "image", "audio", "spans", "extend", "strength", "length")
_WEIGHTS = ("text_weight", "video_weight", "audio_weight")
# The advanced settings, as they are when the page is opened.
_ADVANCED = {
    "negative_prompt": "",
    **dict.fromkeys((*NEGATIVES, *_WEIGHTS)),
    "guidance_interval": "",
    "guidance_rescale": 0,
    "guider": "",
}
# An edit keeps the length of its sound, or adds to it.
_TASK_EDITS = {Task.INPAINT: ("spans",), Task.EXTEND: ("extend",), Task.VARY: ("strength",)}


def _task_of(recipe: Recipe) -> Task:
    if recipe.inpaint:
        return Task.INPAINT
    if recipe.extend is not None:
        return Task.EXTEND
    if recipe.strength is not None:
        return Task.VARY
    alone = {(): Task.TEXT, ("video",): Task.VIDEO, ("image",): Task.IMAGE}
    return alone.get(tuple(name for name in recipe.inputs if name not in NEGATIVES), Task.MIX)


def _choices(results: list[Result]) -> list[tuple[str, int]]:
    return [(f"{len(results) - index}. {result.label}", index) for index, result in enumerate(results)]


def _error(message: str) -> gr.HTML:
    return gr.HTML(f'<div class="audiox-error" role="alert">{escape(message)}</div>', visible=True)


def _discard(results: list[Result]) -> None:
    """Remove the files of results."""
    for result in results:
        rmtree(result.picture.parent, ignore_errors=True)


def _video_length(video: str | None, length: float | None) -> float | None:
    """Return the duration of a video, and the length as it is without one."""
    try:
        return length if video is None else round(media_duration(video, "picture"), 2)
    except (ValueError, OSError):
        return length


def _uploaded(component: Any, folder: Path) -> Any:
    """
    Make a component take files that were uploaded to a folder, and nothing else.

    A visitor can send any path or URL in place of an upload. Gradio would fetch URLs, and open pictures itself.
    """
    move = component.async_move_resource_to_block_cache

    async def move_upload(path: Any) -> str | None:
        if path is not None and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            raise gr.Error("This file was not uploaded.")
        return await move(path)

    component.async_move_resource_to_block_cache = move_upload
    component.preprocess = lambda payload: None if payload is None else payload.path or None
    return component
