"""The page, in a headless Chromium."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from live_server import LiveServer, live_server, wait_until
from playwright.sync_api import Browser, Page, expect, sync_playwright

from audiox_diffusers.media import Recipe, load_audio, read_recipe, save_audio, save_video

DESKTOP, PHONE = (1280, 900), (390, 844)
RATE = 16000
TONE = 0.5 * np.sin(np.arange(2 * RATE) * 0.2, dtype=np.float32)
PATIENCE = 30_000
# The players of Gradio are not part of the document.
REMEMBER_PLAYERS = """
window.players = new Set();
const play = HTMLMediaElement.prototype.play;
HTMLMediaElement.prototype.play = function () { window.players.add(this); return play.call(this); };
"""
PLAYING = "() => [...window.players].some(player => !player.paused && !player.ended)"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[LiveServer]:
    with live_server(tmp_path_factory.mktemp("page")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "the tests of the page need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(server, browser) -> Iterator:
    """Open the page at some width. At the end nothing may have failed in it."""
    pages, problems = [], []

    def open_page(size: tuple[int, int], **options: object) -> Page:
        page = browser.new_page(viewport=dict(zip(("width", "height"), size, strict=True)), **options)
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("response", lambda answer: problems.append(answer.url) if answer.status >= 400 else None)
        page.on("request", lambda request: problems.append(request.url) if is_foreign(request.url) else None)
        page.add_init_script(REMEMBER_PLAYERS)
        page.goto(server.url)
        # The defaults of the model are filled in when the page is ready.
        expect(page.get_by_label("Steps")).to_have_value("25", timeout=PATIENCE)
        pages.append(page)
        return page

    def is_foreign(url: str) -> bool:
        return not url.startswith((server.url, "data:", "blob:"))

    yield open_page
    for page in pages:
        width = page.viewport_size["width"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page is wider than the window"
        page.close()
    # What the browser says about a file that it cannot play.
    assert [problem for problem in problems if not problem.startswith("Waveform load error")] == []


def generate(page: Page, **numbers: object) -> None:
    for label, value in numbers.items():
        page.get_by_label(label, exact=True).fill(str(value))
    page.get_by_role("button", name="Generate", exact=True).click()


def result(page: Page, kind: str, path: Path) -> Path:
    """Wait for the result, and download it."""
    expect(page.locator("#progress [role=status]")).to_have_text("Done", timeout=PATIENCE)
    with page.expect_download() as download:
        page.get_by_role("button", name=f"Download {kind}").click()
    download.value.save_as(path)
    return path


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_a_sound_from_text(visit, server, tmp_path, size):
    page = visit(size, color_scheme="dark" if size == PHONE else "light")
    expect(page.locator("#title")).to_contain_text("audiox-tiny (loaded) · licence cc-by-sa-4.0")
    page.get_by_label("Prompt", exact=True).fill("two drum beats")
    generate(page, Steps=3, Seed=5)
    recipe = read_recipe(result(page, "WAV", tmp_path / "page.wav"))
    assert (recipe.prompt, recipe.seed, recipe.steps, recipe.length) == ("two drum beats", 5, 3, 4)
    sound, rate = load_audio(tmp_path / "page.wav")
    assert (rate, sound.shape) == (RATE, (1, 4 * RATE))
    for kind in ("FLAC", "MP3"):
        assert read_recipe(result(page, kind, tmp_path / f"sound.{kind.lower()}")) == recipe
    assert (load_audio(tmp_path / "sound.flac")[0] == sound).all()

    page.get_by_role("button", name="Generate it again").click()
    command = page.get_by_role("region", name="Command line")
    expect(command).to_contain_text("audiox generate --model audiox-tiny --prompt 'two drum beats' ")
    page.get_by_role("tab", name="curl").click()
    curl = page.get_by_role("region", name="curl")
    expect(curl).to_contain_text(f"curl --fail-with-body {server.url}/v1/audio/generate ")
    subprocess.run(["bash", "-c", curl.text_content()], cwd=tmp_path, check=True, capture_output=True)
    assert (load_audio(tmp_path / "sound.wav")[0] == sound).all()

    # The second sound: the first stops, and stays in the history.
    page.locator("#sound").get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function(PLAYING)
    generate(page, Seed=6)
    expect(page.get_by_role("radio", name="2. two drum beats (seed 6)")).to_be_checked(timeout=PATIENCE)
    assert not page.evaluate(PLAYING)
    page.get_by_role("radio", name="1. two drum beats (seed 5)").click()
    expect(curl).to_contain_text("seed=5 ")
    assert read_recipe(result(page, "WAV", tmp_path / "first.wav")) == recipe


def test_advanced_settings(visit, tmp_path):
    """They are used, kept in the file, restored from it, and emptied by an example."""
    save_audio(tmp_path / "noise.wav", TONE, RATE)
    page = visit(PHONE)
    expect(page.get_by_label("Text weight")).to_be_hidden()
    page.get_by_role("button", name="Advanced").click()
    page.get_by_label("Prompt", exact=True).fill("rain")
    page.get_by_label("Negative prompt").fill("a bell")
    page.locator("#negative-audio input[type=file]").set_input_files(tmp_path / "noise.wav")
    expect(page.locator("#negative-audio")).to_contain_text("0:02")
    page.get_by_label("Guidance interval").fill("half")
    weights = {"Text weight": 4, "Sound weight": 2}
    generate(page, Steps=2, Seed=1, **{"Length (s)": 1}, **weights)
    alert = page.locator("#error-settings").get_by_role("alert")
    expect(alert).to_contain_text("Guidance interval: must be LOW-HIGH")
    page.get_by_label("Guidance interval").fill("0.2 - 0.9")
    generate(page)
    recipe = read_recipe(result(page, "WAV", tmp_path / "rain.wav"))
    assert recipe.guidance_weights == (("text", 4.0), ("audio", 2.0)) and recipe.guidance_interval == ((0.2, 0.9),)
    assert (recipe.negative_prompt, recipe.negative_audio) == ("a bell", "noise.wav")

    advanced = ("Text weight", "Sound weight", "Guidance interval", "Negative prompt")
    page.get_by_role("button", name="A siren, then two drum beats").click()
    for label in advanced:
        expect(page.get_by_label(label)).to_have_value("")
    page.get_by_role("button", name="More settings").click()
    page.locator("#dropped input[type=file]").set_input_files(tmp_path / "rain.wav")
    expect(page.locator("#error-dropped")).to_have_text("Settings restored. Choose noise.wav again.")
    expect(page.get_by_role("radio", name="Text")).to_be_checked()
    for label, value in {**weights, "Guidance interval": "0.2-0.9", "Negative prompt": "a bell"}.items():
        expect(page.get_by_label(label)).to_have_value(str(value))


def test_settings_of_a_dropped_sound(visit, tmp_path):
    recipe = Recipe(
        model="audiox-tiny",
        seed=2**60,
        prompt="<b>rain</b>",
        audio="a.wav",
        inpaint=((0.5, 1.25),),
        steps=7,
        guidance=2.5,
        loudness=-20.0,
    )
    save_audio(tmp_path / "sound.ogg", TONE, RATE, recipe=recipe)
    save_audio(tmp_path / "plain.wav", TONE, RATE)
    page = visit(DESKTOP)
    page.get_by_role("button", name="More settings").click()
    page.locator("#dropped input[type=file]").set_input_files(tmp_path / "plain.wav")
    expect(page.locator("#error-dropped")).to_have_text(
        "plain.wav: carries no settings; it was not generated with audiox"
    )
    page.locator("#dropped input[type=file]").set_input_files(tmp_path / "sound.ogg")
    expect(page.locator("#error-dropped")).to_have_text("Settings restored. Choose a.wav again.")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("<b>rain</b>")
    expect(page.get_by_role("radio", name="Inpaint")).to_be_checked()
    for label, value in (("Steps", "7"), ("Guidance", "2.5"), ("Loudness in LUFS", "-20")):
        expect(page.get_by_label(label, exact=True)).to_have_value(value)
    expect(page.locator("#spans textarea, #spans input")).to_have_value("0.5-1.25")


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_a_film_from_an_uploaded_video(visit, tmp_path, size):
    frames = np.random.default_rng(0).integers(0, 256, (10, 64, 96, 3), dtype=np.uint8)
    save_video(tmp_path / "clip.mp4", frames, fps=10)
    page = visit(size)
    page.get_by_role("radio", name="Video").click()
    page.locator("#video input[type=file]").set_input_files(tmp_path / "clip.mp4")
    expect(page.get_by_label("Length (s)")).to_have_value("1", timeout=PATIENCE)
    generate(page, Steps=2)
    film = result(page, "MP4", tmp_path / "film.mp4")
    with av.open(str(film)) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
    assert read_recipe(film).video == "clip.mp4"
    page.wait_for_function("document.querySelector('#film video')?.readyState >= 1")
    assert page.evaluate("document.querySelector('#film video').error") is None
    assert page.evaluate("document.querySelector('#film video').duration") == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_an_inpainted_span(visit, tmp_path, size):
    save_audio(tmp_path / "tone.wav", TONE, RATE)
    page = visit(size)
    page.get_by_role("radio", name="Inpaint").click()
    page.locator("#audio input[type=file]").set_input_files(tmp_path / "tone.wav")
    page.wait_for_function("Number(document.querySelector('.audiox-spans')?.dataset.duration) == 2")
    page.locator(".audiox-spans").scroll_into_view_if_needed()
    frame = page.locator(".audiox-spans").bounding_box()
    page.mouse.move(frame["x"] + 0.25 * frame["width"], frame["y"] + 20)
    page.mouse.down()
    page.mouse.move(frame["x"] + 0.5 * frame["width"], frame["y"] + 20, steps=3)
    page.mouse.up()
    spans = page.locator("#spans textarea, #spans input")
    expect(spans).to_have_value("0.50-1.00")
    assert page.locator(".audiox-spans .marks div").count() == 1
    generate(page, Steps=3)
    edited, _ = load_audio(result(page, "WAV", tmp_path / "edited.wav"))
    changed = (edited - load_audio(tmp_path / "tone.wav")[0]).abs()[0] > 1e-4
    assert changed[RATE // 2 : RATE].any() and not changed[: RATE // 2 - 400].any() and not changed[RATE + 400 :].any()


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_cancelling_in_the_middle(visit, server, size):
    page = visit(size)
    page.get_by_label("Prompt", exact=True).fill("rain")
    generate(page, Steps=1000)
    expect(page.locator("#progress [role=status]")).to_contain_text("Generating: step", timeout=PATIENCE)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#progress [role=status]")).to_have_text("Cancelled", timeout=PATIENCE)
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_enabled()
    wait_until(lambda: not list(server.folder.iterdir()))


def test_a_closed_page_cancels(browser, visit, server):
    page = browser.new_page()
    page.goto(server.url)
    expect(page.get_by_label("Steps")).to_have_value("25", timeout=PATIENCE)
    page.get_by_label("Prompt", exact=True).fill("rain")
    generate(page, Steps=1000)
    expect(page.locator("#progress [role=status]")).to_contain_text("Generating: step", timeout=PATIENCE)
    page.close()
    wait_until(lambda: not list(server.folder.iterdir()))


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_errors_are_shown_where_they_belong(visit, tmp_path, size):
    (tmp_path / "text.wav").write_text("no sound")
    page = visit(size)
    generate(page)
    expect(page.locator("#error-prompt").get_by_role("alert")).to_have_text("Prompt: describe the sound")
    page.get_by_label("Prompt", exact=True).fill("rain")
    generate(page, Steps=5000)
    expect(page.locator("#error-settings").get_by_role("alert")).to_have_text("Steps: must be at most 1000, got 5000")
    expect(page.locator("#error-prompt")).to_be_hidden()
    page.get_by_role("radio", name="Inpaint").click()
    generate(page, Steps=2)
    expect(page.locator("#error-media").get_by_role("alert")).to_have_text("Sound: choose a sound to edit")
    page.locator("#audio input[type=file]").set_input_files(tmp_path / "text.wav")
    expect(page.locator("#audio")).to_contain_text("0:00")
    page.locator("#spans textarea, #spans input").fill("1.5 - 1")
    generate(page)
    expect(page.locator("#error-edit").get_by_role("alert")).to_contain_text("Seconds to regenerate: ")


def test_files_of_the_server_and_urls_are_never_opened(server, tmp_path):
    """A visitor who sends a path or a URL instead of an upload."""
    save_audio(tmp_path / "secret.wav", TONE, RATE)
    client = server.client
    config = client.get("/config").json()
    audio = next(item["id"] for item in config["components"] if item["props"].get("elem_id") == "audio")
    event = next(item for item in config["dependencies"] if item["inputs"] == [audio])
    for path in (str(tmp_path / "secret.wav"), "/etc/passwd", f"{server.url}/health", "file:///etc/passwd"):
        assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)
        data = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
        body = {"data": [data], "fn_index": event["id"], "session_hash": "visitor"}
        assert client.post("/gradio_api/queue/join", json=body).status_code == 200
        with client.stream("GET", "/gradio_api/queue/data?session_hash=visitor") as stream:
            events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
        (end,) = [event for event in events if event["msg"] == "process_completed"]
        assert not end["success"], path
